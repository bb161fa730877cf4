"""What a task shows of the trained model: pictures, and a table of samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spectrain.errors import RunError
from spectrain.runs.records import SAMPLES, read_record
from spectrain.runs.report.page import Section, folded, paragraph, photographs, table

PNG = b"\x89PNG\r\n\x1a\n"  # how such files begin


@dataclass(frozen=True)
class Exhibit:
    """A picture in a run directory, which the task drew of the trained model."""

    file: str
    caption: str  # in the report of a run
    heading: str  # of its section
    lead: str  # the sentence that begins this section where there are several
    of_each: str  # what its pictures show then, behind the name of a run


EXHIBITS = (
    Exhibit(
        "embedding.png",
        "The nodes as the network places them, in two dimensions: hyperbolic ones in the "
        "Poincaré disk, around their centroid, others by their two leading directions.",
        "Embeddings",
        "The embedding of the nodes at the end, projected to two dimensions.",
        "where it puts the nodes.",
    ),
    Exhibit(
        "mistakes.png",
        "Test images that the network takes for something else, those first about which it is most "
        "confident; with the class that each is of, and the probability of the one it is taken for.",
        "Mistakes",
        "Test images that are taken for something else, the most confident mistakes first.",
        "its most confident mistakes.",
    ),
)

Shown = tuple[str, Path]  # the name of a run, and its directory


def exhibits(runs: Sequence[Shown]) -> list[Section]:
    """Sections for the pictures and samples that the tasks of `runs` left.

    Raises RunError if one of their files is damaged.
    """
    sections = [_pictures(exhibit, runs) for exhibit in EXHIBITS]
    tables = [(name, text) for name, directory in runs if (text := _samples(directory))]
    if len(runs) == 1:
        samples = "".join(text for _, text in tables)
    else:
        samples = "".join(folded(name, text) for name, text in tables)
    return [*sections, Section("samples", "Samples", samples)]


def _pictures(exhibit: Exhibit, runs: Sequence[Shown]) -> Section:
    alone = len(runs) == 1
    pictures = [
        (path, exhibit.caption if alone else f"{name}: {exhibit.of_each}")
        for name, directory in runs
        if (path := _drawn(exhibit, directory)) is not None
    ]
    lead = "" if alone or not pictures else paragraph(exhibit.lead)
    return Section(exhibit.heading.lower(), exhibit.heading, lead + photographs(pictures))


def _drawn(exhibit: Exhibit, directory: Path) -> Path | None:
    """The exhibit's picture in a run directory, if the task drew one."""
    path = directory / exhibit.file
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            known = file.read(len(PNG)) == PNG
    except OSError as error:
        raise RunError(f"could not read {path}: {error.strerror or error}") from error
    if not known:
        raise RunError(f"{path} is damaged (it is no PNG file): delete or restore it")
    return path


def _samples(directory: Path) -> str:
    """The table of what the task of a run showed, if it showed anything."""
    found = read_record(directory / "samples.json", SAMPLES)
    return table(found["columns"], found["rows"], words=True) if found else ""
