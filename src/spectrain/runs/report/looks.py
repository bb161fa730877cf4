"""How series are told apart: a colour, a dash pattern and a mark for each, so that no colour is needed."""

# Colours are classes c0 to c8 of report.css: those of Okabe and Ito, and two of Tol's.
COLOURS = 9
DASHES = (
    *("", "7 3", "9 3 2 3", "2 2.5", "9 2 2 2 2 2"),
    *("13 3", "2 5", "13 3 2 3", "4 4", "16 5"),
)
# Marks around the point where the pen stands, as relative commands of an SVG path.
GLYPHS = (
    "m-3.6,0a3.6,3.6 0 1,0 7.2,0a3.6,3.6 0 1,0-7.2,0z",  # circle
    "m-3.4-3.4h6.8v6.8h-6.8z",  # square
    "m0-4.5l4.2,7.4h-8.4z",  # triangle
    "m0-4.8l4.2,4.8-4.2,4.8-4.2-4.8z",  # diamond
    "m0,4.5l4.2-7.4h-8.4z",  # triangle on its tip
    "m-1.3-4.3h2.6v3h3v2.6h-3v3h-2.6v-3h-3v-2.6h3z",  # plus
    "m-4.1-2.7l1.4-1.4 2.7,2.7 2.7-2.7 1.4,1.4-2.7,2.7 2.7,2.7-1.4,1.4-2.7-2.7-2.7,2.7-1.4-1.4 2.7-2.7z",
    "m-4.5,0l7.4-4.2v8.4z",  # triangle to the left
    "m4.5,0l-7.4-4.2v8.4z",  # triangle to the right
    "m-3.8-4h7.6l-7.6,8h7.6z",  # hourglass
)


def colour(look: int) -> str:
    """The class of a series; 9 colours with 10 dashes and marks are 90 looks."""
    return f"c{look % COLOURS}"


def dash(look: int) -> str:
    """The dash pattern of a series as an attribute; none for a solid line."""
    pattern = DASHES[look % len(DASHES)]
    return f' stroke-dasharray="{pattern}"' if pattern else ""


def glyph(look: int) -> str:
    """The mark of a series."""
    return GLYPHS[look % len(GLYPHS)]


def key(look: int, *, dots: bool, ghost: bool) -> str:
    """A small picture for legends: of marks without a line, of a thin line without marks, or of both."""
    line = "" if dots else f'<path class="line" d="M1,7H33"{dash(look)}/>'
    parts = f'{line}<path class="marks" d="M17,7{glyph(look)}"/>'
    if ghost:
        parts = '<path class="ghost" d="M1,7H33"/>'
    return f'<svg class="{colour(look)}" width="34" height="14" aria-hidden="true">{parts}</svg>'
