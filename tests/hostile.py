"""Malformed input for every parser, and the one promise that all of them make about it.

`cases` makes a test of a check: hypothesis draws the input, the same in every run; the number of cases
stands in CASES, and is counted. `in_a_sentence` is the promise: a valid result, or one sentence.
"""

from __future__ import annotations

import functools
import inspect
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from spectrain.errors import SpectrainError

CASES = {
    "settings of methods": 800,
    "method by name": 300,
    "options by keyword": 500,
    "command line: train": 400,
    "command line: compare": 400,
    "command line: plan": 400,
    "command line: other": 150,
    "TOML: bytes": 450,
    "TOML: values": 450,
    "comparison from the command line": 300,
    "sizes of memory": 500,
    "records": 700,
    "rows": 400,
    "curves": 250,
    "report of a run": 200,
    "report of a comparison": 120,
    "pictures": 15,
    "plans": 500,
    "text files": 500,
    "JSON lines": 400,
    "compressed files": 400,
    "names of data": 350,
    "folders": 200,
    "cached corpora": 200,
    "tokenizers": 200,
    "model configurations": 450,
    "model overrides": 500,
    "pages of runs": 120,
    "pages of comparisons": 30,
    "manifests": 250,
    "checkpoint states": 120,
    "safetensors": 200,
    "merge": 120,
    "graphs: archives of arrays": 200,
    "graphs: archives of bytes": 200,
    "graphs: sparse features": 150,
    "graphs: edge lists": 250,
    "graphs: folders": 200,
}
SECONDS = 20  # after which a case counts as hung


class HungError(BaseException):
    """No Exception, which a parser might take for one of its own."""


def cases(name: str, /, **strategies: SearchStrategy[Any]) -> Callable[[Any], Any]:
    """The decorated check as a test over CASES[name] inputs drawn from `strategies`.

    Its other parameters are pytest's fixtures, shared by all cases.
    """

    def decorate(check: Callable[..., None]) -> Callable[..., None]:
        ran = 0

        @functools.wraps(check)
        def counted(**values: Any) -> None:
            nonlocal ran
            ran += 1
            with _deadline():
                check(**values)

        test = settings(
            max_examples=CASES[name],
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.explicit, Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )(given(**strategies)(counted))

        def whole(**fixtures: Any) -> None:
            nonlocal ran
            ran = 0
            test(**fixtures)
            assert ran >= CASES[name], f"{name}: only {ran} cases"

        whole.__name__, whole.__doc__ = check.__name__, check.__doc__
        whole.__module__ = check.__module__
        whole.__signature__ = inspect.signature(test)  # type: ignore[attr-defined]
        whole.cases_of = name  # type: ignore[attr-defined]
        return whole

    return decorate


@contextmanager
def _deadline() -> Iterator[None]:
    """Turn a hang into a failure (where the system has alarms)."""

    def hung(*_: object) -> None:
        raise HungError(f"no end after {SECONDS} s")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, hung)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def in_a_sentence() -> Iterator[None]:
    """What is within gives a result, or an error of one sentence with exit code 1 or 2."""
    try:
        yield
    except SpectrainError as error:
        _sentence(str(error), error.exit_code)
    except click.ClickException as error:
        _sentence(error.format_message(), error.exit_code)


def _sentence(text: str, exit_code: int) -> None:
    assert exit_code in (1, 2)
    assert len(text) > 10, text
    assert len(text) < 2500, text
    assert "\n" not in text, text
    assert "Traceback" not in text, text


# --- what is drawn ------------------------------------------------------------------------------

EVIL = (
    *("", "<script>alert(1)</script>", "</script>", "</style><b>", "\"'><img src=x onerror=y>"),
    *(
        "javascript:alert(1)",
        "&amp;&lt;",
        "$\\frac$",
        "[/red]",
        "[bold",
        "\x1b[31m",
        "=1+1",
        "%s%n",
    ),
    *("../../../etc/passwd", "/dev/null", "~nobody-of-this-name/x", "a\nb", "a\0b", "x" * 300),
    *("\u202e", "\ufeff", "\ud800", "\U0001f4a9", "nan", "inf", "-1", "1e999", "9" * 400, "٣"),
    *("__class__", "{0.__class__}", "None", "true", "[]", "{}", "-", "--", "=", ",", ",,1e-3", "."),
)
HUGE = (2**31, 2**63 - 1, 2**63, 2**64, 10**18, 10**100, 10**308, 10**400)

text = st.one_of(st.sampled_from(EVIL), st.text(max_size=12))
whole = st.one_of(
    st.integers(-3, 9),
    st.sampled_from([*HUGE, *(-number for number in HUGE)]),
    st.integers(-(2**70), 2**70),
)
number = st.one_of(whole, st.floats())
scalar = st.one_of(st.none(), st.booleans(), number, text)
json_values = st.recursive(
    scalar,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(text, inner, max_size=4)),
    max_leaves=8,
)
NESTED = (
    *("[" * 3000, "[" * 3000 + "]" * 3000, "[" * 200 + "]" * 200),
    *('{"a":' * 500 + "1" + "}" * 500, '{"a":' * 5000),
)


def place_anything(
    valid: SearchStrategy[Any], kinds: SearchStrategy[Any] = json_values
) -> SearchStrategy[Any]:
    """`valid` with up to three parts of it exchanged for anything, taken out, or added."""

    @st.composite
    def damaged(draw: Callable[[Any], Any]) -> Any:
        content = json.loads(json.dumps(draw(valid)))
        for _ in range(draw(st.integers(0, 3))):
            content = _damage(content, draw, kinds)
        return content

    return damaged()


def _damage(content: Any, draw: Callable[[Any], Any], kinds: SearchStrategy[Any]) -> Any:
    """Go down a random way, and exchange what is there."""
    if not isinstance(content, dict | list) or draw(st.integers(0, 5)) == 0:
        return draw(kinds)
    keys = list(content) if isinstance(content, dict) else range(len(content))
    what = draw(st.sampled_from(("inside", "inside", "inside", "out", "more")))
    key = draw(st.sampled_from(keys)) if keys else None
    if key is None or what == "more":
        if isinstance(content, list):
            content.append(draw(kinds))
        else:
            content[draw(text)] = draw(kinds)
    elif what == "out":
        del content[key]
    else:
        content[key] = _damage(content[key], draw, kinds)
    return content


def as_bytes(contents: SearchStrategy[Any]) -> SearchStrategy[bytes]:
    """JSON files: `contents` whole, cut short, with a changed byte; no JSON at all; deeply nested."""

    @st.composite
    def written(draw: Callable[[Any], Any]) -> bytes:
        raw = json.dumps(draw(contents), indent=draw(st.sampled_from((None, 2)))).encode()
        how = draw(st.integers(0, 9))
        if how == 0:
            return raw[: draw(st.integers(0, len(raw)))]
        if how == 1 and raw:
            at = draw(st.integers(0, len(raw) - 1))
            return raw[:at] + draw(st.binary(max_size=3)) + raw[at + 1 :]
        if how == 2:
            return draw(st.one_of(st.binary(max_size=40), st.sampled_from(NESTED).map(str.encode)))
        if how == 3:  # a field twice
            return raw.replace(b"{", b'{"format": [], "step": "x", ', 1)
        return raw

    return written()


@functools.lru_cache(maxsize=32)  # hypothesis takes long to make acquaintance with a strategy
def damaged_json(raw: str | bytes) -> SearchStrategy[bytes]:
    """A JSON file of which `raw` is the intact content."""
    return as_bytes(place_anything(st.just(json.loads(raw))))
