"""The house keeps its order: imports point downwards, the core needs torch alone, files are small."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import spectrain

ROOT = Path(spectrain.__file__).parent

# From the ground up; a part imports from its own floor and from those below.
FLOORS = (
    {"errors", "papers"},
    {"settings", "abstract", "linalg", "sharding"},
    {"parametrizations", "initializers", "sampling", "scaling"},
    {"method", "moments", "surgery", "checks", "distributed", "layerwise", "attachment"}
    | {"correction", "groups", "optimizers"},
    {"methods"},
    {"memory"},
    {"__init__"},  # spectrain's public names
    {"integrations", "hyperbolic", "diagnostics", "pruning"},
    {"tasks"},
    {"runs"},
    {"cli"},
    {"__main__"},
)
CORE = set().union(*FLOORS[:7]) | {"diagnostics", "pruning"}  # what needs torch alone
FLOOR = {part: level for level, parts in enumerate(FLOORS) for part in parts}
FILES = sorted(ROOT.rglob("*.py"))


def part_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path):
    """Names of all modules that `path` imports at run time, wherever in the file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []  # for annotations only; visited before its children
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            submodules = {a.name for a in node.names} & {part_of(file) for file in FILES}
            if node.module == "spectrain" and submodules - set(spectrain.__all__):
                yield from (f"spectrain.{name}" for name in submodules)
            else:
                yield node.module or ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path):
    own = part_of(path)
    assert own in FLOOR, f"{own}: give it a floor in this test and in docs/architecture.md"
    for name in imports(path):
        root, _, rest = name.partition(".")
        if root == "spectrain" and own != "__init__":
            other = rest.split(".")[0] or "__init__"
            assert FLOOR[other] <= FLOOR[own], f"{own} imports {other}, which stands above it"
        elif root != "spectrain" and own in CORE:
            assert root == "torch" or root in sys.stdlib_module_names, f"{own} imports {root}"


def test_the_core_can_be_used_with_torch_alone():
    program = """
import sys

for name in ("transformers", "datasets", "tokenizers", "safetensors", "click", "rich", "matplotlib",
             "accelerate", "peft", "galore_torch", "geoopt", "pandas", "scipy", "huggingface_hub"):
    sys.modules[name] = None  # importing it raises ImportError
import torch, spectrain, spectrain.diagnostics, spectrain.pruning
model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
for method in (spectrain.SST(2), spectrain.GaLore(2), spectrain.ReLoRA(2), spectrain.FullRank()):
    spectrain.apply(model, method, report=None)
    optimizer = torch.optim.AdamW(spectrain.param_groups(model, 1e-3))
    spectrain.attach(model, optimizer)
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    spectrain.merge(model)
spectrain.diagnostics.measure_model(model)
print("fine")
"""
    run = [sys.executable, "-c", program]
    result = subprocess.run(run, capture_output=True, text=True, check=False)
    assert result.stdout == "fine\n", result.stderr


def test_importing_the_core_imports_no_training_stack():
    program = "import sys, spectrain; print(*sys.modules)"
    run = [sys.executable, "-c", program]
    loaded = subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()
    stack = {"transformers", "datasets", "tokenizers", "matplotlib", "click", "rich", "safetensors"}
    assert not stack & set(loaded)


@pytest.mark.parametrize("path", sorted((ROOT / "methods").glob("*.py")), ids=lambda p: p.name)
def test_a_method_fits_on_a_few_pages(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 210
