"""Log lines: what each of them says, and how it is written.

Every process writes one line for each event to stderr, as JSON or for people. A line has a time, a
level, a logger, an event's name and a message. `event` gives it the name and fields of its own,
`bound` the fields of what is at hand, such as a job or a request. Lines of libraries go the same
way, and have the event `library`.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import lru_cache
from select import PIPE_BUF
from types import MappingProxyType, TracebackType
from typing import Annotated, Literal
from urllib.parse import quote, unquote, urlsplit

from pydantic import BeforeValidator

LogFormat = Literal["auto", "json", "console"]
_Level = Literal["debug", "info", "warning", "error"]
LogLevel = Annotated[
    _Level, BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value)
]

# What a line of a library has for an event.
LIBRARY = "library"
# Below this level libraries say nothing, whatever DDPM_LOG_LEVEL is.
_LIBRARIES = logging.INFO
# These write a line for each request that they send, with its URL.
_TALKATIVE = ("httpcore", "httpx")
_OURS = ("app", "cli", "models", "worker")
# A shorter secret would be found in words.
_SHORTEST_SECRET = 6
_USER_INFO = re.compile(r"([A-Za-z][\w+.-]*://)[^\s/\"'@]*@")
_QUERY = re.compile(r"(https?://[^\s\"'?]*)\?[^\s\"']*")
_LINK = re.compile(r"\b(link=)[^\s\"'&]+")
_BEARER = re.compile(r"(?i)\b(bearer\s+)[^\s\"',]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")

log = logging.getLogger(__name__)
_fields: ContextVar[Mapping[str, object]] = ContextVar("fields", default=MappingProxyType({}))
# Where the lines of a block are gathered that are written together.
_gathered: ContextVar[list[str] | None] = ContextVar("gathered", default=None)
# Fields of every line of this process.
_process: dict[str, object] = {}


def event(name: str, **fields: object) -> dict[str, object]:
    """Return the `extra` of a log call: the event's name, and fields of the line.

    A name is a noun and what became of it, such as `job.submitted`. It never changes, because
    queries and alerts look for it. docs/reference/log-events.md lists them all.
    """
    return {"event": name, "fields": fields}


@contextmanager
def bound(**fields: object) -> Iterator[None]:
    """Give each line within the block these fields, in this thread or task."""
    token = _fields.set({**_fields.get(), **fields})
    try:
        yield
    finally:
        _fields.reset(token)


def bind(**fields: object) -> None:
    """Give each further line of this task these fields: those of a request, say."""
    _fields.set({**_fields.get(), **fields})


def bound_fields() -> Mapping[str, object]:
    """Return the fields that lines of this thread or task have."""
    return _fields.get()


@contextmanager
def together() -> Iterator[None]:
    """Write the lines of the block at its end, in few calls.

    After each call a thread waits for its turn to run Python, so the block is to be short, and to
    call nothing that waits.
    """
    lines: list[str] = []
    token = _gathered.set(lines)
    try:
        yield
    finally:
        _gathered.reset(token)
        # As in `_ToStderr.emit`.
        with suppress(Exception):
            for piece in _pieces(lines):
                sys.stderr.write(piece)


def configure(
    chosen: LogFormat, level: _Level, *, secrets: Iterable[str] = (), **process: object
) -> None:
    """Have all loggers of this process write to stderr.

    Args:
        chosen: json, console, or auto: console on a terminal, else json.
        level: The least level of lines that are written.
        secrets: Values that no line may hold; *** stands in their place.
        process: Fields of every line, such as the worker's name.
    """
    _process.clear()
    _process.update(process)
    scrub = Scrubber(secrets)
    is_console = chosen == "console" or (chosen == "auto" and sys.stderr.isatty())
    handler = _ToStderr()
    handler.setFormatter(ConsoleFormatter(scrub) if is_console else JsonFormatter(scrub))
    root = logging.getLogger()
    for former in [each for each in root.handlers if isinstance(each, _ToStderr)]:
        root.removeHandler(former)
    root.addHandler(handler)
    number = logging.getLevelNamesMapping()[level.upper()]
    root.setLevel(max(number, _LIBRARIES))
    for name in _OURS:
        logging.getLogger(name).setLevel(number)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))
    # No line says where in the code it comes from, or in which thread: to find out takes a third of
    # its time. https://docs.python.org/3/howto/logging.html#optimization
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    # A line that cannot be written, as stderr is closed, costs nobody an answer.
    logging.raiseExceptions = False
    logging.captureWarnings(True)
    sys.excepthook = _log_failure
    threading.excepthook = _log_thread_failure


def url_secrets(*urls: str) -> list[str]:
    """Return the passwords in URLs, as they stand there and as they are meant."""
    passwords = [password for url in urls if (password := _password(url))]
    return [*passwords, *map(unquote, passwords)]


def _password(url: str) -> str | None:
    try:
        return urlsplit(url).password
    # A URL that cannot be parsed is refused by whoever uses it.
    except ValueError:
        return None


class Scrubber:
    """Takes secrets out of lines: values that are known, and what looks like one."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        """Take the values that no line may hold."""
        forms = {
            form
            for secret in secrets
            if len(secret) >= _SHORTEST_SECRET
            for form in (
                secret,
                json.dumps(secret)[1:-1],
                repr(secret)[1:-1],
                quote(secret),
                quote(secret, safe=""),
            )
        }
        longest_first = sorted(forms, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, longest_first))) if forms else None

    def __call__(self, line: str) -> str:
        """Return the line with *** in the place of secrets."""
        if self._known:
            line = self._known.sub("***", line)
        if "://" in line:
            line = _QUERY.sub(r"\1?***", _USER_INFO.sub(r"\1***@", line))
        if "link=" in line:
            line = _LINK.sub(r"\1***", line)
        if "earer" in line or "EARER" in line:
            line = _BEARER.sub(r"\1***", line)
        return line


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON in ASCII."""

    def __init__(self, scrub: Scrubber) -> None:
        """Take what removes secrets."""
        super().__init__()
        self._scrub = scrub
        # The encoder of `json.dumps` would be made anew for each line.
        self._encode = json.JSONEncoder(default=str).encode

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without a line feed."""
        line: dict[str, object] = {
            "time": _time(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.__dict__.get("event", LIBRARY),
            "message": record.getMessage(),
            **_process,
            **_fields.get(),
            **record.__dict__.get("fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return self._scrub(self._encode(line))


class ConsoleFormatter(logging.Formatter):
    """Writes a record for people: time, level, event, message, and the fields that are new."""

    def __init__(self, scrub: Scrubber) -> None:
        """Take what removes secrets."""
        super().__init__()
        self._scrub = scrub

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and a traceback below it if there is one."""
        message = _CONTROL.sub(lambda found: repr(found[0])[1:-1], record.getMessage())
        fields = {**_fields.get(), **record.__dict__.get("fields", {})}
        about = "".join(
            f" {name}={value}" for name, value in fields.items() if str(value) not in message
        )
        line = (
            f"{_time(record.created)[11:-1]} {record.levelname:<7} "
            f"{record.__dict__.get('event', record.name)}: {message}{about}"
        )
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return self._scrub(line)


