"""Plots of a study, as PNG files."""

from pathlib import Path
from typing import Any

_PANELS = (
    ("loss", "training loss"),
    ("gap", "positive − hardest negative"),
    ("relative_spread", "spread · √D"),
)


def plot_curves(runs: list[dict[str, Any]], target: Path) -> None:
    """Draw loss, gap and spread of every training over the pairs seen; one colour an arm, a line a seed."""
    figure, axes = _figure(len(_PANELS))
    names = list(dict.fromkeys(run["arm"] for run in runs))
    for axis, (field, label) in zip(axes, _PANELS, strict=True):
        for run in runs:
            number = names.index(run["arm"])
            axis.plot(
                [point["pairs"] for point in run["curve"]],
                [point[field] for point in run["curve"]],
                color=f"C{number % 10}",
                linestyle="-" if number < 10 else "--",
                linewidth=0.9,
                label=run["arm"] if run["seed"] == runs[0]["seed"] else None,
            )
        axis.set(xlabel="pairs", ylabel=label)
    axes[0].set_yscale("log")
    axes[2].set_yscale("log")
    axes[1].legend(fontsize=6, loc="lower center", bbox_to_anchor=(0.5, 1.02), ncols=2)
    _write(figure, target)


def plot_quality(arms: list[dict[str, Any]], metric: str, target: Path) -> None:
    """Draw the mean of a metric for every arm with its interval; collapsed arms are hatched."""
    figure, (axis,) = _figure(1)
    for place, arm in enumerate(reversed(arms)):
        value = arm[metric]
        reach = [[value["mean"] - value["low"]], [value["high"] - value["mean"]]]
        hatch = "//" if arm["collapsed"] else None
        axis.barh(place, value["mean"], xerr=reach, color="lightsteelblue", hatch=hatch, capsize=3)
    axis.set_yticks(range(len(arms)), [arm["arm"] for arm in reversed(arms)], fontsize=7)
    axis.set(xlabel=f"{metric}, mean and 95% interval over seeds; hatched: a seed collapsed")
    axis.set_xlim(left=0)
    _write(figure, target)


def _figure(panels: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # no pyplot: no display, no global state

    figure = Figure(figsize=(5.2 * panels + 2, 4.6), dpi=130, layout="constrained")
    return figure, figure.subplots(1, panels, squeeze=False)[0]


def _write(figure: Any, target: Path) -> None:
    figure.savefig(target, metadata={"Software": None})
