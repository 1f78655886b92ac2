"""The curve of an index: every setting that was measured, as a table, as JSON and as a plot.

Times differ from run to run, so a curve says why a setting was chosen and is no part of a bundle's identity.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from features.artifact import write_json
from serving.candidates import LeftOut

JSON_NAME, PLOT_NAME = "curve.json", "curve.png"

_MARKERS = "osD^vPX"


@dataclass(frozen=True)
class Setting:
    """One measured setting of one index.

    Attributes:
        factory: The faiss factory string.
        parameters: The search parameters.
        ann_recall: ANN recall@k on the tuning queries.
        queries_per_second: In batches of 32 on one thread, the quartile of the faster ones.
        p50_us: Microseconds of one query alone, the median, on one thread.
        megabytes: Size of the index file (10⁶ bytes).
        build_seconds: Training and adding, shared training included.
    """

    factory: str
    parameters: dict[str, int]
    ann_recall: float
    queries_per_second: float
    p50_us: float
    megabytes: float
    build_seconds: float


@dataclass(frozen=True)
class Curve:
    """What a choice was made from.

    Attributes:
        target: The ANN recall@k to reach.
        k: Depth of the recall.
        queries: How many queries it was measured on.
        settings: Everything measured, in the order of measuring.
        chosen: The place of the chosen setting in `settings`.
        left_out: What was not measured, and why.
    """

    target: float
    k: int
    queries: int
    settings: list[Setting]
    chosen: int
    left_out: list[LeftOut]

    @classmethod
    def from_json(cls, recorded: Mapping[str, Any]) -> Self:
        """Read what `as_json` returned."""
        settings = [Setting(**setting) for setting in recorded["settings"]]
        left_out = [LeftOut(**left) for left in recorded["left_out"]]
        return cls(**{**recorded, "settings": settings, "left_out": left_out})

    def as_json(self) -> dict[str, Any]:
        """Return the curve as JSON values, numbers rounded to what they are good for."""
        return {
            **asdict(self),
            "settings": [_rounded(setting) for setting in self.settings],
        }

    def best_of_each(self) -> list[tuple[Setting, bool]]:
        """Return each family's fastest setting with the target, else its best, and whether it is chosen."""
        chosen = self.settings[self.chosen]
        families: dict[str, list[Setting]] = {}
        for setting in self.settings:
            families.setdefault(setting.factory, []).append(setting)
        best = {factory: fastest(settings, self.target) for factory, settings in families.items()}
        return [(chosen, True) if name == chosen.factory else (best[name], False) for name in best]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return header and rows: the best setting of each family, the chosen one marked."""
        header = ["", "index", "search", f"ANN recall@{self.k}", "queries/s", "p50 µs", "MB", "build s"]
        rows = []
        for setting, chosen in self.best_of_each():
            rows.append(
                [
                    "→" if chosen else "",
                    setting.factory,
                    ", ".join(f"{name} {value}" for name, value in setting.parameters.items()) or "–",
                    f"{setting.ann_recall:.4f}" + ("" if setting.ann_recall >= self.target else " (below)"),
                    f"{setting.queries_per_second:,.0f}",
                    f"{setting.p50_us:,.0f}",
                    f"{setting.megabytes:,.1f}",
                    f"{setting.build_seconds:,.1f}",
                ]
            )
        return header, rows

    def write(self, directory: Path) -> None:
        """Write `curve.json` and `curve.png`."""
        write_json(directory / JSON_NAME, self.as_json())
        plot(self, directory / PLOT_NAME)


def fastest(settings: Sequence[Setting], target: float) -> Setting:
    """Return the fastest setting with the target, else the one of highest recall, the faster of equals."""
    met = [setting for setting in settings if setting.ann_recall >= target]
    if met:
        return max(met, key=lambda setting: setting.queries_per_second)
    return max(settings, key=lambda setting: (setting.ann_recall, setting.queries_per_second))


def frontier(settings: Sequence[Setting]) -> list[Setting]:
    """Return the settings that no other beats in both recall and speed, by rising recall."""
    kept: list[Setting] = []
    for setting in sorted(settings, key=lambda item: (-item.ann_recall, -item.queries_per_second)):
        if not kept or setting.queries_per_second > kept[-1].queries_per_second:
            kept.append(setting)
    return kept[::-1]


def plot(curve: Curve, target: Path) -> None:
    """Draw ANN recall over queries/s: a line through each family's best settings, the rest as faint dots."""
    from matplotlib.figure import Figure  # no pyplot: no display, no global state
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axis = figure.subplots()
    axis.axhline(curve.target, color="0.35", linestyle="--", linewidth=1, zorder=1)
    axis.annotate(
        f"target {curve.target:g}", (1, curve.target), xycoords=("axes fraction", "data"),
        xytext=(-4, 3), textcoords="offset points", ha="right", color="0.35", fontsize=8,
    )  # fmt: skip
    for number, factory in enumerate(dict.fromkeys(setting.factory for setting in curve.settings)):
        settings = [setting for setting in curve.settings if setting.factory == factory]
        colour, marker = f"C{number % 10}", _MARKERS[number % len(_MARKERS)]
        _scatter(axis, settings, colour, marker)
        best = frontier(settings)
        axis.plot(
            [setting.queries_per_second for setting in best], [setting.ann_recall for setting in best],
            color=colour, marker=marker, markersize=4.5, linewidth=1.6, label=factory,
        )  # fmt: skip
    chosen = curve.settings[curve.chosen]
    axis.plot(
        chosen.queries_per_second, chosen.ann_recall, marker="*", markersize=17, linestyle="none",
        color="gold", markeredgecolor="black", zorder=5, label="chosen",
    )  # fmt: skip
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    lowest = min(min(item.ann_recall for item in frontier(curve.settings)), curve.target)
    axis.set_ylim(max(0.0, lowest - 0.03, 2 * curve.target - 1.3), 1.008)
    axis.set_xlabel("queries/s, one thread, batches of 32 (log scale; right is faster)")
    axis.set_ylabel(f"ANN recall@{curve.k}")
    axis.set_title(f"{curve.queries:,} held-out queries", loc="left", fontsize=10)
    axis.grid(which="major", color="0.9")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="lower left", fontsize=8, frameon=False)
    figure.savefig(target, metadata={"Software": None})


def _scatter(axis: Any, settings: list[Setting], colour: str, marker: str) -> None:
    axis.scatter(
        [setting.queries_per_second for setting in settings],
        [setting.ann_recall for setting in settings],
        s=12, color=colour, marker=marker, alpha=0.25, linewidths=0,
    )  # fmt: skip


def _rounded(setting: Setting) -> dict[str, Any]:
    return {
        **asdict(setting),
        "ann_recall": round(setting.ann_recall, 6),
        "queries_per_second": round(setting.queries_per_second, 1),
        "p50_us": round(setting.p50_us, 1),
        "megabytes": round(setting.megabytes, 3),
        "build_seconds": round(setting.build_seconds, 3),
    }
