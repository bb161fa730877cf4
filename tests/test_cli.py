"""The commands as people type them: help, refusals in one sentence, exit codes, a whole comparison."""

from __future__ import annotations

import csv
import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import LLAMA, prose

from spectrain import __version__
from spectrain.cli import commands
from spectrain.cli.lm import compare_lm
from spectrain.cli.main import main
from spectrain.method import methods, registered
from spectrain.runs.files import read_json
from spectrain.runs.metrics import MetricsLog

TINY = (
    *("--vocab-size", "300", "--sequence-length", "16", "--batch-size", "4", "--device", "cpu"),
    *(part for item in LLAMA.items() for part in ("--model-config", "=".join(item))),
    *("--steps", "6", "--log-every", "3", "--eval-every", "0", "--final-tokens", "512"),
)
COMPARE = ("compare", "lm", *TINY, "--rank", "4", "--sst.resample-every", "3")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("SPECTRAIN_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prose.txt").write_text(prose(), encoding="utf-8")


@pytest.fixture
def command(capsys):
    """Runs `spectrain …` in this process; (exit code, output, errors)."""

    def call(*arguments):
        capsys.readouterr()
        code = 0
        try:
            main([str(a) for a in arguments])
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return call


def refused(result, said, code=2):
    """One sentence (below click's two lines of usage, where it is click that refuses)."""
    assert result[0] == code, result
    lines = [line for line in result[2].splitlines() if line]
    if lines[0].startswith("Usage: "):
        lines = lines[2:]
    assert len(lines) == 1, result[2]
    assert lines[0].startswith("Error: ")
    assert re.search(said, lines[0]), lines[0]


# --- help and listings ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["train"],
        ["train", "lm"],
        ["compare"],
        ["compare", "lm"],
        ["merge"],
        ["report"],
        ["methods"],
        ["demo"],
    ],
)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_explains_itself_within_the_terminal(command, words, flag):
    code, out, err = command(*words, flag)
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: spectrain {' '.join(words)}".rstrip())
    assert max(map(len, out.splitlines())) <= 100
    assert "None" not in out
    assert "dataclasses" not in out


@pytest.mark.parametrize("words", [("train", "lm"), ("compare", "lm")])
def test_help_lists_every_setting_of_every_method(command, words):
    _, out, _ = command(*words, "--help")
    for key, cls in registered().items():
        heading = f"With --method {key}:" if words[0] == "train" else f"{cls.card.title} only:"
        section = out.split(f"\n{heading}")[-1].split("\n\n")[0]
        prefix = "method" if words[0] == "train" else key
        for field in dataclasses.fields(cls):
            assert f"--{prefix}.{field.name.replace('_', '-')}" in section
            if isinstance(field.default, int | float) and not isinstance(field.default, bool):
                assert f"[default: {field.default}]" in " ".join(section.split())


def test_version_and_methods_are_listed(command):
    assert command("--version")[1] == f"spectrain, version {__version__}\n"
    _, out, _ = command("methods")
    for card in methods():
        assert f"{card.key}  {card.title}: {card.summary}" in out
        assert all(paper.title in out for paper in card.papers)


def test_papers_come_as_bibtex(command):
    _, out, _ = command("methods", "--bibtex")
    entries = re.findall(r"^@(\w+)\{(\w+),\n(.*?)\n\}$", out, re.MULTILINE | re.DOTALL)
    assert len(entries) == len({paper.key for card in methods() for paper in card.papers})
    for kind, key, body in entries:
        fields = dict(re.findall(r"^  (\w+) = \{(.*)\},?$", body, re.MULTILINE))
        assert kind in ("misc", "article", "inproceedings")
        assert {"title", "author", "year"} <= fields.keys(), key
        assert body.count("{") == body.count("}")
        assert fields["year"].isdigit()
    assert re.sub(r"^@\w+\{.*?^\}$", "", out, flags=re.MULTILINE | re.DOTALL).strip() == ""


