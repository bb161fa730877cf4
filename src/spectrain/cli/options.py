"""Command-line options made from dataclasses, grouped in help, read from TOML too."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import click

from spectrain.method import Method, registered

Parameters = list[click.Parameter]
Section = tuple[str, Parameters]


class SectionedCommand(click.Command):
    """A command whose help lists its options under headings."""

    def __init__(
        self, name: str, callback: Callable[..., None], help: str, sections: Sequence[Section]
    ) -> None:
        self.sections = sections
        settings = {"token_normalize_func": _dashes, "max_content_width": 100}
        params = [parameter for _, group in sections for parameter in group]
        super().__init__(
            name, callback=callback, help=help, params=params, context_settings=settings
        )

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one definition list for each section."""
        for title, group in self.sections:
            rows = [row for p in group if (row := p.get_help_record(ctx))]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def options_of(
    cls: type, *, prefix: str = "", skip: Sequence[str] = (), defaults: dict[str, Any] | None = None
) -> Parameters:
    """An option --prefix.field-name for each field of the dataclass `cls`."""
    made: Parameters = []
    for f in dataclasses.fields(cls):
        if f.name not in skip:
            default = (defaults or {}).get(f.name, f.default)
            made.append(
                _option(f, prefix, None if default is MISSING else default, f.metadata["help"])
            )
    return made


def method_options(prefix: str) -> Parameters:
    """Options --method.NAME for the settings of all methods; help says whose they are."""
    owners: dict[str, list[tuple[str, dataclasses.Field[Any]]]] = {}
    for key, cls in registered().items():
        for f in dataclasses.fields(cls):
            owners.setdefault(f.name, []).append((key, f))
    made: Parameters = []
    for fields in owners.values():
        texts = {
            f.metadata["help"]: [k for k, g in fields if g.metadata["help"] == f.metadata["help"]]
            for _, f in fields
        }
        text = "; ".join(
            f"[{', '.join(keys)}] {help_text}{_default(fields, keys)}"
            for help_text, keys in texts.items()
        )
        made.append(_option(fields[0][1], prefix, None, text))
    return made


def _default(fields: list[tuple[str, dataclasses.Field[Any]]], keys: list[str]) -> str:
    values = {f.default for key, f in fields if key in keys}
    value = values.pop() if len(values) == 1 else None
    return "" if value is None or value is MISSING or value == "" else f" (default {value})"


def settings_for(method: type[Method], prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    """The settings of `method` that were given with this prefix."""
    names = [f.name for f in dataclasses.fields(method)]
    found = {name: values.get(_python_name(prefix, name)) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def given(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    """All options given with this prefix, by field name."""
    start = _python_name(prefix, "")
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
        help="read options from a TOML file; flags win. Keys are the flags' names, "
        "[method] rank = 64 stands for --method.rank 64",
    )


def _read_config(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{path} is no valid TOML: {error}") from None
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
            raise click.BadParameter(f"{path}: there is no option {key!r}.{hint}")
        many = next(p for p in ctx.command.params if p.name == name).multiple
        listed = isinstance(value, list) and not many
        defaults[name] = ",".join(map(str, value)) if listed else value
    ctx.default_map = {**(ctx.default_map or {}), **defaults}


def _flat(content: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in content.items():
        if key == "model_config" and isinstance(value, dict):
            rows.append((key, [f"{k}={v}" for k, v in value.items()]))
        elif isinstance(value, dict):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((prefix + key, value))
    return rows


def _option(f: dataclasses.Field[Any], prefix: str, default: Any, text: str) -> click.Option:
    flag = f"--{prefix}{'.' if prefix else ''}{_dashes(f.name)}"
    kind = str(f.type)
    symbol = f.metadata.get("symbol")
    text += f" [{symbol}]" if symbol and prefix else ""
    name = _python_name(prefix, f.name)
    if "bool" in kind:
        return click.Option(
            [f"{flag}/--{prefix}{'.' if prefix else ''}no-{_dashes(f.name)}", name],
            default=default,
            help=text,
        )
    value_type: Any = int if "int" in kind else float if "float" in kind else str
    if f.metadata.get("choices") and not prefix:
        value_type = click.Choice(f.metadata["choices"])
    shown = default is not None and not prefix
    return click.Option(
        [flag, name], type=value_type, default=default, help=text, show_default=shown
    )


def _python_name(prefix: str, name: str) -> str:
    return f"{prefix}__{name}" if prefix else name


def _dashes(name: str) -> str:
    return name.replace("_", "-")
