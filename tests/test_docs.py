"""The documentation keeps up with the code: pages made from it, links, files named in the layout."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "spectrain"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "examples").glob("*.md"))


def test_the_page_of_methods_is_what_the_methods_declare():
    path = ROOT / "docs" / "make_methods.py"
    spec = importlib.util.spec_from_file_location("make_methods", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert module.render() == written, "run: python docs/make_methods.py"


def anchors(page):
    """The anchors of a page's headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_resolve(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name} links to {target}, which is not there"
        if anchor:
            assert anchor in anchors(file), f"{page.name} links to {target}: no such heading"


def layout():
    """The files that docs/architecture.md names in its layout."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    block = text.split("\n## Layout\n")[1].split("\n## ")[0]
    for line in re.findall(r"^    (src/.+)$", block, flags=re.MULTILINE):
        path, description = line.split(maxsplit=1)
        named = ROOT / path
        yield named
        folder = named if path.endswith("/") else named.parent
        yield from (folder / name for name in re.findall(r"\w+\.py\b", description))


def test_files_of_the_layout_exist():
    missing = [str(path.relative_to(ROOT)) for path in layout() if not path.exists()]
    assert not missing


def test_the_layout_names_every_part_of_the_core():
    named = {path.resolve() for path in layout()}
    parts = [p for p in SOURCE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()]
    for folder in ("parametrizations", "initializers", "methods"):
        parts += [p for p in (SOURCE / folder).glob("*.py") if p.name != "__init__.py"]
    known = named | {path.parent for path in named} | {SOURCE / "__main__.py"}
    unnamed = [str(p.relative_to(SOURCE)) for p in parts if p.resolve() not in known]
    assert not unnamed, "name them in the layout of docs/architecture.md"
