"""report.html: runs and comparisons as one file that needs no network and no server."""

from spectrain.runs.report.write import write_report

__all__ = ["write_report"]
