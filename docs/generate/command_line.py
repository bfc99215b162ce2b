"""The reference of the `ddpm` command, from the signatures that Typer reads."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from typer import Typer
from typer.models import ArgumentInfo, OptionInfo, ParameterInfo

from cli.main import app
from docs.generate.markdown import NOTICE, page, plain, table

_ABOUT = """# The command line

`ddpm` is one command with several parts.
After `make serve` or `make test` you find it in `.venv/bin`.
`ddpm COMMAND --help` shows what stands here.

An error that you can mend ends the command with one line on stderr and the exit status 1.
[Settings](settings.md) has the environment variables that the commands read."""
_KINDS = {int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH"}

Command = tuple[str, Callable[..., Any]]


def command_page() -> str:
    """Return docs/reference/cli.md."""
    found = list(_commands(app, "ddpm"))
    links = table(
        ("command", "what it does"),
        [(f"[`{name}`](#{name.replace(' ', '-')})", _summary(call)) for name, call in found],
    )
    return page(
        [NOTICE, _ABOUT, links, *(block for command in found for block in _blocks(*command))]
    )


def _commands(group: Typer, name: str) -> Iterator[Command]:
    """Yield every command below `group`, in the order in which it was registered."""
    if group.registered_callback and group.registered_callback.callback:
        yield name, group.registered_callback.callback
    for command in group.registered_commands:
        if command.callback:
            yield (
                f"{name} {command.name or command.callback.__name__.replace('_', '-')}",
                command.callback,
            )
    for below in group.registered_groups:
        if below.typer_instance:
            yield from _commands(below.typer_instance, f"{name} {below.name}")


def _summary(call: Callable[..., Any]) -> str:
    return inspect.cleandoc(call.__doc__ or "").partition("\n")[0]


def _blocks(name: str, call: Callable[..., Any]) -> Iterator[str]:
    parameters = list(_parameters(call))
    arguments = [p for p in parameters if isinstance(p.info, ArgumentInfo)]
    options = [p for p in parameters if isinstance(p.info, OptionInfo)]
    yield f"## `{name}`"
    yield plain(inspect.cleandoc(call.__doc__ or ""))
    needed = [f"{p.flag} {p.kind}" for p in options if p.required]
    usage = " ".join(
        [
            name,
            *(p.name.upper() for p in arguments),
            *needed,
            *(["[OPTIONS]"] if len(options) > len(needed) else []),
        ]
    )
    yield f"```text\n{usage}\n```"
    yield table(("argument", "what it is"), [(f"`{p.name.upper()}`", p.help) for p in arguments])
    yield table(
        ("option", "value", "default", "what it does"),
        [
            (f"`{p.flag}`", p.shown_kind, "*required*" if p.required else p.shown_default, p.help)
            for p in options
        ],
    )


class _Parameter:
    """One parameter of a command, as its signature has it."""

    def __init__(self, name: str, hint: Any, info: ParameterInfo, default: object) -> None:
        self.name, self.info, self._default = name, info, default
        self._types = [part for part in _flat(hint) if part is not type(None)]

    @property
    def help(self) -> str:
        return self.info.help or ""

    @property
    def required(self) -> bool:
        return self._default is inspect.Parameter.empty

    @property
    def flag(self) -> str:
        named = [text for text in self.info.param_decls or () if text.startswith("--")]
        return named[0] if named else f"--{self.name.replace('_', '-')}"

    @property
    def kind(self) -> str:
        """What the value is, in capitals; empty for a flag, which takes none."""
        first = self._types[0]
        if first is bool:
            return ""
        return "CHOICE" if isinstance(first, str) else _KINDS[first]

    @property
    def shown_kind(self) -> str:
        if isinstance(self._types[0], str):
            return " or ".join(f"`{choice}`" for choice in self._types)
        low, high = self.info.min, self.info.max
        bounds = (
            f", {low} to {high}"
            if high is not None
            else f", {low} or more"
            if low is not None
            else ""
        )
        return f"{self.kind}{bounds}" if self.kind else ""

    @property
    def shown_default(self) -> str:
        variable = f"`{self.info.envvar}`" if self.info.envvar else ""
        value = "" if self._default is None or self._default is False else f"`{self._default}`"
        return ", else ".join(text for text in (variable, value) if text)


def _parameters(call: Callable[..., Any]) -> Iterator[_Parameter]:
    hints = get_type_hints(call, include_extras=True)
    for name, parameter in inspect.signature(call).parameters.items():
        for info in getattr(hints[name], "__metadata__", ()):
            if isinstance(info, ParameterInfo):
                yield _Parameter(name, hints[name].__origin__, info, parameter.default)


def _flat(hint: Any) -> list[Any]:
    """Return the types that a hint allows: a Literal's values, the type of a list's items."""
    if get_origin(hint) is Literal or not get_args(hint):
        return list(get_args(hint)) or [hint]
    return [part for inner in get_args(hint) for part in _flat(inner)]
