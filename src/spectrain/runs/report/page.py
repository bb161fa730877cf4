"""The building blocks of a report's page, each from texts that are escaped here."""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

HOW = (  # shown where the script runs
    '<p class="how">Drag across a chart to zoom, or turn the wheel after a click on it (or with Ctrl); '
    "double-click, or press 0, for the first view. Arrow keys walk from value to value, with Shift they "
    "move the view; + and − zoom. Names in a legend hide and show lines.</p>\n"
)


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading of its own; `body` is HTML."""

    name: str  # its anchor
    title: str
    body: str


def whole_page(title: str, sections: Sequence[Section]) -> bytes:
    """The page; sections without a body are left out. Nothing but our own script may run in it."""
    style, script = (
        files("spectrain.runs.report").joinpath(name).read_text(encoding="utf-8")
        for name in ("report.css", "report.js")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    shown = [section for section in sections if section.body]
    contents = "".join(f'<li><a href="#{s.name}">{escape(s.title)}</a></li>' for s in shown)
    body = "\n".join(
        f'<section id="{s.name}">\n<h2>{escape(s.title)}</h2>\n{s.body}\n</section>' for s in shown
    )
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f"<header>\n<h1>{escape(title)}</h1>\n"
        f'<nav aria-label="Contents"><ul>{contents}</ul></nav>\n{HOW}</header>\n'
        f"<main>\n{body}\n</main>\n<footer><p>Written by spectrain.</p></footer>\n"
        f"<script>{script}</script>\n</body>\n</html>\n"
    )
    return page.encode(errors="replace")  # JSON may hold half a surrogate pair


def table(headings: Iterable[str], rows: Sequence[Sequence[str]], *, words: bool = False) -> str:
    """A table that scrolls within itself on a narrow screen, its first column staying in sight."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    head = f"<thead><tr>{head}</tr></thead>" if head else ""
    body = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    kind = ' class="words"' if words else ""
    return (
        f'<div class="scroll" tabindex="0"><table{kind}>{head}\n<tbody>{body}</tbody></table></div>'
    )


def key(columns: Mapping[str, str]) -> str:
    lines = (f"<p><b>{escape(name)}</b>: {escape(text)}</p>" for name, text in columns.items())
    swipe = '<p class="swipe">Swipe the table sideways for its other columns.</p>'
    return f'<div class="key">{swipe}{"".join(lines)}</div>'


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def bullets(sentences: Sequence[str]) -> str:
    if not sentences:
        return ""
    return "<ul>" + "\n".join(f"<li>{escape(text)}</li>" for text in sentences) + "</ul>"


def notes(footnotes: Sequence[str]) -> str:
    lines = (f"<p>[{number}] {escape(note)}</p>" for number, note in enumerate(footnotes, 1))
    return f'<div class="key">{"".join(lines)}</div>'


def photographs(pictures: Sequence[tuple[Path, str]]) -> str:
    """PNG files, each with its caption."""
    shown = []
    for path, text in pictures:
        data = base64.b64encode(path.read_bytes()).decode()
        caption = escape(text)
        shown.append(
            f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return grid(shown)


def grid(figures: Iterable[str], kind: str = "figures") -> str:
    """Figures side by side as far as they have room; nothing if all of them are empty."""
    inside = "\n".join(filter(None, figures))
    return f'<div class="{kind}">{inside}</div>' if inside else ""


def preformatted(command: Any) -> str:
    return f"<pre>{escape(str(command))}</pre>" if command else ""


def details(title: str, content: Any) -> str:
    """A section that opens on a tap; nothing if there is nothing in it."""
    if not isinstance(content, Mapping) or not content:
        return ""
    return folded(title, definitions(content))


def folded(title: str, inside: str, kind: str = "") -> str:
    """A section that opens on a tap; `inside` is HTML."""
    of_kind = f' class="{kind}"' if kind else ""
    return f"<details{of_kind}><summary>{escape(title)}</summary>{inside}</details>"


def definitions(content: Mapping[str, Any]) -> str:
    """Names and values as a two-column table; nested names joined by dots."""
    return table((), list(_flat(content)), words=True)


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            yield prefix + name, ", ".join(str(item) for item in value)
        else:
            yield prefix + name, "–" if value is None else str(value)
