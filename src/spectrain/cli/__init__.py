"""The command line: arguments in, one call out."""

import sys

try:
    from spectrain.cli.main import main
except ModuleNotFoundError as missing:  # installed without the extra
    if (missing.name or "").startswith("spectrain"):
        raise
    sys.exit(f"Error: {missing.name} is not installed; pip install 'spectrain[train]' brings it")

__all__ = ["main"]
