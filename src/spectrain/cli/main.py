"""The command `spectrain`: groups, exit codes and error messages."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from spectrain import __version__
from spectrain.cli.commands import demo, list_methods
from spectrain.cli.finetune import compare_finetune, train_finetune
from spectrain.cli.graph import compare_graph, train_graph
from spectrain.cli.image import compare_image, train_image
from spectrain.cli.inspect import inspect
from spectrain.cli.lm import compare_lm, train_lm
from spectrain.cli.merge import merge
from spectrain.cli.plan import plan
from spectrain.cli.report import report
from spectrain.cli.translate import compare_translate, train_translate, translate
from spectrain.errors import SpectrainError

EXIT_INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="spectrain")
def cli() -> None:
    """Train neural networks in low-rank and spectral form.

    \b
    spectrain demo                                      five methods compared, a few minutes
    spectrain methods                                   what there is
    spectrain train lm --method sst --method.rank 64 --out runs/a
    spectrain compare lm --methods full,sst,lora --sweep-lr 1e-3,4e-3 --out runs/b
    spectrain train graph --method sst --method.rank 2 --out runs/tree
    spectrain train translate --method sst --method.rank 16 --out runs/numbers
    spectrain translate runs/numbers < text.de          use what was trained
    spectrain train image --method sst --method.rank 8 --out runs/digits
    spectrain train finetune --model smollm2/ --method lora --method.rank 16 --out runs/problems
    spectrain report runs/a                             a page of it, at any time
    spectrain plan --model llama-1b --methods full,sst --memory 24GiB
    spectrain merge runs/a --out merged                 an ordinary transformers checkpoint
    spectrain merge runs/a --out small --prune 0.9      without its smallest singular values
    spectrain inspect merged --against start            spectra of any checkpoint, and what changed

    Every command that trains continues where it was when it is run again.
    """


@cli.group()
def train() -> None:
    """Train one model with one method."""


@cli.group()
def compare() -> None:
    """Train with several methods under one budget, and compare."""


train.add_command(train_lm)
train.add_command(train_graph)
train.add_command(train_translate)
compare.add_command(compare_lm)
compare.add_command(compare_graph)
compare.add_command(compare_translate)
train.add_command(train_image)
compare.add_command(compare_image)
train.add_command(train_finetune)
compare.add_command(compare_finetune)
for _command in (demo, report, plan, merge, inspect, translate, list_methods):
    cli.add_command(_command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code: 0, 1 (failed), 2 (usage), 130 (stopped)."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.showwarning = _show_warning
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a Windows pipe's code page lacks Greek letters
            stream.reconfigure(errors="replace")
    try:
        with _signals():
            try:
                cli.main(args=arguments, prog_name="spectrain", standalone_mode=False)
            except (click.Abort, KeyboardInterrupt) as stop:
                _leave(stop)
        if _several():
            _exit_now(0)
    except click.ClickException as error:
        error.show()
        _exit(error.exit_code)
    except SpectrainError as error:
        if _first() or not error.on_all:
            _say(f"Error: {error}")
        _exit(error.exit_code)
    except RuntimeError as error:
        if not _is_parting(error):
            raise
        _say(
            "Error: another process of this run has ended, so this one cannot go on; the same command "
            "continues from the newest checkpoint"
        )
        _exit_now(1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _exit(1)
    except ModuleNotFoundError as error:
        _say(f"Error: {error.name} is not installed; pip install 'spectrain[train]' brings it")
        _exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _say(f"Error: {where}{error.strerror or error}")
        _exit(1)


@contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM is taken for Ctrl-C, wherever the program is; afterwards both are what they were."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(stop: BaseException) -> NoReturn:
    """Say how the program was stopped and leave, whatever is still being written."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):  # nothing may interrupt the leaving
            signal.signal(number, signal.SIG_IGN)
    # click turns a KeyboardInterrupt into an Abort and keeps it as the cause.
    said = str(stop.__cause__ or stop)
    if _first():
        _say(said or "stopped; what was saved is kept, and the same command continues")
    if any(thread.name == "spectrain checkpoint" for thread in threading.enumerate()):
        # Only after a second signal. The interpreter's own ending would tear the thread out of
        # native code, and that can abort the process.
        _exit_now(EXIT_INTERRUPTED)
    _exit(EXIT_INTERRUPTED)


def _exit(code: int) -> NoReturn:
    """Leave; one of several processes without the interpreter's own ending, in which gloo may abort it."""
    if _several():
        _exit_now(code)
    sys.exit(code)


def _exit_now(code: int) -> NoReturn:
    """Leave without the interpreter's own ending, which waits for threads or tears them apart."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _is_parting(error: RuntimeError) -> bool:
    from spectrain.runs.processes import is_parting

    return is_parting(error)


def _several() -> bool:
    """True in one of the processes that torchrun started."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def _first() -> bool:
    """True in the only process of a run, and in the first of several that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def _show_warning(message: Warning | str, *rest: Any, **named: Any) -> None:
    if _first():
        _say(f"Warning: {message}")


def _say(text: str) -> None:
    click.echo(text if _first() else f"process {os.environ['RANK']}: {text}", err=True)
