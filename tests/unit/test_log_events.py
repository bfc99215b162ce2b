"""The names of events in log lines, in the code and in docs/reference/log-events.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "log-events.md"
LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "log"}
NAME = re.compile(r"[a-z]+\.[a-z]+(_[a-z]+)*")


def log_calls() -> Iterator[tuple[str, ast.Call]]:
    """Yield where each call of a module's `log` is, and the call."""
    for package in ("app", "cli", "models", "worker"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Attribute)
                    and node.func.attr in LEVELS
                    and isinstance(node.func.value, ast.Name)
                    and node.func.value.id == "log"
                ):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def names_in(call: ast.Call) -> set[str]:
    """Return the names of the call's event: two where a condition chooses one."""
    extras = [keyword.value for keyword in call.keywords if keyword.arg == "extra"]
    if not extras or not isinstance(extras[0], ast.Call) or not extras[0].args:
        return set()
    name = extras[0].args[0]
    chosen = [name.body, name.orelse] if isinstance(name, ast.IfExp) else [name]
    return {each.value for each in chosen if isinstance(each, ast.Constant)}


def test_every_log_call_names_its_event():
    without = [where for where, call in log_calls() if not names_in(call)]
    assert without == []


def test_a_name_is_a_noun_and_what_became_of_it():
    names = {name for _, call in log_calls() for name in names_in(call)}
    assert len(names) > 50
    assert [name for name in names if not NAME.fullmatch(name)] == []


def test_the_page_lists_exactly_the_events_that_there_are():
    listed = re.findall(r"^\| `([a-z_.]+)` \|", PAGE.read_text(), re.MULTILINE)
    names = {name for _, call in log_calls() for name in names_in(call)}
    assert len(listed) == len(set(listed))
    assert set(listed) - {"library"} == names
