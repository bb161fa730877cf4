"""The command line: arguments in, one call out."""

from spectrain.cli.main import main

__all__ = ["main"]
