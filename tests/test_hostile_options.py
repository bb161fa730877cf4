"""Malformed settings, command lines and TOML files: a valid result, or one sentence."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import warnings
from types import SimpleNamespace

import hostile
import pytest
from hostile import cases, in_a_sentence
from hypothesis import assume
from hypothesis import strategies as st

import spectrain.runs.jobs as lm_runs
from spectrain.cli import plan as plan_command
from spectrain.cli.lm import compare_lm, train_lm
from spectrain.cli.main import cli, main
from spectrain.cli.plan import _bytes, plan
from spectrain.method import method_from, registered
from spectrain.runs.options import RunOptions
from spectrain.tasks.finetune.options import FinetuneOptions
from spectrain.tasks.lm.options import LanguageModelOptions
from spectrain.tasks.lm.task import LanguageModelling

METHODS = registered()
KEYS = st.sampled_from(list(METHODS))
OPTIONS = (RunOptions, LanguageModelOptions, FinetuneOptions)


class ReachedError(Exception):
    """The command line was understood, and work would begin."""


# --- settings from Python ---------------------------------------------------------------------


def fields_of(classes):
    return sorted({f.name for cls in classes for f in dataclasses.fields(cls)})


@cases(
    "settings of methods",
    key=KEYS,
    settings=st.dictionaries(
        st.one_of(st.sampled_from(fields_of(METHODS.values())), hostile.text),
        hostile.json_values,
        max_size=4,
    ),
    rank=hostile.number,
)
def test_settings_of_methods(key, settings, rank):
    fields = {f.name: f for f in dataclasses.fields(METHODS[key])}
    with in_a_sentence():
        method = method_from(key, ({"rank": rank} if "rank" in fields else {}) | settings)
        for name, value in method.settings().items():  # what passed has its declared type
            if name in fields:
                declared = str(fields[name].type).replace("float", "float int")
                assert type(value).__name__.removesuffix("Type") in declared, (name, value)
        method.phases(100)
        method.variations()
        method.schedule_text()
        method.warmup_factor(7)


@cases("method by name", key=st.one_of(hostile.text, hostile.json_values.filter(lambda v: v != {})))
def test_methods_by_name(key):
    assume(isinstance(key, str))
    with in_a_sentence():
        method_from(key, {})


@cases(
    "options by keyword",
    cls=st.sampled_from(OPTIONS),
    settings=st.dictionaries(
        st.sampled_from(fields_of(OPTIONS)), hostile.json_values, min_size=1, max_size=3
    ),
)
def test_options_by_keyword(cls, settings):
    known = {f.name for f in dataclasses.fields(cls)}
    with in_a_sentence():
        made = cls(**{name: value for name, value in settings.items() if name in known})
        if cls is RunOptions:
            assert 0 <= made.rate(0) <= 1
            assert isinstance(made.excluded, list)


# --- command lines ------------------------------------------------------------------------------


def reached(*_, **__):
    raise ReachedError


@pytest.fixture
def stopped(monkeypatch, tmp_path):
    """Commands end where they would begin to work: when all of their options are understood."""
    corpus = SimpleNamespace(splits={}, name="a text", vocab_size=300, notes=())
    task = SimpleNamespace(
        options=LanguageModelOptions(),
        overrides={},
        corpus=corpus,
        unit="tokens",
        scores=LanguageModelling.scores,
        settings=dict,
    )
    monkeypatch.setattr(LanguageModelling, "load", lambda *_, **__: task)
    monkeypatch.setattr(lm_runs, "train", reached)
    monkeypatch.setattr(lm_runs, "_check", reached)  # comes when the plan of trials is complete
    monkeypatch.setattr(plan_command, "_planner", reached)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.chdir(tmp_path)


def call(arguments):
    """Run the command line; whether it was understood. Otherwise it said one sentence."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(arguments)
    except ReachedError:
        return True
    except SystemExit as stop:
        if stop.code == 0:
            return True
        said = err.getvalue()
        assert stop.code in (1, 2), said  # noqa: PT017
        assert said.count("Error: ") >= 1, said
        sentence = said[said.index("Error: ") :].rstrip("\n")
        assert "\n" not in sentence, said
        assert len(sentence) < 2500, said
        assert "Traceback" not in said
        return False
    return True


PLAUSIBLE = (
    *("sst", "lora", "full,sst", "1e-3", "1e-3,2e-3", "cosine", "7", "0.5", "adamw", "cpu", "left"),
    *("num_hidden_layers=2", "=", "a=", "24GiB", "reset", "x", "1e-3,1e-3", "0", "true"),
)
# An argument of a process has no zero bytes; and click repeats line ends as they were typed.
argument = st.one_of(
    st.sampled_from(PLAUSIBLE),
    hostile.text,
    hostile.number.map(lambda n: f"{n:.400}" if isinstance(n, float) else str(n)),
).map(lambda value: value.replace("\0", "").replace("\n", " "))


def lines(*words, command):
    """Command lines with some of the command's options, in the forms that there are."""
    flags = [flag for p in command.params for flag in (*p.opts, *p.secondary_opts)]
    option = st.tuples(st.sampled_from(flags), argument)
    part = st.one_of(
        option.map(list),
        option.map(lambda pair: ["=".join(pair)]),
        st.sampled_from(flags).map(lambda flag: [flag]),
        argument.map(lambda value: [value]),
    )
    parts = st.lists(st.one_of(option.map(list), option.map(list), part), max_size=4)
    base = ["--out", "x"] if "--out" in flags else []
    if "--method.rank" in flags:
        base += ["--method.rank", "4"]
    return parts.map(lambda found: [*words, *base, *(word for part in found for word in part)])


