"""The look of the book's figures: readable on light and dark pages, and without colour."""

import itertools
from collections.abc import Iterator

import matplotlib.pyplot as plt
import pandas as pd

INK = "#6e6e6e"  # text and axes: contrast 5 to 1 on white, 3.7 to 1 on a dark notebook; the dark page brightens it
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#999933")  # Okabe and Ito's, told apart by colour-blind readers
MARKERS = ("o", "s", "^", "D", "v")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
HATCHES = ("", "//", "..", "xx", "\\\\")


def use_style() -> None:
    """Set matplotlib's defaults for the book: transparent figures, ink of middle grey, no frame on legends."""
    plt.rcParams.update(
        {
            "figure.figsize": (7.0, 3.4),
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "figure.facecolor": "none",
            "axes.facecolor": "none",
            "savefig.facecolor": "none",
            "legend.facecolor": "none",
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "font.size": 11,
            "lines.linewidth": 2,
            "image.cmap": "gray",
            **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor"), INK),
            **dict.fromkeys(("xtick.color", "ytick.color"), INK),
        }
    )


def line_styles() -> Iterator[dict]:
    """Yield colour, marker and dash pattern for one curve after the other; any one of the three tells them apart."""
    for color, marker, dashes in itertools.cycle(zip(COLORS, MARKERS, DASHES, strict=True)):
        yield {"color": color, "marker": marker, "linestyle": dashes}


def draw_bands(ax, runs: pd.DataFrame, x: str, y: str, label: str, style: dict) -> pd.DataFrame:
    """Draw the mean of the bases' means as a line, and from the lowest to the highest base as a band.

    Args:
        ax: of matplotlib.
        runs: with the columns `x`, `y` and "base"; seeds of a base are averaged first.
        x, y: names of columns.
        label: of the line.
        style: one of `line_styles`.

    Returns:
        What was drawn: mean, lowest and highest, by x.
    """
    bases = runs.groupby([x, "base"])[y].mean().groupby(x)
    band = pd.DataFrame({"mean": bases.mean(), "lowest": bases.min(), "highest": bases.max()})
    ax.plot(band.index, band["mean"], label=label, **style)
    ax.fill_between(band.index, band["lowest"], band["highest"], color=style["color"], alpha=0.2, linewidth=0)
    return band
