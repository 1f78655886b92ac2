"""Position bias: how often each place of a list is looked at, estimated from the log alone.

The click model is position × attraction: a document shown for a query at place p is clicked with the chance
`θ_p γ_qd`, where θ is the examination of the place and γ the attraction of the pair. Shops rank well, so
that the click-through rate of a place mixes both. What separates them is that rankers vary: where one
(query, document) was shown at several places, how its clicks fall on them tells θ apart from γ.

Given the number of clicks of a pair, γ cancels: its clicks fall on the places in proportion to `n_qdp θ_p`,
where n counts how often it was shown there. Maximising that conditional likelihood needs no γ at all, so that
millions of rare pairs cannot bias θ, as they do when each brings a parameter of its own.

Shapes: r rows, one for each pair and place; g pairs; p places.
"""

from dataclasses import dataclass

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
from ibis.backends import BaseBackend
from numpy.typing import NDArray

from features.engine import materialise
from features.errors import SchemaError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_PRIOR_CLICKS = 5.0
"""Clicks that every place has of an imaginary pair: a place without evidence gets no correction."""

_TOLERANCE = 1e-7
_MOST_ROUNDS = 5_000


@dataclass(frozen=True)
class PositionBias:
    """The estimated examination of each place.

    Attributes:
        position: (p,) places, ascending.
        examination: (p,) relative to the place that is looked at most, in (0, 1].
        clicks: (p,) clicks there that told places apart.
    """

    position: Ints
    examination: Floats
    clicks: Ints

    def describe(self) -> list[dict[str, float]]:
        """Return the curve as JSON: `position, examination, clicks`, a place an entry."""
        return [
            {"position": int(place), "examination": float(share), "clicks": int(clicks)}
            for place, share, clicks in zip(self.position, self.examination, self.clicks, strict=True)
        ]


def estimate_position_bias(connection: BaseBackend, shown: ir.Table) -> PositionBias:
    """Estimate how often each place is looked at.

    Args:
        connection: The engine that holds the table.
        shown: One row per list and document: `query_key, doc_id, position` (1-based, may be null), `clicked`.
            Rows without a position or a query are left out.

    Returns:
        Every place that occurs. Equal tables give equal numbers, bit for bit.

    Raises:
        SchemaError: If no clicked document has a position.
    """
    placed = shown.filter(shown.position.notnull(), shown.query_key.notnull())
    counts = placed.group_by("query_key", "doc_id", "position").agg(
        shown=placed.count(), clicks=placed.clicked.cast("int64").sum()
    )
    counts = materialise(connection, "pairs_by_place", counts)
    places = counts.group_by("position").agg(clicks=counts.clicks.sum()).order_by("position").to_pyarrow()
    if not sum(places["clicks"].to_pylist()):
        raise SchemaError(
            "no clicked document has a position, so that position bias cannot be estimated; map the "
            "log's position column, or set examples.weight to click"
        )
    pair = ibis.window(group_by=[counts.query_key, counts.doc_id])
    telling = counts.mutate(clicked=counts.clicks.sum().over(pair), places=counts.count().over(pair))
    telling = telling.filter(telling.clicked > 0, telling.places > 1)
    number = ibis.dense_rank().over(ibis.window(order_by=[telling.query_key, telling.doc_id]))
    rows = telling.select("position", "shown", "clicks", pair=number).order_by("pair", "position")
    rows = rows.to_pyarrow()
    position = places["position"].to_numpy().astype(np.int64)
    place_r = np.searchsorted(position, rows["position"].to_numpy())
    shown_r, clicks_r = (rows[name].to_numpy().astype(np.float64) for name in ("shown", "clicks"))
    pair_r = rows["pair"].to_numpy().astype(np.int64)
    examination = examination_of(place_r, pair_r, shown_r, clicks_r, len(position))
    clicks = np.bincount(place_r, clicks_r, len(position)).astype(np.int64)
    return PositionBias(position, examination, clicks)


def weigh_by_propensity(rows: ir.Table, bias: PositionBias, floor: float) -> ir.Table:
    """Replace `weight` by the inverse of how often the click's place is looked at.

    Weights are clipped, so that a click at a place that nobody reaches cannot rule a batch, and
    self-normalised: they average 1 over the rows, which keeps learning rates and losses comparable.

    Args:
        rows: One row per click: `position`, which may be null: such a click weighs 1.
        bias: The curve; holds every place that occurs.
        floor: Smallest examination that is believed, in (0, 1].
    """
    counted = rows.filter(rows.position.notnull()).group_by("position").agg(rows=lambda t: t.count())
    found = counted.order_by("position").to_pyarrow()
    position = found["position"].to_numpy().astype(np.int64)
    if len(position) == 0:
        return rows
    weight = 1.0 / np.maximum(bias.examination[np.searchsorted(bias.position, position)], floor)
    weight /= np.average(weight, weights=found["rows"].to_numpy())
    inverse = ibis.memtable(pa.table({"place": position, "inverse": weight}))
    joined = rows.drop("weight").left_join(inverse, rows.position == inverse.place)
    return joined.mutate(weight=ibis.coalesce(joined.inverse, 1.0)).drop("place", "inverse")


def examination_of(place_r: Ints, pair_r: Ints, shown_r: Floats, clicks_r: Floats, places: int) -> Floats:
    """Maximise `Σ_r clicks_r log(shown_r θ_place / Σ_pair shown θ)` over θ by minorisation.

    Each round sets `θ_p = clicks_p / Σ_r∈p (clicks of the pair) shown_r / (Σ_pair shown θ)`, which never
    lowers the likelihood. An imaginary pair with `_PRIOR_CLICKS` clicks at each place, shown once at each,
    joins places that no pair connects and draws those without evidence to the others.

    Args:
        place_r: Place of each row, 0 to `places` - 1.
        pair_r: Any codes ≥ 0 of the pairs.
        shown_r: How often the pair was shown there, > 0.
        clicks_r: How often it was clicked there.
        places: p.

    Returns:
        (p,) θ, whose largest is 1.

    Source: Hunter 2004, "MM algorithms for generalized Bradley-Terry models"; Agarwal et al. 2019,
    "Estimating position bias without intrusive interventions" (which pairs tell places apart).
    Differs: all places of a pair at once, and a prior.
    """
    clicks_g = np.bincount(pair_r, clicks_r)
    clicks_p = np.bincount(place_r, clicks_r, places) + _PRIOR_CLICKS
    theta_p = np.ones(places)
    for _ in range(_MOST_ROUNDS):
        expected_g = np.bincount(pair_r, shown_r * theta_p[place_r])
        share_r = clicks_g[pair_r] * shown_r / expected_g[pair_r]
        imaginary = _PRIOR_CLICKS * places / theta_p.sum()
        found_p = clicks_p / (np.bincount(place_r, share_r, places) + imaginary)
        found_p /= found_p.max()
        change = float(np.abs(found_p / theta_p - 1).max())
        theta_p = found_p
        if change < _TOLERANCE:
            break
    return theta_p
