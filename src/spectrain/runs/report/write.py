"""Reports as files."""

from pathlib import Path

from spectrain.errors import UsageError
from spectrain.runs.compare import load_comparison
from spectrain.runs.files import write_atomic
from spectrain.runs.records import read_config
from spectrain.runs.report.comparison import sections_of_comparison
from spectrain.runs.report.page import whole_page
from spectrain.runs.report.run import sections_of_run
from spectrain.runs.report.several import sections_of_several

SEVERAL = "spectrain-report.html"  # of several directories, in the current folder


def write_report(*directories: Path, out: Path | None = None) -> Path:
    """Write the report of a run or comparison, finished or not, or one of several laid over each other.

    out: the file; default: report.html in a single directory, `SEVERAL` in the current folder for
    several. Returns its path. Raises UsageError if a directory holds neither a run nor a comparison,
    is given twice, or if several are not judged by the same scores; RunError if files are damaged or
    the report cannot be written.
    """
    configs = [read_config(d) if d.is_dir() else None for d in directories]
    for directory, config in zip(directories, configs, strict=True):
        if config is None:
            raise UsageError(f"{directory} holds no run and no comparison: it has no config.json")
    if len({directory.resolve() for directory in directories}) < len(directories):
        raise UsageError("the same directory is given twice: name each run once")
    if len(directories) > 1:
        title, sections = sections_of_several(directories)
    elif (configs[0] or {}).get("kind") == "comparison":
        title, sections = sections_of_comparison(load_comparison(directories[0]))
    else:
        title, sections = sections_of_run(directories[0])
    path = out or (directories[0] / "report.html" if len(directories) == 1 else Path(SEVERAL))
    write_atomic(path, whole_page(title, sections))
    return path
