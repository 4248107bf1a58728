"""The figure of `archfleet simulate search`: regret against GPU-hours, a panel for each truth, in a file of its own."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordinator.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette: told apart by people with any colour vision, and by line style in print.
_LOOKS = (("#0072b2", "-"), ("#d55e00", "--"), ("#999999", ":"), ("#009e73", "-."), ("#cc79a7", (0, (1, 1))))
_FLOOR = 1e-5
"""Regrets of a legal shape are often exactly 0, which a logarithmic axis cannot show: drawn at 0.001 %."""

_CEILING = 0.03
"""Three per cent: worse than a shape drawn at random."""


def require_matplotlib() -> None:
    """Ask before hours of simulation, not after them.

    Raises:
        UserError: it is not installed.
    """
    if find_spec("matplotlib") is None:
        raise UserError(
            "the figure needs matplotlib, which is not installed; expected the extra `figure`. "
            "Type: pip install 'archfleet[figure]', or leave --figure out"
        )


def write_search_figure(result: dict[str, Any], path: Path) -> None:
    """Draw `run_search_simulation`'s result to an SVG or PNG file, by the suffix of `path`.

    Raises:
        ValueError: another suffix.
        UserError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    if path.suffix not in (".svg", ".png"):
        raise ValueError(f"the figure is written as .svg or .png, not {path.name!r}; name the file accordingly")
    truths = [truth["name"] for truth in result["truths"]]
    with rc_context({"font.size": 9, "svg.hashsalt": "search", "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(3.6 * len(truths) + 0.6, 4.2), layout="constrained")
        panels = figure.subplots(1, len(truths), sharey=True, squeeze=False)[0]
        for axes, name in zip(panels, truths, strict=True):
            _draw_truth(axes, result, name)
        panels[0].set_ylim(80 * _FLOOR, 100 * _CEILING)
        panels[0].set_ylabel("regret of the recommended shape (% of the loss)")
        figure.suptitle(
            f"Simulated searches: median and quartiles of {result['num_seeds']} studies for each strategy "
            f"(regrets below {100 * _FLOOR:.3f} % drawn there)",
            fontsize=10,
        )
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=150)


def _draw_truth(axes: "Axes", result: dict[str, Any], name: str) -> None:
    rows = [row for row in result["results"] if row["truth"] == name]
    for row, (colour, style) in zip(rows, _LOOKS, strict=False):
        known = [i for i, value in enumerate(row["regret_median"]) if value is not None]
        hours = [row["gpu_seconds"][i] / 3600 for i in known]
        middle, low, high = (
            [_shown(row[f"regret_{which}"][i]) for i in known]
            for which in ("median", "first_quartile", "third_quartile")
        )
        axes.plot(hours, middle, color=colour, linestyle=style, label=row["strategy"], drawstyle="steps-post")
        axes.fill_between(hours, low, high, color=colour, alpha=0.12, linewidth=0, step="post")
    goal = result["results"][0]["goal"]
    axes.axhline(100 * goal["regret"], color="black", linewidth=0.7, linestyle=(0, (4, 3)))
    half = goal["cost_fraction"] * result["grid_gpu_seconds"] / 3600
    axes.axvline(half, color="black", linewidth=0.7, linestyle=(0, (4, 3)))
    axes.annotate("goal", (half, 100 * goal["regret"]), textcoords="offset points", xytext=(-24, -10), fontsize=8)
    axes.set(xscale="log", yscale="log", xlabel="GPU-hours spent (assumed FLOP/s)", title=f"truth: {name}")
    axes.grid(linewidth=0.4, alpha=0.5)


def _shown(value: float | None) -> float:
    # An open upper quartile (no recommendation yet) leaves through the top.
    return 100 * max(value, _FLOOR) if value is not None else 1000 * _CEILING
