"""Every example runs by the commands in its first lines, and says what it should."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def commands(example):
    text = ast.get_docstring(ast.parse(example.read_text(encoding="utf-8")))
    return re.findall(r"^python (examples/.+)$", text, flags=re.MULTILINE)


def run(command):
    """What the command prints."""
    result = subprocess.run(
        [sys.executable, *shlex.split(command)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
    return result.stdout


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_an_example_begins_with_its_command(example):
    assert commands(example)
    assert all(command.startswith(f"examples/{example.name}") for command in commands(example))
    assert f"]({example.name})" in (ROOT / "examples" / "README.md").read_text(encoding="utf-8")


def test_bare_loop():
    (command,) = commands(ROOT / "examples" / "bare_loop.py")
    printed = run(command)
    losses = [float(loss) for loss in re.findall(r"mean squared error (\S+)", printed)]
    assert losses[-1] < 0.1 * losses[0]
    assert "merged: Linear, GELU, Linear, GELU, Linear again" in printed
    assert float(re.search(r"outputs: (\S+)", printed)[1]) < 1e-5


@pytest.mark.parametrize("command", commands(ROOT / "examples" / "vision_transformer.py"))
def test_vision_transformer(command):
    accuracies = [float(a) for a in re.findall(r"accuracy (\S+)%", run(command))]
    assert accuracies[-1] == accuracies[-2]  # merging changes nothing
    assert accuracies[-1] > 50  # chance: 12.5


def test_resume():
    (command,) = commands(ROOT / "examples" / "resume.py")
    assert "identical, bit for bit" in run(command)
