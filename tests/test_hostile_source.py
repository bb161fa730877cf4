"""Nothing executes from data: not in the sources, and no file of a run is a pickle."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import hostile
import pytest
from tiny import run

import spectrain
from spectrain import SST
from spectrain.runs.report import write_report
from spectrain.runs.run_plots import plot_run

REPOSITORY = Path(__file__).parent.parent
SOURCES = Path(spectrain.__file__).parent
FILES = sorted(
    [
        *SOURCES.rglob("*.py"),
        *(REPOSITORY / "examples").rglob("*.py"),
        *(REPOSITORY / "benchmarks").rglob("*.py"),
    ]
)

MODULES = {
    *("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"),
    *("code", "codeop", "runpy", "imp", "pty"),
}
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {
    *("os.system", "os.popen", "os.startfile", "torch.hub.load", "torch.jit.load", "yaml.load"),
    *("yaml.unsafe_load", "yaml.full_load", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("pd.read_pickle", "pandas.read_pickle", "torch.serialization.add_safe_globals"),
    *("torch.distributed.checkpoint.FileSystemReader", "dcp.FileSystemReader"),
}


def constant(node):
    return node.value if isinstance(node, ast.Constant) else "computed"


def offences(source, own=True):
    """What stands in the source that could execute data: (line, what)."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        else:
            modules = []
        for module in modules:
            if module.split(".")[0] in MODULES:
                yield node.lineno, f"imports {module}"
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        keywords = {word.arg: constant(word.value) for word in node.keywords}
        if called in BUILTINS | CALLS:
            yield node.lineno, f"calls {called}"
        if called in ("torch.load", "load") and keywords.get("weights_only") is not True:
            yield node.lineno, f"calls {called} without weights_only=True"
        if called.startswith("subprocess.") and keywords.get("shell", False) is not False:
            yield node.lineno, f"calls {called} with a shell"
        if called in ("np.load", "numpy.load") and keywords.get("allow_pickle", False) is not False:
            yield node.lineno, f"calls {called} with pickles"
        if keywords.get("trust_remote_code", False) is not False:
            yield node.lineno, "trusts remote code"
        if keywords.get("use_safetensors", True) is not True:
            yield node.lineno, "loads weights that are no safetensors"
        # Left out, transformers asks on the terminal whether to run the code that a folder names.
        loads = called.startswith("Auto") and called.endswith((".from_pretrained", ".from_config"))
        if own and loads and "trust_remote_code" not in keywords:
            yield node.lineno, f"calls {called} without trust_remote_code=False"


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_nothing_executes_data(path):
    own = SOURCES in path.parents
    assert list(offences(path.read_text(encoding="utf-8"), own)) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from dill import load",
        "eval('1')",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=safe)",
        "subprocess.run('ls', shell=True)",
        "np.load(path, allow_pickle=True)",
        "AutoConfig.from_pretrained(folder)",
        "AutoModel.from_pretrained(folder, trust_remote_code=trust)",
        "os.system('ls')",
        "yaml.load(text)",
    ],
)
def test_what_would_is_found(source):
    assert list(offences(source))


def header(raw):
    """The header of a safetensors file, checked to the last byte."""
    length = int.from_bytes(raw[:8], "little")
    entries = json.loads(raw[8 : 8 + length])
    entries.pop("__metadata__", None)
    ends = [entry["data_offsets"][1] for entry in entries.values()]
    assert len(raw) == 8 + length + max(ends, default=0)
    return entries


def test_no_file_of_a_run_is_a_pickle(tmp_path):
    folder = tmp_path / "run"
    run(folder, SST(4, resample_every=3), checkpoint_every=6, steps=8)
    plot_run(folder)
    write_report(folder)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".json", ".jsonl", ".safetensors", ".html", ".png"}
    for path in files:
        raw = path.read_bytes()
        assert raw[:2] not in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), path
        assert b"PK\x03\x04" not in raw[:64], path  # torch.save, numpy.savez
        assert raw[:2] not in (b"\x1f\x8b", b"BZ"), path
        match path.suffix:
            case ".safetensors":
                assert header(raw)
            case ".json":
                json.loads(raw)
            case ".jsonl":
                assert all(json.loads(line) for line in raw.splitlines())
            case ".png":
                assert raw.startswith(b"\x89PNG")
            case ".html" | ".jinja" | "" | ".lock" | ".txt":
                raw.decode()
            case other:
                raise AssertionError(f"what is {path}, a file {other}?")


# --- how much is tried ----------------------------------------------------------------------------


def test_ten_thousand_cases_a_run():
    """Each number of CASES belongs to one test, which counts that it runs so many (`cases`)."""
    assert sum(hostile.CASES.values()) >= 10_000
    used = []
    for path in sorted(Path(__file__).parent.glob("test_hostile_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("cases", "hostile.cases"):
                used.append(node.args[0].value)
    assert sorted(used) == sorted(hostile.CASES)