def test_it_runs_as_a_module_and_help_needs_no_training_stack():
    program = (
        "import sys; sys.argv = ['spectrain', '--help']\n"
        "import atexit; atexit.register(lambda: print(*sys.modules))\n"
        "import runpy; runpy.run_module('spectrain', run_name='__main__')"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("Usage: spectrain")
    loaded = set(result.stdout.splitlines()[-1].split())
    assert not loaded & {"transformers", "datasets", "tokenizers", "matplotlib", "pandas"}


# --- refusals ------------------------------------------------------------------------------------

LM = ("train", "lm", *TINY, "--data", "prose.txt", "--out", "run")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "lm"], r"Missing option '--out'"),
        (["trian"], r"No such command 'trian'.*train"),
        ([*LM, "--stps", "3"], r"No such option '--stps'.*--steps"),
        ([*LM, "--method.rnk", "3"], r"No such option '--method.rnk'.*--method.rank"),
        ([*LM, "--steps", "many"], r"'many' is not a valid integer"),
        (
            [*LM, "--method", "full", "--steps", "0"],
            r"steps is 0; it must be a whole number, 1 or more",
        ),
        ([*LM, "--method", "stt"], r"no method called 'stt'; did you mean 'sst'\?"),
        ([*LM, "--method", "qqq"], r"no method called 'qqq' \(known: apollo, apollo-mini"),
        ([*LM, "--method", "sst"], r"--method sst needs a value for --method.rank"),
        (
            [*LM, "--method", "full", "--method.rank", "3"],
            r"Full rank has no setting called 'rank'",
        ),
        ([*LM, "--method.rank", "0"], r"SST: rank is 0; it must be a whole number, 1 or more"),
        ([*LM, "--method.rank", "33"], r"rank is 33, but .*q_proj is 32 × 32; choose 1 … 32"),
        (
            [*LM, "--method.rank", "4", "--method.sampling", "best"],
            r"sampling is 'best'; allowed are mixture",
        ),
        (
            [*LM, "--method.rank", "4", "--targets", "q_prj"],
            r"no layer matches targets='q_prj'; did you mean .*q_proj",
        ),
        ([*LM, "--method.rank", "4", "--targets", "("], r"is no regular expression"),
        ([*LM, "--method", "full", "--data", "prse.txt"], r"no file or folder 'prse.txt': did you"),
        ([*LM, "--method", "full", "--data", "empty.txt"], r"empty.txt holds no text"),
        ([*LM, "--method", "full", "--data", "data.bin"], r"data.bin is not UTF-8 text"),
        ([*LM, "--method", "full", "--data", "short.txt"], r"short.txt is too short"),
        ([*LM, "--method", "full", "--batch-size", "9999"], r"one batch of 9999 sequences"),
        ([*LM, "--method", "full", "--model", "llama-9n"], r"did you mean llama-9m"),
        ([*LM, "--method", "full", "--model-config", "x"], r"give KEY=VALUE"),
        ([*LM, "--method", "full", "--model-config", "hidden_sise=8"], r"hidden_size"),
        ([*LM, "--method", "full", "--optimizer", "adamm"], r"did you mean Adam\?"),
        ([*LM, "--method", "full", "--device", "abacus"], r"--device abacus cannot be used here"),
        (
            [*LM, "--method", "full", "--config", "bad.toml"],
            r"no option 'stepz'. Did you mean steps",
        ),
        ([*LM, "--method", "full", "--out", "prose.txt/run"], r"prose.txt is no folder"),
        ([*LM, "--method", "full", "--out", "."], r"is not empty and has no config.json"),
        (["merge", "prose.txt", "--out", "x"], r"prose.txt is no run of spectrain"),
        (["merge", "nowhere", "--out", "x"], r"nowhere is no run of spectrain"),
        (["merge", "nowhere"], r"give --out DIR for an ordinary model or --peft DIR"),
        (["report"], r"Missing argument 'RUN\.\.\.'"),
        (["report", "nowhere"], r"nowhere holds no run and no comparison: it has no config.json"),
        (["report", "prose.txt"], r"prose.txt holds no run and no comparison"),
        (["report", "x", "--out", "none/x.html"], r"--out none/x.html: give a file in a folder"),
        (["report", "x", "--out", "prose.txt"], r"--out prose.txt: give a file that ends in .html"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(command, arguments, said):
    Path("empty.txt").write_text("")
    Path("short.txt").write_text("hello\n")
    Path("data.bin").write_bytes(bytes(range(256)))
    Path("bad.toml").write_text("stepz = 3")
    refused(command(*arguments), said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--methods", "sst,loar"], r"no method called 'loar'; did you mean 'lora'\?"),
        (["--methods", ","], r"a comparison needs distinct methods, got none"),
        (["--methods", "full,sst", "--rank", "33"], r"SST: rank is 33, but"),
        (["--methods", "full,sst", "--rank", "0"], r"SST: rank is 0"),
        (["--methods", "full", "--sweep-lr", "1e-3,x"], r"--sweep-lr '1e-3,x': give numbers"),
        (["--methods", "full,sst", "--sst.sweep-lr", "1e-3,"], r"equally many learning rates"),
        (["--methods", "full", "--sweep-lr", "1e-3,1e-3"], r"distinct positive numbers"),
        (["--methods", "full", "--sweep-lr", ","], r"distinct positive numbers"),
        (["--methods", "full", "--optimizer", "adamm"], r"did you mean Adam\?"),
        (["--methods", "full", "--seeds", "-1"], r"-1 is not in the range"),
        (["--methods", "full", "--out", "prose.txt"], r"prose.txt is no folder"),
        (["--methods", "full", "--out", "."], r"is not empty and has no config.json"),
    ],
)
def test_an_impossible_comparison_is_refused_before_any_trial(command, arguments, said):
    refused(command(*COMPARE, "--data", "prose.txt", "--out", "cmp", *arguments), said)
    assert not list(Path("cmp", "trials").glob("*"))
    assert not Path("trials").exists()


