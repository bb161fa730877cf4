"""Command-line options made from dataclasses, grouped in help, read from TOML too."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import click

from spectrain.method import Method

DEEPEST = 2  # tables within tables of a TOML file

Parameters = list[click.Parameter]
Section = tuple[str, Parameters]


class SectionedCommand(click.Command):
    """A command whose help lists its options under headings; one option may stand under several."""

    def __init__(
        self, name: str, callback: Callable[..., None], help: str, sections: Sequence[Section]
    ) -> None:
        self.sections = sections
        settings = {
            "token_normalize_func": _dashes,
            "max_content_width": 100,
            "help_option_names": ["-h", "--help"],
        }
        params = {parameter.name: parameter for _, group in sections for parameter in group}
        super().__init__(
            name, callback=callback, help=help, params=[*params.values()], context_settings=settings
        )

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one definition list for each section."""
        for title, group in self.sections:
            rows = [row for p in group if (row := p.get_help_record(ctx))]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def options_of(
    cls: type, *, skip: Sequence[str] = (), defaults: Mapping[str, Any] | None = None
) -> Parameters:
    """An option --field-name for each field of the dataclass `cls`; `defaults` replace its own."""
    own = defaults or {}
    fields = [f for f in dataclasses.fields(cls) if f.name not in skip]
    return [_option(f, _flag(f.name), own.get(f.name, f.default)) for f in fields]


def method_options(method: type[Method], prefix: str, required: str) -> Parameters:
    """An option --prefix.field-name for each setting of `method`; None where it is not given.

    required: what help says of a setting without a default.
    """
    return [_method_option(f, prefix, required) for f in dataclasses.fields(method)]


def settings_for(method: type[Method], prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    """The settings of `method` that were given with this prefix."""
    names = [f.name for f in dataclasses.fields(method)]
    found = {name: values.get(python_name(prefix, name)) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def missing(method: type[Method], settings: dict[str, Any]) -> list[str]:
    """The settings that `method` has no default for and that were not given."""
    fields = dataclasses.fields(method)
    return [f.name for f in fields if f.default is MISSING and f.name not in settings]


def given(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    """All options given with this prefix, by field name."""
    start = python_name(prefix, "")
    return {
        name.removeprefix(start): value
        for name, value in values.items()
        if name.startswith(start) and value is not None
    }


def built(cls: Callable[..., Any], values: dict[str, Any]) -> Any:
    """An instance of the dataclass `cls` from the options of the same names."""
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    return cls(**{name: values[name] for name in names if name in values})


def config_option() -> click.Option:
    """--config FILE.toml: defaults for all other options of the command."""
    return click.Option(
        ["--config"],
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        is_eager=True,
        expose_value=False,
        callback=_read_config,
        help="read options from a TOML file; flags win. Keys are the flags' names; a table "
        'as [method] holds name = "sst" and its settings, rank = 64',
    )


def _read_config(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of syntax, encoding, a huge number; of nesting
        raise click.BadParameter(f"{path} is no valid TOML: {_cut(str(error))}") from None
    known = {
        _dashes(option.lstrip("-")): p.name or ""
        for p in ctx.command.params
        for option in (*p.opts, *p.secondary_opts)
    }
    defaults = {}
    for key, value in _flat(content):
        name = known.get(_dashes(key))
        if name is None:
            near = difflib.get_close_matches(_dashes(key), known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise click.BadParameter(f"{path}: there is no option {_cut(key)!r}.{hint}")
        parts = value if isinstance(value, list) else [value]
        if not all(map(_is_plain, parts)):
            raise click.BadParameter(
                f"{path}: {key} takes text, a number, true or false, or a list of these"
            )
        many = next(p for p in ctx.command.params if p.name == name).multiple
        words = [str(part) for part in parts]  # as on a command line, and checked as there
        defaults[name] = words if many else ",".join(words)
    ctx.default_map = {**(ctx.default_map or {}), **defaults}


def _is_plain(value: object) -> bool:
    """Whether a TOML value could stand on a command line."""
    if isinstance(value, str):
        return "\0" not in value
    return isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 2**63)


def _cut(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}…"


def _flat(content: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in content.items():
        if _dashes(key) == "model-config" and isinstance(value, dict):
            plain = all(map(_is_plain, value.values()))
            rows.append((key, [f"{k}={v}" for k, v in value.items()] if plain else value))
        elif isinstance(value, dict) and prefix.count(".") < DEEPEST:
            rows += _flat(value, f"{prefix}{key}.")
        elif key == "name" and prefix:
            rows.append((prefix.removesuffix("."), value))
        else:
            rows.append((prefix + key, value))
    return rows


def _option(f: dataclasses.Field[Any], flag: str, default: Any) -> click.Option:
    text, choices = f.metadata["help"], f.metadata["choices"]
    if "bool" in str(f.type):
        return click.Option([f"{flag}/{_flag(f'no-{f.name}')}"], default=default, help=text)
    kind = click.Choice(choices) if choices else _type(f)
    shown = default is not None
    return click.Option([flag], type=kind, default=default, help=text, show_default=shown)


def _method_option(f: dataclasses.Field[Any], prefix: str, required: str) -> click.Option:
    """Methods may share the option, so that its default and its choices are theirs to check."""
    flag, name = _flag(f"{prefix}.{f.name}"), python_name(prefix, f.name)
    text, symbol, choices = (f.metadata[key] for key in ("help", "symbol", "choices"))
    text += f" ({symbol})" if symbol else ""
    if "bool" in str(f.type):
        return click.Option(
            [f"{flag}/{_flag(f'{prefix}.no-{f.name}')}", name], default=None, help=text
        )
    if f.default is not None:
        text += f"  [{required if f.default is MISSING else f'default: {f.default}'}]"
    metavar = f"[{'|'.join(choices)}]" if choices else None
    return click.Option([flag, name], type=_type(f), default=None, help=text, metavar=metavar)


def _type(f: dataclasses.Field[Any]) -> type:
    return int if "int" in str(f.type) else float if "float" in str(f.type) else str


def _flag(name: str) -> str:
    return f"--{_dashes(name)}"


def python_name(prefix: str, name: str) -> str:
    """The Python name of the option --PREFIX.NAME, or --NAME without a prefix."""
    return f"{prefix.replace('-', '_')}__{name}" if prefix else name


def _dashes(name: str) -> str:
    return name.replace("_", "-")
