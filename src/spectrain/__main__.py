"""`python -m spectrain` is the command `spectrain`."""

from spectrain.cli import main

main()
