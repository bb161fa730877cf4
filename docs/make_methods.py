"""Write docs/methods.md from the registry: every method's card and every setting.

python docs/make_methods.py
"""

from __future__ import annotations

import dataclasses
from dataclasses import MISSING
from pathlib import Path

from spectrain.method import Card, Method, registered

PAGE = Path(__file__).with_name("methods.md")
AXES = ("parametrization", "initializer", "step_rule", "schedule")

OPENING = """\
# Methods

This page is written by `python docs/make_methods.py` from what the methods declare; a test compares
the two. `spectrain methods` prints the same records, `spectrain methods --bibtex` the papers. The
settings are fields of the classes in Python and `--method.NAME` on the command line. A rank may be at
most min(m, n) of every layer it is applied to; `apply` refuses a larger one.
"""


def render() -> str:
    """The whole page."""
    methods = registered()
    axes = [name.replace("_", " ") for name in AXES]
    overview = _table(
        ["method", *axes],
        [
            [f"[{cls.card.title}](#{_anchor(cls.card.title)})", *_places(cls.card)]
            for cls in methods.values()
        ],
    )
    return "\n".join([OPENING, overview, *(_section(cls) for cls in methods.values())])


def _section(cls: type[Method]) -> str:
    card = cls.card
    summary = card.summary[0].upper() + card.summary[1:]
    parts = [
        f"## {card.title}\n",
        f"{summary}. `spectrain.{cls.__name__}`, `--method {card.key}`.\n",
    ]
    if card.paper_schedule != "none":
        parts.append(f"Schedule in the paper: {card.paper_schedule}.\n")
    fields = dataclasses.fields(cls)
    if fields:
        parts.append(
            _table(["setting", "default", "symbol", "allowed", ""], [_row(f) for f in fields])
        )
    else:
        parts.append("It has no settings.\n")
    parts += [
        f"- {p.title} ({p.year}), [arXiv:{p.arxiv}](https://arxiv.org/abs/{p.arxiv})"
        for p in card.papers
    ]
    return "\n".join(parts) + ("\n" if card.papers else "")


def _places(card: Card) -> list[str]:
    return [getattr(card, axis) for axis in AXES]


def _row(f: dataclasses.Field[object]) -> list[str]:
    default = "needed" if f.default is MISSING else f"`{f.default!r}`"
    return [f"`{f.name}`", default, f.metadata["symbol"], _allowed(f), f.metadata["help"]]


def _allowed(f: dataclasses.Field[object]) -> str:
    low, high, above, choices = (
        f.metadata[key] for key in ("minimum", "maximum", "above", "choices")
    )
    if choices:
        allowed = ", ".join(f"`{choice!r}`" for choice in choices)
    elif low is not None:
        allowed = f"{low:g} or more" if high is None else f"{low:g} … {high:g}"
    elif above is not None:
        allowed = f"above {above:g}"
    else:
        allowed = "`True`, `False`"
    return f"{allowed}, `None`" if "None" in str(f.type) else allowed


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(c.replace('|', chr(92) + '|') for c in r)} |\n" for r in lines)


def _anchor(title: str) -> str:
    """The anchor that a Markdown heading gets on code hosts."""
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c in "-_")


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    print(f"wrote {PAGE.name}")
