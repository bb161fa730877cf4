"""The building blocks of a report's page, each from texts that are escaped here."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

STYLE = """
:root { color-scheme: light dark; --text: #1c1e21; --soft: #5b6168; --page: #fff; --line: #d9dce0;
  --shade: #f4f5f7; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e8ea; --soft: #a3a9b0; --page: #16181b;
  --line: #3a3f45; --shade: #202327; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1rem; color: var(--text); background: var(--page);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.2; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p, li, dd { max-width: 48rem; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .35rem .7rem; text-align: right; border-bottom: 1px solid var(--line); }
td { white-space: nowrap; } th { overflow-wrap: normal; vertical-align: bottom; }
tr:last-child > td { border-bottom: 0; } thead th { background: var(--shade); font-weight: 600; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: var(--page); }
thead th:first-child { background: var(--shade); }
.words td, .words th { text-align: left; white-space: normal; overflow-wrap: normal; }
.words td { min-width: 9rem; vertical-align: top; } .words td:first-child { width: 25%; }
.key, figcaption, footer { color: var(--soft); font-size: .88rem; }
.key p { margin: .15rem 0; }
@media (max-width: 40rem) { table { font-size: .85rem; } th, td { padding: .3rem .4rem; }
  ul { padding-left: 1.2rem; } .words td { min-width: 6rem; } }
.swipe { display: none; } @media (max-width: 40rem) { .swipe { display: block; } }
.figures { display: grid; gap: 1.2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr)); }
figure { margin: 0; } img { width: 100%; height: auto; border-radius: 6px; background: #fff; }
pre { white-space: pre-wrap; background: var(--shade); padding: .7rem; border-radius: 6px; }
summary { cursor: pointer; font-weight: 600; margin: .6rem 0; }
"""


def whole_page(title: str, body: str) -> bytes:
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{body}\n"
        "<footer><p>Written by spectrain.</p></footer>\n</body>\n</html>\n"
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


def bullets(sentences: Sequence[str]) -> str:
    return "<ul>" + "\n".join(f"<li>{escape(text)}</li>" for text in sentences) + "</ul>"


def notes(footnotes: Sequence[str]) -> str:
    lines = (f"<p>[{number}] {escape(note)}</p>" for number, note in enumerate(footnotes, 1))
    return f'<div class="key">{"".join(lines)}</div>'


def figures(pictures: Sequence[tuple[Path, str]]) -> str:
    """PNG files, each with its caption."""
    if not pictures:
        return "<p>Nothing recorded yet.</p>"
    shown = []
    for path, text in pictures:
        data = base64.b64encode(path.read_bytes()).decode()
        caption = escape(text)
        shown.append(
            f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return f'<div class="figures">{"".join(shown)}</div>'


def preformatted(command: Any) -> str:
    return f"<pre>{escape(str(command))}</pre>" if command else ""


def details(title: str, content: Any) -> str:
    """A section that opens on a tap; nothing if there is nothing in it."""
    if not isinstance(content, Mapping) or not content:
        return ""
    return folded(title, definitions(content))


def folded(title: str, inside: str) -> str:
    """A section that opens on a tap; `inside` is HTML."""
    return f"<details><summary>{escape(title)}</summary>{inside}</details>"


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