def test_a_run_that_diverges_exits_with_1_and_again_says_so(command):
    arguments = [*LM, "--method", "full", "--lr", "1e9", "--schedule", "constant"]
    refused(command(*arguments), r"training diverged: loss .* A lower --lr is the usual cure", 1)
    refused(command(*arguments), r"the run in run diverged earlier \(loss .* lower --lr")


def test_a_full_disk_exits_with_1(command, monkeypatch):
    def full(self, path, row):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(MetricsLog, "_append", full)
    refused(command(*LM, "--method", "full"), r"dynamics.jsonl: No space left on device", 1)


# --- the main job --------------------------------------------------------------------------------


def test_train_then_merge(command):
    code, out, err = command(*LM, "--method", "sst", "--method.rank", "4")
    assert (code, err) == (0, "")
    assert out.count("SST on 7 layers") == 1
    for words in ("validation perplexity", "test perplexity", "run/report.html", "spectrain merge"):
        assert words in out
    assert not re.search(r"[ \t]$", out, re.MULTILINE)
    code, out, err = command("merge", "run", "--out", "merged")
    assert (code, err) == (0, "")
    assert out.startswith("merged: step 6, 12 tensors,")
    assert "Logits agree" in out
    refused(command("merge", "run", "--out", "merged"), "merged exists already")
    Path("run/report.html").unlink()
    code, out, err = command("report", "run")
    assert (code, err) == (0, "")
    assert out.startswith("run/report.html: 0.")
    assert "Training with sst" in Path("run/report.html").read_text()
    Path("other").mkdir()
    for name in ("config.json", "metrics.jsonl"):
        Path("other", name).write_bytes(Path("run", name).read_bytes())
    assert command("report", "run", "other", "--out", "both.html")[0] == 0
    assert "Compared: run, other" in Path("both.html").read_text()
    refused(command("report", "run", "./run"), "the same directory is given twice")
    Path("other/config.json").write_text("{")
    refused(command("report", "run", "other"), r"other/config.json is damaged", 1)


