"""How often each document was shown and clicked in the train lists: CTR and sampling probability."""

import ibis
import ibis.expr.types as ir


def document_statistics(
    documents: ir.Table, shown: ir.Table, train: ir.Table, *, ctr_prior_strength: float
) -> ir.Table:
    """Count documents and smooth their click-through rate.

    ctr = (clicks + a · mean) / (impressions + a), where mean is the click-through rate of all documents
    together and a the strength of the prior: one never shown has the mean, one shown often its own rate.

    Args:
        documents: The catalogue: `doc_id`.
        shown: The train lists' documents: `doc_id`, `positive` (the click counts).
        train: The train rows: `positive_doc_id`.
        ctr_prior_strength: a, in impressions; > 0.

    Returns:
        One row per document of the catalogue: `doc_id, impressions, clicks, ctr, sampling_probability` (the
        share of the train rows of which the document is the positive; sums to 1), `cold` (never clicked).
    """
    counts = shown.group_by("doc_id").agg(impressions=shown.count(), clicks=shown.positive.sum())
    rows = train.group_by(doc_id=train.positive_doc_id).agg(rows=train.count())
    found = documents.select("doc_id").left_join(counts, "doc_id").left_join(rows, "doc_id")
    found = found.select(
        "doc_id", **{name: ibis.coalesce(found[name], 0) for name in ("impressions", "clicks", "rows")}
    )
    everything = ibis.window()
    mean = found.clicks.sum().over(everything) / found.impressions.sum().over(everything)
    return found.select(
        "doc_id",
        "impressions",
        "clicks",
        ctr=(found.clicks + ctr_prior_strength * mean) / (found.impressions + ctr_prior_strength),
        sampling_probability=found["rows"] / found["rows"].sum().over(everything),
        cold=found.clicks == 0,
    )
