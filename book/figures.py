"""The look that all figures of the book share: readable in print, on a phone and colour-blind."""

import matplotlib.pyplot as plt
from cycler import cycler
from matplotlib_inline.backend_inline import set_matplotlib_formats

# Okabe and Ito's palette, which remains distinct for colour-blind eyes; black comes first.
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
# Line styles change with the colours, so that a grey print still tells curves apart.
_STYLES = cycler(
    color=[BLUE, VERMILION, GREEN, PURPLE, ORANGE, BLACK, SKY],
    linestyle=["-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1))],
)


def use_style() -> None:
    """Set matplotlib's defaults for a chapter; its figures become scalable vector graphics."""
    set_matplotlib_formats("svg")
    plt.rcParams.update(
        {
            "axes.grid": True,
            "axes.prop_cycle": _STYLES,
            "axes.spines.right": False,
            "axes.spines.top": False,
            "figure.constrained_layout.use": True,
            "figure.figsize": (6.4, 3.6),
            "font.size": 11,
            "grid.alpha": 0.3,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "svg.hashsalt": "wsr",  # the same figure gives the same file
        }
    )
