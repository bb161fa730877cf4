"""Real data sets that lie beside the checkout, where they do."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def shared_file(name: str) -> Path:
    """The path of shared/data/`name`, in the checkout or beside it; the test is skipped without."""
    for folder in (ROOT, ROOT.parent):
        if (path := folder / "shared" / "data" / name).exists():
            return path
    pytest.skip(f"no shared/data/{name} in or beside the checkout")
