"""Each rule of tools/check_structure.py, broken and kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.check_structure import RULES, Repository, main

A_LUA_HEADER = "-- Reads.\n-- KEYS:\n--   record: hash\n-- RESULT:\n--   its state\n"
REDIS_CALL = ".".join(["redis", "call"])
FIVE_PRIVATE_USES = "x._a + x._b + x.y._c + x._d() + f()._e\n"

BROKEN = [
    (
        "folder-size",
        {f"app/m{i}.py": "" for i in range(13)},
        "app:1: the folder holds 13 modules, more than 12",
    ),
    (
        "folder-size",
        {f"worker/process/m{i}.py": "" for i in range(16)},
        "worker/process:1: the folder holds 16 modules, more than 15",
    ),
    (
        "class-names",
        {"app/a.py": "class Store: ...\n", "worker/b.py": "\nclass Store: ...\n"},
        "worker/b.py:2: the class Store has the name of the one at app/a.py:1",
    ),
    (
        "standard-library-names",
        {"worker/jobs/queue.py": ""},
        "worker/jobs/queue.py:1: the module has the name",
    ),
    (
        "lua-in-python",
        {"app/a.py": f'x = """\n{REDIS_CALL}("GET", KEYS[1])"""\n'},
        f"app/a.py:2: `{REDIS_CALL}` stands in a Python file",
    ),
    ("built-names", {"app/a.py": "getattr(x, f'_{name}')\n"}, "by the built name `f'_{name}'`"),
    (
        "built-names",
        {"app/a.py": "def f():\n    n = 'on_' + e\n    setattr(x, n, 1)\n"},
        "app/a.py:3: an attribute",
    ),
    ("built-names", {"app/a.py": "operator.attrgetter('%s_s' % x)\n"}, "by the built name"),
    (
        "docstring-prepositions",
        {"app/a.py": 'class A:\n    """Of the worker."""\n'},
        "app/a.py:2: the docstring's first word is the preposition 'Of'",
    ),
    ("docstring-prepositions", {"app/a.py": '"""`Until` it ends."""\n'}, "preposition 'Until'"),
    ("line-length", {"app/a.py": "#" * 101}, "app/a.py:1: the line has 101 columns, more than 100"),
    (
        "test-names",
        {"tests/a.py": f"def test_{'a' * 76}(): ...\n"},
        "has 81 characters, more than 80",
    ),
    (
        "test-names",
        {"tests/a.py": "async def test_what_is_sent(): ...\n"},
        "test_what_is_sent begins with test_what_",
    ),
    (
        "private-access",
        {"tests/a.py": FIVE_PRIVATE_USES * 2, "tests/b.py": "x._f\n"},
        "tests/b.py:1: a test uses the private attribute `x._f` (11 in all tests, more than 10)",
    ),
    (
        "lua-headers",
        {"worker/jobs/lua/take.lua": "-- KEYS: record\nreturn KEYS[1] .. ARGV[1]\n"},
        "worker/jobs/lua/take.lua:1: the comment at its head does not name ARGV, RESULT",
    ),
    (
        "lua-headers",
        {"worker/jobs/lua/shared/now.lua": "local function now() end\n"},
        "worker/jobs/lua/shared/now.lua:1: the comment at its head does not name its purpose",
    ),
]
KEPT = [
    (
        "folder-size",
        {f"app/m{i}.py": "" for i in range(12)} | {"app/__init__.py": "", "app/http/m.py": ""},
    ),
    ("folder-size", {f"tests/m{i}.py": "" for i in range(13)}),
    ("class-names", {"app/a.py": "class _Store: ...\n", "worker/b.py": "class _Store: ...\n"}),
    ("standard-library-names", {"app/__main__.py": "", "app/__init__.py": "", "app/queues.py": ""}),
    ("lua-in-python", {"worker/jobs/lua/take.lua": REDIS_CALL, "tests/a.py": f"'{REDIS_CALL}'"}),
    (
        "built-names",
        {"app/a.py": "for n in ('a', 'b'):\n    getattr(x, n)\ngetattr(x, 'a', None)\n"},
    ),
    ("built-names", {"app/a.py": "def f():\n    n = f'{x}'\ndef g(n):\n    getattr(x, n)\n"}),
    ("docstring-prepositions", {"app/a.py": '"""Write what lies below."""\ndef f(): ...\n'}),
    ("line-length", {"app/a.py": "#" * 100}),
    ("test-names", {"tests/a.py": f"def test_{'a' * 75}(): ...\ndef test_items_are_sent(): ...\n"}),
    ("private-access", {"tests/a.py": FIVE_PRIVATE_USES * 2 + "self._f\ncls._g\nx.__class__\n"}),
    ("lua-headers", {"worker/jobs/lua/take.lua": A_LUA_HEADER + "return KEYS[1]\n"}),
    ("lua-headers", {"worker/jobs/lua/shared/now.lua": "-- The time.\nlocal function now() end\n"}),
]


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(("rule", "files", "message"), BROKEN)
def test_a_rule_says_where_it_is_broken(rule, files, message, tmp_path):
    assert message in "\n".join(map(str, RULES[rule](Repository(write(tmp_path, files)))))


@pytest.mark.parametrize(("rule", "files"), KEPT)
def test_a_rule_is_silent_where_it_is_kept(rule, files, tmp_path):
    assert list(RULES[rule](Repository(write(tmp_path, files)))) == []


def test_every_rule_has_a_tree_that_breaks_it():
    assert {rule for rule, *_ in BROKEN} == {rule for rule, _ in KEPT} == set(RULES)


def test_the_command_counts_violations_by_rule_and_fails(tmp_path, capsys):
    write(tmp_path, {"app/a.py": "#" * 101, "app/queue.py": ""})
    assert main(["--root", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "[line-length]" in printed
    assert printed.endswith("structure: standard-library-names 1, line-length 1\n")


def test_the_command_checks_only_the_rules_that_it_is_given(tmp_path, capsys):
    write(tmp_path, {"app/a.py": "#" * 101})
    assert main(["--root", str(tmp_path), "--only", "test-names", "folder-size"]) == 0
    assert capsys.readouterr().out == "structure: 2 rules hold\n"
