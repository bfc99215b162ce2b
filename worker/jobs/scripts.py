"""Loads the Lua scripts of worker/jobs/lua, and calls them with keys and arguments by name.

A script is one file. The comment at its top is read by this module:

    -- What the script does.
    --
    -- KEYS:
    --   record: hash of the job
    --   jobs*(record, hashes): what is there of each job
    -- ARGV:
    --   attempt: number of this attempt
    --   lease?: the worker's execution
    --   ids*: of the jobs
    -- RESULT:
    --   the job's state
    -- include: now
    -- constants: CHANGES

KEYS and ARGV name what the script takes, in order. A bare name is one value. `name?` is one value
or none, `name*` any number of values, `name*(a, b)` any number of groups of two.

`include` puts files of worker/jobs/lua/shared before the script. If such a file has KEYS and ARGV,
they come first.

`constants` puts lines such as `local CHANGES = "ddpm:changes"` before the script. Values on which
the API and the workers agree reach a script this way, and what a caller chooses reaches it as an
argument. The files stay Lua that an editor and luacheck can read, which `$NAME` would not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha1
from importlib.resources import files
from itertools import takewhile
from typing import Any, Literal, cast

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.client import Pipeline as AsyncPipeline
from redis.client import Pipeline
from redis.exceptions import NoScriptError

from worker.jobs.domain import SHARD_IMAGES
from worker.jobs.keys import (
    BUNDLE_PREFIX,
    BUNDLE_REFERENCE,
    CHANGES,
    COUNTS,
    EXECUTION_PREFIX,
    EXECUTIONS_PREFIX,
    FAILED_SHARDS,
    IDLE,
    JOBS_PREFIX,
    KEPT,
    KEPT_BY_OWNER,
    KEPT_UNTIL,
    LEASE_CLOCK,
    LEASES,
    PREVIEWS,
    QUEUE_NAMES,
    QUEUE_PREFIX,
    QUEUES,
    RECORD_PREFIX,
    ROTATION_PREFIX,
    SHARD_PREFIX,
    STARTED_PREFIX,
    STONES,
    WEBHOOK_LANE_PREFIX,
    WEBHOOK_OWNERS,
    WEBHOOK_RECEIVERS_PREFIX,
)
from worker.jobs.policy import (
    FLOOR,
    RECORD_TTL_S,
    REMOVED_AGAIN_S,
    SHORT_QUEUE,
    UNFINISHED_TTL_S,
)

Value = str | bytes | int | float
Argument = Value | None | Iterable[Value] | Iterable[Sequence[Value]]
Client = Redis | AsyncRedis | Pipeline | AsyncPipeline

CONSTANTS: Mapping[str, str | int] = {
    "BUNDLE_PREFIX": BUNDLE_PREFIX,
    "BUNDLE_REFERENCE": BUNDLE_REFERENCE,
    "CHANGES": CHANGES,
    "COUNTS": COUNTS,
    "EXECUTIONS_PREFIX": EXECUTIONS_PREFIX,
    "EXECUTION_PREFIX": EXECUTION_PREFIX,
    "FAILED_SHARDS": FAILED_SHARDS,
    "FLOOR": FLOOR,
    "IDLE": IDLE,
    "JOBS_PREFIX": JOBS_PREFIX,
    "KEPT": KEPT,
    "KEPT_BY_OWNER": KEPT_BY_OWNER,
    "KEPT_UNTIL": KEPT_UNTIL,
    "LEASES": LEASES,
    "LEASE_CLOCK": LEASE_CLOCK,
    "PREVIEWS": PREVIEWS,
    "QUEUES": QUEUES,
    "QUEUE_NAMES": QUEUE_NAMES,
    "QUEUE_PREFIX": QUEUE_PREFIX,
    "RECORD_PREFIX": RECORD_PREFIX,
    "RECORD_TTL_S": RECORD_TTL_S,
    "REMOVED_AGAIN_S": REMOVED_AGAIN_S,
    "ROTATION_PREFIX": ROTATION_PREFIX,
    "SHARD_IMAGES": SHARD_IMAGES,
    "SHARD_PREFIX": SHARD_PREFIX,
    "SHORT_QUEUE": SHORT_QUEUE,
    "STARTED_PREFIX": STARTED_PREFIX,
    "STONES": STONES,
    "UNFINISHED_TTL_S": UNFINISHED_TTL_S,
    "WEBHOOK_LANE_PREFIX": WEBHOOK_LANE_PREFIX,
    "WEBHOOK_OWNERS": WEBHOOK_OWNERS,
    "WEBHOOK_RECEIVERS_PREFIX": WEBHOOK_RECEIVERS_PREFIX,
}
FOLDER = files("worker.jobs") / "lua"

_SECTION = re.compile(r"(KEYS|ARGV|RESULT):$")
_LIST = re.compile(r"(include|constants): (.+)$")
_PARAMETER = re.compile(r"  (\w+)([?*]?)(?:\(([\w, ]+)\))?: \S")


class BadHeader(ValueError):
    """A line of the comment at the top of a script is not as this module reads it."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """What a script takes under one name."""

    name: str
    kind: Literal["", "?", "*"]
    group: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Header:
    """The comment at the top of a file of Lua."""

    about: str
    keys: tuple[Parameter, ...]
    args: tuple[Parameter, ...]
    result: str
    includes: tuple[str, ...]
    constants: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Header:
        """Read the comment lines with which `text` begins.

        Raises:
            BadHeader: a line is none of those that the module's docstring shows.
        """
        sections: dict[str, list[str]] = {"": [], "KEYS": [], "ARGV": [], "RESULT": []}
        lists: dict[str, list[str]] = {"include": [], "constants": []}
        section = ""
        for line in _comment_lines(text):
            if found := _SECTION.match(line):
                section = found[1]
            elif found := _LIST.match(line):
                lists[found[1]] += found[2].split(", ")
            elif section and line and not line.startswith("  "):
                raise BadHeader(f"{line!r} belongs to no section; indent it by two spaces")
            else:
                sections[section].append(line)
        return cls(
            about="\n".join(sections[""]).strip(),
            keys=_parameters(sections["KEYS"]),
            args=_parameters(sections["ARGV"]),
            result="\n".join(sections["RESULT"]).strip(),
            includes=tuple(lists["include"]),
            constants=tuple(lists["constants"]),
        )


class Script:
    """A script that can be called: the code of one file and of all that it includes."""

    def __init__(
        self, name: str, code: str, keys: Sequence[Parameter], args: Sequence[Parameter]
    ) -> None:
        self.name = name
        # redis-py's pipelines read these two.
        self.script = code
        self.sha = sha1(code.encode()).hexdigest()
        self._keys = _bare_first(keys)
        self._args = _bare_first(args)
        self._names = {parameter.name for parameter in (*keys, *args)}

    def call(self, client: Client, **named: Argument) -> Any:
        """Run the script by its hash (EVALSHA), which sends none of its text.

        A client sends the text after all if the server does not know it yet. A pipeline asks the
        server before it runs, which is one round trip more.

        Returns:
            What the script returns; an awaitable of it for a client of asyncio.

        Raises:
            TypeError: a key or an argument is missing, or is not in the script's header.
            RedisError: what redis-py raises.
        """
        arguments = self._positional(named)
        if isinstance(client, Pipeline | AsyncPipeline):
            cast("set[Any]", client.scripts).add(self)
            return client.evalsha(self.sha, *arguments)
        if isinstance(client, AsyncRedis):
            return self._call_async(client, arguments)
        try:
            return client.evalsha(self.sha, *arguments)
        except NoScriptError:
            return client.eval(self.script, *arguments)

    def eval(self, client: Client, **named: Argument) -> Any:
        """Run the script by its text (EVAL), which is one round trip always, also in a pipeline.

        Returns:
            What the script returns; an awaitable of it for a client of asyncio.

        Raises:
            TypeError: a key or an argument is missing, or is not in the script's header.
            RedisError: what redis-py raises.
        """
        return client.eval(self.script, *self._positional(named))

    def call_each(self, pipe: Pipeline, calls: Iterable[Mapping[str, Argument]]) -> None:
        """Buffer a run of the script for each set of keys and arguments, in their order.

        The first one sends the text, and so no other command has to ask whether the server knows
        the script: all of them are one round trip. The answers are those of the pipeline.

        Raises:
            TypeError: a key or an argument is missing, or is not in the script's header.
        """
        for number, named in enumerate(calls):
            arguments = self._positional(named)
            if number:
                pipe.evalsha(self.sha, *arguments)
            else:
                pipe.eval(self.script, *arguments)

    async def _call_async(self, client: AsyncRedis, arguments: Sequence[Any]) -> Any:
        try:
            return await cast("Any", client.evalsha(self.sha, *arguments))
        except NoScriptError:
            return await cast("Any", client.eval(self.script, *arguments))

    def _positional(self, named: Mapping[str, Argument]) -> list[Any]:
        """Return the number of keys, the keys, and the arguments."""
        keys = self._values(self._keys, named)
        args = self._values(self._args, named)
        if not named.keys() <= self._names:
            raise TypeError(f"{self.name} takes no {', '.join(named.keys() - self._names)}")
        return [len(keys), *keys, *args]

    def _values(
        self, parameters: tuple[list[str], list[Parameter]], named: Mapping[str, Argument]
    ) -> list[Value]:
        bare, others = parameters
        values: list[Any] = [named.get(name) for name in bare]
        if None in values:
            raise TypeError(f"{self.name} is called without {bare[values.index(None)]}")
        for parameter in others:
            name, kind, group = parameter.name, parameter.kind, parameter.group
            given: Any = named.get(name)
            if given is None:
                if kind != "?":
                    raise TypeError(f"{self.name} is called without {name}")
            elif group:
                for values_of_one in given:
                    if len(values_of_one) != len(group):
                        raise TypeError(f"{self.name} takes {name} of {', '.join(group)}")
                    values += values_of_one
            elif kind == "*":
                values += given
            else:
                values.append(given)
        return values


def _bare_first(parameters: Sequence[Parameter]) -> tuple[list[str], list[Parameter]]:
    """Cut parameters into the names of those before the first one with `?` or `*`, and the rest."""
    bare = list(takewhile(lambda parameter: not parameter.kind, parameters))
    return [parameter.name for parameter in bare], list(parameters[len(bare) :])


@cache
def load(name: str) -> Script:
    """Return the script of worker/jobs/lua/`name`.lua.

    Raises:
        BadHeader: of this file or of one that it includes.
        FileNotFoundError: there is no such file.
    """
    parts = list(_with_includes(name))
    headers = [Header.parse(text) for text in parts]
    constants = dict.fromkeys(constant for header in headers for constant in header.constants)
    values = [f"local {constant} = {json.dumps(CONSTANTS[constant])}" for constant in constants]
    return Script(
        name,
        "\n".join([*values, *map(_code, parts)]),
        [key for header in headers for key in header.keys],
        [arg for header in headers for arg in header.args],
    )


def _with_includes(name: str) -> Iterable[str]:
    """Yield the texts of the files that `name` includes, each once, and its own at the end."""
    included: dict[str, str] = {}

    def include(path: str) -> None:
        text = (FOLDER / f"{path}.lua").read_text()
        for other in Header.parse(text).includes:
            if f"shared/{other}" not in included:
                include(f"shared/{other}")
        included[path] = text

    include(name)
    return included.values()


def _code(text: str) -> str:
    """Return `text` without comments and indentation: fewer bytes to send and to hash."""
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("--"))


def _comment_lines(text: str) -> Iterable[str]:
    for line in text.splitlines():
        if not line.startswith("--"):
            return
        yield line.removeprefix("--").removeprefix(" ")


def _parameters(lines: Iterable[str]) -> tuple[Parameter, ...]:
    """Read the lines of a section; those that are indented further continue the one before."""
    parameters = []
    for line in lines:
        if line.startswith("   ") or not line:
            continue
        if not (found := _PARAMETER.match(line)):
            raise BadHeader(f"{line!r} is no parameter; write `name: what it is`")
        name, kind, group = found.groups()
        parts = tuple(part.strip() for part in group.split(",")) if group else ()
        parameters.append(Parameter(name, cast("Any", kind), parts))
    return tuple(parameters)
