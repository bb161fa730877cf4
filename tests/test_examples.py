"""Every example runs by the commands in its first lines, and says what it should."""

from __future__ import annotations

import ast
import io
import os
import re
import shlex
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def commands(example):
    text = ast.get_docstring(ast.parse(example.read_text(encoding="utf-8")))
    return re.findall(r"^python ((?:-m .+ )?examples/.+)$", text, flags=re.MULTILINE)


def run(command, warnings=False):
    """What the command prints; without warnings, unless they are another library's."""
    result = subprocess.run(
        [sys.executable, *shlex.split(command)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert warnings or "Warning" not in result.stderr
    return result.stdout


def lines_of_ours(example):
    """The lines of code, not of comment or docstring, that mention spectrain."""
    tokens = tokenize.generate_tokens(io.StringIO(example.read_text(encoding="utf-8")).readline)
    return {
        token.start[0]
        for token in tokens
        if token.type == tokenize.NAME and "spectrain" in token.string.lower()
    }


OTHER_LOOPS = (
    *("bare_loop", "transformers_trainer", "lightning_module", "accelerate_loop"),
    "muon_and_adamw",
)


@pytest.mark.parametrize("name", OTHER_LOOPS)
def test_other_peoples_loops_need_at_most_five_lines_of_ours(name):
    assert 3 <= len(lines_of_ours(ROOT / "examples" / f"{name}.py")) <= 5


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_an_example_begins_with_its_command(example):
    assert commands(example)
    assert all(f"examples/{example.name}" in command for command in commands(example))
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


def test_adapters():
    (command,) = commands(ROOT / "examples" / "adapters.py")
    assert "alone again, bit for bit: True" in run(command)


@pytest.mark.slow
def test_muon_and_adamw():
    (command,) = commands(ROOT / "examples" / "muon_and_adamw.py")
    losses = [float(loss) for loss in re.findall(r"mean squared error (\S+)", run(command))]
    assert losses[-1] < 0.1 * losses[0]


def test_hyperbolic_graph():
    (command,) = commands(ROOT / "examples" / "hyperbolic_graph.py")
    printed = run(command)
    right = [int(share) for share in re.findall(r"(\d+)% of the unknown", printed)]
    assert right[-1] > 50  # chance: 25
    assert float(re.search(r"hyperboloid to (\S+)", printed)[1]) < 1e-5


def test_transformers_trainer():
    pytest.importorskip("accelerate")
    (command,) = commands(ROOT / "examples" / "transformers_trainer.py")
    printed = run(command)
    losses = [float(loss) for loss in re.findall(r"'loss': '(\S+)'", printed)]
    assert losses[3] < 0.8 * losses[0]
    assert losses[4:] == losses[2:4]  # resumed
    assert "resumed run: identical, bit for bit" in printed
    assert re.search(r"checkpoint-60 is refused: .*load the folder merged", printed)
    assert float(re.search(r"difference of logits: (\S+)", printed)[1]) < 1e-4


def test_accelerate_loop():
    pytest.importorskip("accelerate")
    (command,) = commands(ROOT / "examples" / "accelerate_loop.py")
    printed = run(command)
    losses = [float(loss) for loss in re.findall(r"mean squared error (\S+)", printed)]
    assert losses[5] < 0.7 * losses[0]
    assert "identical, bit for bit" in printed


@pytest.mark.slow
def test_lightning_module():
    pytest.importorskip("pytorch_lightning")
    (command,) = commands(ROOT / "examples" / "lightning_module.py")
    printed = run(command)
    losses = [float(loss) for loss in re.findall(r" (0\.\d{4})", printed)]
    assert losses[5] < 0.7 * losses[0]
    assert losses[6:] == losses[3:6]
    assert "identical, bit for bit" in printed
    assert "merged: Linear, GELU, Linear, GELU, Linear again" in printed


@pytest.mark.slow
def test_the_sharded_example_goes_on_with_another_number_of_processes(tmp_path):
    lines = []
    for processes in (2, 1):
        (command,) = commands(ROOT / "examples" / "fully_shard.py")
        command = command.replace("--nproc-per-node 2", f"--nproc-per-node {processes}")
        said = run(f"{command} {tmp_path}", warnings=True)
        lines.append([line for line in said.splitlines() if line.startswith("steps")])
    (first, second), (again,) = lines
    assert first.startswith("steps 0 to 30, 2 processes")
    assert second.partition(": ")[2] == again.partition(": ")[2]
    files = {path.suffix for path in (tmp_path / "sharded-checkpoint").iterdir()}
    assert files == {".json", ".safetensors"}
