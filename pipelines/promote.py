"""Whether a new bundle takes the place of the one that is served; each answer has a reason."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from features.errors import ArtifactError
from pipelines.comparison import Evaluation, compare, evaluation_of_bundle, read_evaluation
from pipelines.config import PromoteConfig
from pipelines.workspace import Workspace
from serving.pruning import prune
from serving.store import Store, rolled_back

_CHANCE = 0.05
"""A difference whose paired test gives this p or more may be chance; as in `towers.verdict`."""


@dataclass(frozen=True)
class Decision:
    """What was decided about a bundle, and why.

    Attributes:
        promoted: Whether the bundle is the champion now.
        changed: Whether it became so by this decision.
        reason: One line with the numbers behind it.
    """

    bundle: str
    promoted: bool
    changed: bool
    reason: str

    def as_json(self) -> dict[str, Any]:
        """Return the fields as a JSON-serialisable dictionary."""
        return asdict(self)


def promote(store: Path, bundle_id: str, evaluation: Path, metric: str, config: PromoteConfig) -> Decision:
    """Make a bundle the champion if it earns it.

    It must beat the required baselines, it must not be worse than the present champion, and nobody may have
    rolled back from it. With `force` the answer is yes all the same, and the reason keeps the objections.
    With `keep`, older bundles go when it became the champion.

    Args:
        store: Folder that holds the bundles and the pointer.
        bundle_id: The challenger.
        evaluation: The challenger's evaluation artifact.
        metric: What decides, over all queries.
        config: How it decides.

    Raises:
        ArtifactError: If the challenger's results or the pointer cannot be read.
    """
    pointer = Store(store)
    champion = pointer.champion()
    if champion is not None and champion.bundle_id == bundle_id:
        return Decision(bundle_id, True, False, f"is the champion already ({champion.reason})")
    challenger = read_evaluation(evaluation, "challenger")
    objections = baseline_objections(challenger, metric, config.require_beats)
    if bundle_id in rolled_back(pointer.history()):
        objections.append("was the champion and was rolled back")
    against = "the store had no champion"
    if champion is not None:
        if _origin(pointer, champion.bundle_id) == bundle_id:
            objections.append(f"champion {champion.bundle_id} is an update of it")
        against, worse = champion_objection(store, champion.bundle_id, challenger, metric, config.tolerance)
        objections += worse
    row = challenger.value(metric)
    measured = f"{metric} {row['value']:.4f}" if row is not None else f"{metric} not measured"
    if objections and not config.force:
        return Decision(bundle_id, False, False, f"refused ({measured}): {'; '.join(objections)}")
    forced = f"; forced in spite of this: {'; '.join(objections)}" if objections else ""
    reason = f"{measured}; {against}{forced}"
    pointer.set_champion(bundle_id, reason)
    if config.keep is not None:
        prune(pointer, config.keep)
    return Decision(bundle_id, True, True, reason)


def _origin(store: Store, bundle_id: str) -> str | None:
    """Return the exported bundle that an updated one goes back to."""
    try:
        origin = store.bundle(bundle_id).content.get("update", {}).get("exported")
    except ArtifactError:
        return None
    return None if origin is None else str(origin)


def baseline_objections(challenger: Evaluation, metric: str, baselines: Sequence[str]) -> list[str]:
    """Return which baselines the towers do not beat: paired interval above zero, and not by chance."""
    if challenger.value(metric) is None:
        return [f"{metric} was not measured (there are: {', '.join(challenger.metrics)})"]
    objections = []
    for name in baselines:
        row = challenger.against(name, metric)
        if row is None:
            objections.append(f"baseline {name} was not measured; add it to evaluate.systems")
        elif row["low"] <= 0 or row["p"] >= _CHANCE:  # one query has an interval, but one without width
            objections.append(
                f"does not beat {name} (paired difference {row['difference']:+.4f} "
                f"[{row['low']:+.4f}, {row['high']:+.4f}], p {row['p']:.3f}, n {row['n']:,})"
            )
    return objections


def champion_objection(
    store: Path, champion_id: str, challenger: Evaluation, metric: str, tolerance: float
) -> tuple[str, list[str]]:
    """Hold a challenger against the champion.

    On the same test data the difference is paired: worse means an interval wholly below zero, or a mean
    that is lower by more than the tolerance. On other data worse means intervals that do not touch.

    Returns:
        The comparison in words, and the objections.
    """
    try:
        champion = read_evaluation(evaluation_of_bundle(Workspace(store), champion_id), "champion")
    except ArtifactError as error:
        return f"champion {champion_id} has no evaluation", [
            f"cannot be compared with champion {champion_id}: {error}"
        ]
    rows = compare(champion, challenger, [metric])
    if not rows:
        return "not comparable", [f"champion {champion_id} and challenger share no {metric}"]
    row = rows[0]
    kind = "paired" if row["p"] is not None else "on other test data, by intervals"
    text = (
        f"champion {champion_id} has {row['a']:.4f}, difference {row['difference']:+.4f} "
        f"[{row['low']:+.4f}, {row['high']:+.4f}] {kind} over {row['n']:,} queries"
    )
    worse = row["high"] < 0 or (row["p"] is not None and row["difference"] < -tolerance)
    return text, [f"is worse: {text}"] if worse else []