def test_a_comparison_from_end_to_end(command):
    arguments = (
        *(*COMPARE, "--data", "prose.txt", "--out", "cmp", "--methods", "full,sst"),
        *("--sweep-lr", "1e-2,2e-2", "--sst.sweep-lr", "2e-2,4e-2", "--seeds", "1"),
        *("--extend", "0", "--lr-ordinary", "1e-2"),
    )
    code, out, err = command(*arguments)
    assert (code, err) == (0, "")
    assert out.count("Every method trains 7 layers") == 1
    assert [f"Trial {n} of {m}" in out for n, m in ((1, 6), (4, 6), (5, 6), (6, 6))] == [True] * 4
    assert "cmp/report.html" in out
    with open("cmp/results.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [(row["arm"], float(row["lr"])) for row in table[:4]] == [
        *(("full", 1e-2), ("sst", 2e-2), ("full", 2e-2), ("sst", 4e-2)),
    ]
    assert {(row["seed"], row["purpose"]) for row in table} == {("0", "sweep"), ("1", "report")}
    assert {float(row["lr_ordinary"]) for row in table} == {1e-2}
    # Again: nothing is trained, the same is said. With other options: refused.
    times = {path: path.stat().st_mtime_ns for path in Path("cmp").glob("trials/*/result.json")}
    assert len(times) == 6
    code, again, _ = command(*arguments)
    assert code == 0
    assert "6 finished trials are kept in cmp." in again
    assert "Trial " not in again
    assert out.partition("\nmethod ")[2] == again.partition("\nmethod ")[2] != ""
    assert times == {path: path.stat().st_mtime_ns for path in times}
    refused(command(*arguments, "--steps", "7"), r"steps = 6, but now steps = 7")
    # A trial is a run like any other.
    trial = next(Path("cmp", "trials").glob("sst-*-seed1"))
    assert command("merge", trial, "--out", "merged")[0] == 0
    # One is lost, another was stopped: only these are done again, with the same result.
    before = read_json(trial / "result.json")
    (trial / "result.json").unlink()
    code, out, _ = command(*arguments)
    assert code == 0
    assert "5 finished trials are kept in cmp." in out
    assert read_json(trial / "result.json")["test_loss"] == before["test_loss"]
    refused(command(*LM[:-2], "--method", "full", "--out", "cmp"), "holds a comparison, not a run")
    refused(command(*COMPARE, "--data", "prose.txt", "--out", trial), "other than a comparison")
    assert not (trial / "trials").exists()


@pytest.mark.skipif(os.name != "posix", reason="signals to another process are POSIX's")
def test_a_comparison_stopped_by_ctrl_c_keeps_what_it_has(command):
    arguments = (
        *(*COMPARE, "--data", "prose.txt", "--out", "cmp", "--methods", "full,sst"),
        *("--sweep-lr", "1e-2", "--seeds", "0", "--steps", "120", "--log-every", "2"),
    )
    program = [sys.executable, "-m", "spectrain", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    deadline = time.monotonic() + 120
    second = Path("cmp", "trials", "sst-lr1e-02-seed0", "metrics.jsonl")
    while not second.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert re.fullmatch(
        r"stopped at step \d+ and saved; the same command continues", errors.strip()
    )
    first = Path("cmp", "trials", "full-lr1e-02-seed0", "result.json")
    written = first.stat().st_mtime_ns
    code, out, _ = command(*arguments)
    assert code == 0
    assert "1 finished trial is kept in cmp." in out
    assert first.stat().st_mtime_ns == written
    assert read_json(second.parent / "result.json")["steps"] == 120


def test_the_options_of_the_demo_are_a_comparison_that_could_run(monkeypatch, command):
    context = compare_lm.make_context("lm", [*commands.DEMO, "--out", "x"])
    values = context.params
    assert values["methods"] == "full,sst,relora,lora,galore"
    steps = values["steps"]
    assert steps // values["relora__merge_every"] >= 10
    assert steps // values["sst__resample_every"] >= 10
    rounds = values["sst__resample_every"] * values["sst__iterations_per_round"]
    assert steps // rounds >= 2
    assert steps // values["galore__refresh_every"] >= 3
    seen = []
    monkeypatch.setattr(compare_lm, "callback", lambda **values: seen.append(values))
    assert command("demo", "--out", "elsewhere")[0] == 0
    assert (str(seen[0]["out"]), seen[0]["steps"]) == ("elsewhere", steps)


def test_each_method_stands_once_and_one_way_to_give_ordinary_rates(tmp_path, capsys):
    for wrong, text in (
        (["--methods", "sst,sst"], "each method can stand there once"),
        (["--lr-ordinary", "1e-3", "--sweep-lr-ordinary", "1e-3,2e-3"], "not both"),
    ):
        with pytest.raises(SystemExit) as leaving:
            main(["compare", "lm", *wrong, "--out", str(tmp_path / "out")])
        assert leaving.value.code == 2
        assert text in capsys.readouterr().err
