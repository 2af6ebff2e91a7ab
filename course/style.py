"""One look for every figure of the course: few lines, and colours that every kind of eye tells apart."""

BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#666666"   # Okabe & Ito 2008
LATENT, PIXEL = BLUE, RED                                       # wherever the two are compared
INK, FAINT = "#222222", "#999999"

BARE = {"axes.spines.top": False, "axes.spines.right": False}
CYCLE = f"cycler('color', {[BLUE, RED, GREEN, ORANGE, PURPLE, GREY]})"
PAGE = BARE | {"axes.prop_cycle": CYCLE, "font.family": "DejaVu Sans", "font.size": 10, "axes.edgecolor": FAINT,
               "text.color": INK}                               # a file of its own
CHAPTER = BARE | {"figure.dpi": 90, "figure.constrained_layout.use": True, "legend.frameon": False, "axes.grid": True,
                  "grid.alpha": 0.3}