@cases("command line: train", arguments=lines("train", "lm", command=train_lm))
def test_train(stopped, arguments):
    call(arguments)


@cases("command line: compare", arguments=lines("compare", "lm", command=compare_lm))
def test_compare(stopped, arguments):
    call(arguments)


@cases("command line: plan", arguments=lines("plan", command=plan))
def test_plan(stopped, arguments):
    call(arguments)


@cases(
    "command line: other",
    arguments=st.one_of(
        lines("merge", command=cli.commands["merge"]),
        lines("report", command=cli.commands["report"]),
        lines("methods", command=cli.commands["methods"]),
        st.lists(argument, min_size=1, max_size=3),
    ),
)
def test_other_commands(stopped, arguments):
    call(arguments)


rates = st.one_of(
    st.lists(argument, max_size=4).map(",".join),
    st.lists(st.floats(allow_nan=True), max_size=4).map(lambda r: ",".join(map(str, r))),
)


@cases(
    "comparison from the command line",
    methods=st.one_of(
        st.lists(KEYS, max_size=3, unique=True).map(",".join), st.lists(argument).map(",".join)
    ),
    sweep=rates,
    ordinary=st.one_of(st.none(), rates),
    own=st.one_of(st.none(), rates),
    seeds=hostile.whole,
    extend=hostile.whole,
)
def test_rates_and_seeds_of_a_comparison(stopped, methods, sweep, ordinary, own, seeds, extend):
    more = [f"--sweep-lr-ordinary={ordinary}"] if ordinary is not None else []
    more += [f"--lora.sweep-lr={own}"] if own is not None else []
    more += [f"--seeds={seeds}", f"--extend={extend}"] if abs(seeds) > 9 else []
    call(["compare", "lm", "--out", "x", f"--methods={methods}", f"--sweep-lr={sweep}", *more])


@cases(
    "sizes of memory",
    size=st.one_of(hostile.text, st.from_regex(r"[\d.]{1,30} ?[KMGTkmgtiIbB]{0,3}")),
)
def test_sizes_of_memory(size):
    with in_a_sentence():
        assert 0 <= _bytes(size) < 10**31


# --- TOML ---------------------------------------------------------------------------------------


def parsed(folder, content, command):
    path = folder / "run.toml"
    path.write_bytes(content)
    with in_a_sentence():
        command.make_context("lm", ["--config", str(path), "--out", "x"])


COMMANDS = st.sampled_from((train_lm, compare_lm))
LINES = (
    *(
        "steps = 7",
        "lr = 1e-3",
        "[method]",
        'name = "sst"',
        "rank = 8",
        "[sst]",
        "sweep_lr = [1, 2]",
    ),
    *("steps = nan", "lr = -inf", "lr = 1e999", f"steps = {'9' * 5000}", f"steps = 0x{'f' * 5000}"),
    *("model-config = { a = 1 }", "model-config = 3", "model_config = 'x'", "a" * 3000 + " = 1"),
    *(
        "model-config = { a = { b = 1 } }",
        "model-config = [[1]]",
        "steps = 1979-05-27",
        "lr = 07:32:00",
    ),
    *(
        "out = 'a\\u0000b'",
        'out = "a\\u0000b"',
        'data = "\\u0000"',
        'method = "\\ud800"',
        "[[method]]",
    ),
    *(
        "x = " + "[" * 2000,
        "x = " + "{a=" * 2000,
        ".".join("a" * 3000) + " = 1",
        "[" + ".".join("a" * 3000) + "]",
    ),
    *(
        "steps = [[[]]]",
        "steps = {}",
        "steps = []",
        "compile = 'x'",
        "compile = 1",
        "compile = [true]",
    ),
    *(
        "schedule = 3",
        "device = []",
        "[method.rank.x]",
        "method = { name = { name = 3 } }",
        "config = 'x'",
    ),
    *(
        f"steps = [{{ {'.'.join('a' * 2000)} = 1 }}]",
        "no-compile = true",
        "help = true",
        "'' = 1",
        "name = 'x'",
    ),
)


@cases(
    "TOML: bytes",
    content=st.one_of(
        st.binary(max_size=30),
        hostile.text.map(lambda text: text.encode(errors="surrogatepass")),
        st.lists(st.sampled_from(LINES), max_size=4).map("\n".join).map(str.encode),
        st.tuples(
            st.lists(st.sampled_from(LINES), max_size=3).map("\n".join).map(str.encode),
            st.binary(max_size=4),
        ).map(b"\n".join),
    ),
    command=COMMANDS,
)
def test_toml_files(tmp_path, content, command):
    parsed(tmp_path, content, command)


def toml(value):
    """The value as TOML (without null)."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(str(k))} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, str):
        quoted = "".join(c if c.isalnum() else f"\\U{ord(c):08x}" for c in value)
        return f'"{quoted}"'
    if isinstance(value, int) and not isinstance(value, bool):
        return hex(value) if value >= 0 else str(value) if value > -(10**999) else "-1"
    return "''" if value is None else str(value).lower()


NAMES = sorted(
    {flag.lstrip("-") for c in (train_lm, compare_lm) for p in c.params for flag in p.opts}
)


@cases(
    "TOML: values",
    content=st.dictionaries(
        st.one_of(st.sampled_from(NAMES), st.sampled_from(["method", "sst"]), hostile.text),
        hostile.json_values,
        min_size=1,
        max_size=4,
    ),
    command=COMMANDS,
)
def test_toml_values(tmp_path, content, command):
    lines = "\n".join(f"{toml(key)} = {toml(value)}" for key, value in content.items())
    dotted = lines.replace('"method\\U0000002e', 'method."')
    parsed(tmp_path, dotted.encode(errors="replace"), command)
