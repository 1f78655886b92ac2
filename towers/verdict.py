"""Whether the towers beat the baselines, in numbers and in a sentence."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from towers.metrics import EvaluationError

MUST_BEAT = ("random", "popularity", "bm25")
"""Towers that do not beat these are not worth serving."""

_CHANCE = 0.05

Row = Mapping[str, Any]


def verdict(evaluation: Sequence[Row], paired: Sequence[Row], metric: str) -> dict[str, Any]:
    """Judge the towers against every baseline, on all queries.

    The towers beat a baseline where their interval lies above the baseline's, without touching, and the
    paired test gives p < 0.05, so that a single query, whose interval has no width, decides nothing.

    Args:
        evaluation: Rows as in `evaluation.json`.
        paired: Rows as in `evaluation.json`, the towers as `a`.
        metric: The one that the sentence and `passed` are about.

    Returns:
        `metric`, `passed` (beat all of `MUST_BEAT`; a missing one is not beaten), `sentence`, and `beaten`
        and `not_beaten`: names of systems for each metric.

    Raises:
        EvaluationError: If a number is missing or not finite.
    """
    rows = {(row["metric"], row["system"]): row for row in evaluation if row["slice"] == "all"}
    chance = {(row["metric"], row["b"]): row["p"] for row in paired if row["slice"] == "all"}
    _refuse_not_finite(evaluation, paired)
    beaten: dict[str, list[str]] = {}
    not_beaten: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for name, _ in rows):
        beaten[name], not_beaten[name] = [], []
        for system in [system for other, system in rows if other == name and system != "towers"]:
            if (name, "towers") in rows:
                above = rows[name, "towers"]["low"] > rows[name, system]["high"]
                by_chance = chance[name, system] >= _CHANCE
                (beaten if above and not by_chance else not_beaten)[name].append(system)
    missing = [system for system in MUST_BEAT if (metric, system) not in rows]
    passed = set(MUST_BEAT) <= set(beaten.get(metric, []))
    return {
        "metric": metric,
        "passed": passed,
        "sentence": _sentence(rows, metric, beaten.get(metric, []), not_beaten.get(metric, []), missing),
        "beaten": beaten,
        "not_beaten": not_beaten,
    }


def _sentence(
    rows: Mapping[tuple[str, str], Row],
    metric: str,
    beaten: Sequence[str],
    not_beaten: Sequence[str],
    missing: Sequence[str],
) -> str:
    towers = rows.get((metric, "towers"))
    if towers is None:
        return f"The towers have no {metric}: nothing can be said of them."
    parts = []
    if not_beaten:
        others = ", ".join(f"{system} ({_number(rows[metric, system])})" for system in not_beaten)
        parts.append(f"The towers ({_number(towers)}) do not beat {others} on {metric}, n={towers['n']}.")
    if beaten:
        subject = "They" if not_beaten else f"The towers ({_number(towers)})"
        parts.append(f"{subject} beat {', '.join(beaten)} on {metric}, n={towers['n']}.")
    if missing:
        parts.append(f"Not compared with {', '.join(missing)}, which they must beat.")
    return " ".join(parts)


def _number(row: Row) -> str:
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def _refuse_not_finite(evaluation: Sequence[Row], paired: Sequence[Row]) -> None:
    for row in evaluation:
        if not all(math.isfinite(row[name]) for name in ("value", "low", "high")):
            raise EvaluationError(
                f"{row['metric']} of {row['system']} on slice {row['slice']} is not a finite number; "
                "nothing can be concluded from this evaluation"
            )
    for row in paired:
        if not all(math.isfinite(row[name]) for name in ("difference", "low", "high", "p")):
            raise EvaluationError(
                f"the paired test of {row['a']} and {row['b']} on {row['metric']}, slice {row['slice']}, is "
                "not a finite number; nothing can be concluded from this evaluation"
            )