class _ToStderr(logging.Handler):
    """Writes lines to what `sys.stderr` is at the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, in one call: several processes may share a pipe."""
        try:
            line = self.format(record) + "\n"
            if (gathered := _gathered.get()) is not None:
                gathered.append(line)
            else:
                sys.stderr.write(line)
        # Whatever is wrong with a line, it must not end what it tells of.
        except Exception:
            self.handleError(record)


def _pieces(lines: Iterable[str]) -> Iterator[str]:
    """Put lines together that a pipe takes in one piece; a longer line stays alone."""
    piece = ""
    for line in lines:
        if piece and len(piece) + len(line) > PIPE_BUF:
            yield piece
            piece = ""
        piece += line
    if piece:
        yield piece


def _time(seconds: float) -> str:
    whole = int(seconds)
    return f"{_second(whole)}.{int((seconds - whole) * 1000):03d}Z"


@lru_cache(maxsize=8)
def _second(whole: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))


def _log_failure(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    log.critical(
        "the process ends: %s", error, exc_info=(kind, error, trace), extra=event("process.failed")
    )


def _log_thread_failure(failed: threading.ExceptHookArgs) -> None:
    error = failed.exc_value
    name = failed.thread.name if failed.thread else "unnamed"
    if error is not None and not isinstance(error, SystemExit):
        log.error(
            "the thread %s ends: %s", name, error, exc_info=error, extra=event("thread.failed")
        )
