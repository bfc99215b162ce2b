"""The Lua files and their headers, which the loader reads."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.support.processes import ROOT
from worker.jobs import scripts
from worker.jobs.scripts import BadHeader, Header, Parameter, Script, load

LUA = ROOT / "worker" / "jobs" / "lua"
SCRIPTS = sorted(path.stem for path in LUA.glob("*.lua"))
SHARED = sorted(f"shared/{path.stem}" for path in LUA.glob("shared/*.lua"))
_LOADED = re.compile(r'\bload\("(\w+)"\)')
_WORD = re.compile(r"[A-Za-z_]\w*")
_CALL = re.compile(r"(?<![\w.])(\w+)\(")
_TOP_LEVEL = re.compile(r"^local (?:function (\w+)|([\w, ]+) =)", re.MULTILINE)


def header(name: str) -> Header:
    return Header.parse((LUA / f"{name}.lua").read_text())


def code(name: str) -> str:
    lines = (LUA / f"{name}.lua").read_text().splitlines()
    return re.sub(r"'[^']*'", "''", "\n".join(line.partition("--")[0] for line in lines))


def defined(name: str) -> set[str]:
    """Names that a file defines outside its functions."""
    found = _TOP_LEVEL.findall(code(name))
    return {word for function, names in found for word in _WORD.findall(function + names)}


def included(name: str) -> list[str]:
    """Shared files that a script includes, and those that they include."""
    direct = [f"shared/{other}" for other in header(name).includes]
    return [*direct, *(other for each in direct for other in included(each))]


def test_every_lua_file_is_loaded_or_included() -> None:
    modules = [*ROOT.glob("app/**/*.py"), *ROOT.glob("worker/**/*.py")]
    loaded = {name for path in modules for name in _LOADED.findall(path.read_text())}
    assert loaded == set(SCRIPTS)
    assert {shared for name in SCRIPTS for shared in included(name)} == set(SHARED)


def test_no_module_holds_lua() -> None:
    modules = [path for room in ("app", "worker", "cli") for path in ROOT.glob(f"{room}/**/*.py")]
    assert not [path for path in modules if "redis.call" in path.read_text()]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_header_says_what_a_script_does_and_returns(name: str) -> None:
    assert header(name).about
    assert header(name).result
    assert load(name).name == name


@pytest.mark.parametrize("name", [*SCRIPTS, *SHARED])
def test_a_header_names_the_constants_and_functions_that_its_code_uses(name: str) -> None:
    constants = set(_WORD.findall(code(name))) & set(scripts.CONSTANTS)
    assert set(header(name).constants) == constants
    shared = {word for other in SHARED for word in defined(other)}
    given = {word for other in included(name) for word in defined(other)}
    own = defined(name)
    assert set(_CALL.findall(code(name))) & shared <= given | own


@pytest.mark.skipif(not shutil.which("luacheck"), reason="luacheck is not installed")
def test_luacheck_finds_no_unknown_name_in_scripts_with_their_includes(tmp_path: Path) -> None:
    for name in SCRIPTS:
        (tmp_path / f"{name}.lua").write_text(load(name).script + "\n")
    config = ROOT / ".luacheckrc"
    # A script need not use all that it includes, and its file was checked for long lines.
    command = ["luacheck", "--quiet", "--config", config, "--ignore", "211", "631", "--", tmp_path]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_luacheck_knows_the_names_that_the_loader_puts_before_a_script() -> None:
    text = (ROOT / ".luacheckrc").read_text()
    listed = set(re.findall(r'"(\w+)"', text.partition('files["worker/jobs/lua"]')[2]))
    needed = {word for shared in SHARED for word in defined(shared)} | set(scripts.CONSTANTS)
    assert listed - {"211"} == needed


def test_the_wheel_holds_the_lua_files() -> None:
    """Hatch takes every file of a package that git does not ignore."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert "worker" in wheel["targets"]["wheel"]["packages"]
    assert not any("exclude" in target for target in wheel["targets"].values())
    command = ["git", "check-ignore", *map(str, LUA.glob("**/*.lua"))]
    if Path(ROOT, ".git").exists():
        ignored = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert ignored.stdout == ""


def test_a_header_is_read_with_its_parameters() -> None:
    text = """-- Does something.
-- And more.
--
-- KEYS:
--   record: hash of the job,
--     with a second line
--   jobs*(record, hashes): of each job
-- ARGV:
--   lease?: an execution
--   ids*: of the jobs
-- RESULT:
--   nothing
-- include: now, alive
-- constants: CHANGES
-- include: requeue

-- a comment of the code
return 1
"""
    assert Header.parse(text) == Header(
        about="Does something.\nAnd more.",
        keys=(Parameter("record", ""), Parameter("jobs", "*", ("record", "hashes"))),
        args=(Parameter("lease", "?"), Parameter("ids", "*")),
        result="nothing",
        includes=("now", "alive", "requeue"),
        constants=("CHANGES",),
    )


@pytest.mark.parametrize("line", ["  record", "  two words: of it", "record: not indented"])
def test_a_header_that_cannot_be_read_is_refused(line: str) -> None:
    with pytest.raises(BadHeader, match=line.strip()):
        Header.parse(f"-- KEYS:\n-- {line}\n")


class Recorder:
    """A client that keeps what it was asked to run."""

    def __init__(self) -> None:
        self.sent: tuple[object, ...] = ()

    def eval(self, *arguments: object) -> None:
        self.sent = arguments


SCRIPT = Script(
    "a_script",
    "return 1",
    [Parameter("record", ""), Parameter("jobs", "*", ("record", "hashes"))],
    [Parameter("lease", "?"), Parameter("ids", "*")],
)


def sent(**named: object) -> tuple[object, ...]:
    client = Recorder()
    SCRIPT.eval(client, **named)
    return client.sent[1:]


def test_a_script_gets_its_keys_and_arguments_in_the_order_of_its_header() -> None:
    groups = [("a", "b"), ("c", "d")]
    assert sent(ids=[7, 8], lease="l", jobs=groups, record="r") == (5, *"rabcd", "l", 7, 8)
    assert sent(record="r", jobs=[], ids=iter([7]), lease=None) == (1, "r", 7)
    assert sent(record="r", jobs={"a": "b"}.items(), ids=[]) == (3, *"rab")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"record": None}, "called without record"),
        ({"ids": None}, "called without ids"),
        ({"other": 1}, "takes no other"),
        ({"jobs": [("a",)]}, "takes jobs of record, hashes"),
    ],
)
def test_a_script_refuses_names_that_its_header_lacks(change: dict, text: str) -> None:
    with pytest.raises(TypeError, match=f"a_script .*{text}|a_script is {text}"):
        sent(**{"record": "r", "jobs": [], "ids": []} | change)


def test_a_shared_file_is_there_once_and_before_the_script() -> None:
    text = load("start_job").script
    assert text.count("local function now()") == 1
    assert text.index("local function now()") < text.index("local function finish(to)")
    assert text.index("local function finish(to)") < text.index("local leases")
    assert 'local CHANGES = "ddpm:changes"' in text
    assert text.count("local CHANGES =") == 1
    assert "--" not in re.sub(r"'[^']*'", "", text)
