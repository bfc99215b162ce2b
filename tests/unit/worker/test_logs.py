from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from select import PIPE_BUF
from types import SimpleNamespace

import pytest

from worker.logs import (
    ConsoleFormatter,
    JsonFormatter,
    Scrubber,
    bound,
    configure,
    event,
    together,
)

log = logging.getLogger("worker.of_a_test")


Lines = Callable[[], list[dict[str, object]]]


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Iterator[Lines]:
    """A call that returns what was written to stderr. Whatever `configure` sets is set back."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    hooks = sys.excepthook, threading.excepthook
    found = logging._srcfile, logging.logThreads
    names = ("app", "cli", "models", "worker", "httpx", "httpcore")
    levels = {name: logging.getLogger(name).level for name in names}
    yield lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    root.handlers = handlers
    root.setLevel(level)
    sys.excepthook, threading.excepthook = hooks
    logging._srcfile, logging.logThreads = found
    logging.logProcesses = logging.logMultiprocessing = logging.raiseExceptions = True
    logging.captureWarnings(False)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)


def record_of(message: str, *args: object, **extra: object) -> logging.LogRecord:
    return log.makeRecord(log.name, logging.WARNING, "f", 1, message, args, None, extra=extra)


def test_a_json_line_has_time_level_logger_event_message_and_fields(lines: Lines):
    configure("json", "info", worker="box-cpu")
    log.info("shard %s is done", "a-1", extra=event("shard.done", shard="a-1", images=3))
    [line] = lines()
    assert str(line.pop("time")).endswith("Z")
    assert line == {
        "level": "info",
        "logger": "worker.of_a_test",
        "event": "shard.done",
        "message": "shard a-1 is done",
        "worker": "box-cpu",
        "shard": "a-1",
        "images": 3,
    }


def test_lines_of_libraries_go_the_same_way(lines: Lines):
    configure("json", "info")
    logging.getLogger("rq.worker").info("a line of another package")
    assert [line["event"] for line in lines()] == ["library"]


def test_debug_is_for_our_own_loggers_only(lines: Lines):
    configure("json", "debug")
    log.debug("ours", extra=event("test.seen"))
    logging.getLogger("asyncio").debug("theirs")
    logging.getLogger("httpx").info("HTTP Request: GET http://x/?token=a")
    assert [line["message"] for line in lines()] == ["ours"]


def test_an_error_takes_its_traceback_along_in_the_same_line(lines: Lines):
    configure("json", "info")
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("it failed", extra=event("test.failed"))
    [line] = lines()
    assert "ValueError: broken" in str(line["exception"])


def test_fields_are_bound_to_a_thread_for_the_length_of_a_block(lines: Lines):
    configure("json", "info")
    with bound(job="j1"):
        with bound(shard="j1-0"):
            log.info("inside", extra=event("test.seen"))
            other = threading.Thread(target=log.info, args=("elsewhere",))
            other.start()
            other.join()
        log.info("outside", extra=event("test.seen"))
    told = {str(line["message"]): (line.get("job"), line.get("shard")) for line in lines()}
    assert told == {
        "inside": ("j1", "j1-0"),
        "elsewhere": (None, None),
        "outside": ("j1", None),
    }


def test_lines_of_a_block_are_written_at_its_end_in_pieces_that_pipes_take(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
):
    configure("json", "info")
    written: list[str] = []
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(write=written.append))

    def fail_at_the_end() -> None:
        with together():
            for number in range(40):
                log.info("line %d", number)
            log.info("x" * 2 * PIPE_BUF)
            assert written == []
            raise KeyError

    with pytest.raises(KeyError):
        fail_at_the_end()
    log.info("after")
    assert [json.loads(line)["message"] for line in "".join(written).splitlines()] == [
        *(f"line {number}" for number in range(40)),
        "x" * 2 * PIPE_BUF,
        "after",
    ]
    assert len(written) <= 5
    assert sum(len(piece) > PIPE_BUF for piece in written) == 1


def test_a_configuration_takes_the_place_of_the_one_before(lines: Lines):
    configure("json", "info")
    configure("json", "info")
    log.info("once", extra=event("test.seen"))
    assert len(lines()) == 1


def test_auto_is_json_where_stderr_is_no_terminal(lines: Lines):
    configure("auto", "info")
    log.info("hello", extra=event("test.seen"))
    assert lines()[0]["message"] == "hello"


def test_a_console_line_shows_what_the_message_does_not():
    record = record_of("job %s failed", "j1", **event("job.failed", job="j1", reason="lost"))
    line = ConsoleFormatter(Scrubber()).format(record)
    assert line.endswith("WARNING job.failed: job j1 failed reason=lost")


def test_control_characters_forge_no_line():
    hostile = "x\n2026 ERROR forged\x1b[31m\u2028y"
    console = ConsoleFormatter(Scrubber()).format(record_of("%s", hostile))
    assert not set(console) & {"\n", "\x1b", "\u2028"}
    as_json = JsonFormatter(Scrubber()).format(record_of("%s", hostile))
    assert len(as_json.splitlines()) == 1
    assert json.loads(as_json)["message"] == hostile


@pytest.mark.parametrize(
    ("said", "written"),
    [
        ("cannot reach redis://me:hunter2@host:6379/0", "cannot reach redis://***@host:6379/0"),
        ("GET https://host/hook?token=s3cret failed", "GET https://host/hook?*** failed"),
        ("sent Authorization: Bearer abc.def", "sent Authorization: Bearer ***"),
        (
            "GET /v1/jobs/1/grid?link=17.ab.cd_e-f&preview=1",
            "GET /v1/jobs/1/grid?link=***&preview=1",
        ),
        ('the password is "pa/ss w\u00f6rd" here', 'the password is "***" here'),
        ("quoted as pa%2Fss%20w%C3%B6rd", "quoted as ***"),
        ("nothing secret: 3 images at 12:30, see http://host/path", None),
    ],
)
def test_no_line_holds_a_secret(said: str, written: str | None):
    scrub = Scrubber(["pa/ss w\u00f6rd", "abc"])
    as_json = JsonFormatter(scrub).format(record_of("%s", said, **event("test.seen", also=said)))
    line = json.loads(as_json)
    assert (line["message"], line["also"]) == (written or said,) * 2
    assert (written or said) in ConsoleFormatter(scrub).format(record_of("%s", said))


def test_a_process_that_ends_by_an_error_says_so_in_a_line():
    program = """
from worker.logs import configure
configure("json", "info", worker="w")
raise ValueError("redis://me:hunter2@host is wrong")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    line = json.loads(ended.stderr)
    assert (ended.returncode, line["event"], line["worker"]) == (1, "process.failed", "w")
    assert "hunter2" not in ended.stderr


def test_a_closed_stderr_ends_nothing():
    program = """
import logging, os
from worker.logs import configure, event, together
configure("json", "info")
os.close(2)
logging.getLogger("app").info("unheard", extra=event("test.seen"))
with together():
    logging.getLogger("app").info("unheard", extra=event("test.seen"))
print("alive")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.stdout == "alive\n"
