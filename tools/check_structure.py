"""Rules of this repository's structure that no linter has. `make check` runs them all.

`python -m tools.check_structure` checks every rule, `--only RULE` some, `--list` names them.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PRODUCT = ("app", "worker", "models", "cli", "bench")
CODE = (*PRODUCT, "tests", "tools", "docker", "docs", "hatch_build.py")

MOST_MODULES = 12
MORE_MODULES = {"worker/process": 15}
MOST_COLUMNS = 100
MOST_TEST_NAME = 80
MOST_PRIVATE_ACCESSES = 10
NO_SUBJECTS = ("test_it_", "test_what_", "test_who_")
PREPOSITIONS = """
    aboard about above according across after against along alongside amid among around as at atop
    before behind below beneath beside besides between beyond by concerning despite down during
    except for from in inside into like near of off on onto opposite out outside over past per
    regarding since than through throughout till to toward towards under underneath unlike until
    unto up upon versus via with within without
"""
_BY_NAME = {"getattr", "setattr", "hasattr", "delattr"}
_BY_NAMES = {"attrgetter", "methodcaller"}


@dataclass(frozen=True, slots=True)
class Violation:
    """One breach of a rule: where it is, the fact with its value, and the remedy."""

    path: str
    line: int
    fact: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.fact}; {self.remedy}"


@dataclass(frozen=True)
class Module:
    """A Python file. `path` is relative to the root, with slashes."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def folder(self) -> str:
        return self.path.rpartition("/")[0]

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2].removesuffix(".py")

    @property
    def is_product(self) -> bool:
        return self.path.split("/")[0] in PRODUCT

    @property
    def is_test(self) -> bool:
        return self.path.startswith("tests/")


class Repository:
    """The files below `root` that the rules read."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def modules(self) -> list[Module]:
        return [Module(self._relative(path), path.read_text()) for path in self._files("py")]

    @property
    def product(self) -> list[Module]:
        return [module for module in self.modules if module.is_product]

    @property
    def tests(self) -> list[Module]:
        return [module for module in self.modules if module.is_test]

    @cached_property
    def lua_scripts(self) -> dict[str, str]:
        return {self._relative(path): path.read_text() for path in self._files("lua")}

    def _files(self, suffix: str) -> Iterator[Path]:
        for name in CODE:
            top = self.root / name
            if top.is_dir():
                yield from sorted(top.rglob(f"*.{suffix}"))
            if top.is_file() and top.suffix == f".{suffix}":
                yield top

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def folder_size(repository: Repository) -> Iterator[Violation]:
    """Count the modules of each folder of product code; `__init__.py` is none."""
    modules = defaultdict(list)
    for module in repository.product:
        if module.name != "__init__":
            modules[module.folder].append(module)
    for folder, found in modules.items():
        most = MORE_MODULES.get(folder, MOST_MODULES)
        if len(found) > most:
            fact = f"the folder holds {len(found)} modules, more than {most}"
            yield Violation(folder, 1, fact, "move those that answer one question to a folder")


def class_names(repository: Repository) -> Iterator[Violation]:
    """Find public classes that share their name with another one."""
    places = defaultdict(list)
    for module in repository.modules:
        for node in module.tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append((module.path, node.lineno))
    for name, found in places.items():
        (first, at), *others = found
        for path, line in others:
            fact = f"the class {name} has the name of the one at {first}:{at}"
            yield Violation(path, line, fact, "rename one to say what sets it apart")


def standard_library_names(repository: Repository) -> Iterator[Violation]:
    """Find modules that are named as one of the standard library's."""
    for module in repository.product:
        if module.name in sys.stdlib_module_names and not module.name.startswith("__"):
            fact = f"the module has the name of the standard library's `{module.name}`"
            yield Violation(module.path, 1, fact, "rename it to say what is in it")


def lua_in_python(repository: Repository) -> Iterator[Violation]:
    """Find Lua that calls Redis and stands in a Python string."""
    for module in repository.product:
        for line, text in _numbered(module.text):
            if found := re.search(r"\bredis\.p?call\b", text):
                fact = f"`{found[0]}` stands in a Python file"
                yield Violation(module.path, line, fact, "move the script to worker/jobs/lua/")


def built_names(repository: Repository) -> Iterator[Violation]:
    """Find attributes whose name is put together at run time: no search finds their users."""
    for module in repository.product:
        for scope in _scopes(module.tree):
            built = {name for node in scope for name in _assigned_built(node)}
            for node in scope:
                for name in _attribute_names(node):
                    if _is_built(name) or (isinstance(name, ast.Name) and name.id in built):
                        fact = f"an attribute is looked up by the built name `{ast.unparse(name)}`"
                        yield Violation(
                            module.path, name.lineno, fact, "name the objects in a list or a dict"
                        )


def docstring_prepositions(repository: Repository) -> Iterator[Violation]:
    """Find docstrings whose first word is a preposition."""
    prepositions = set(PREPOSITIONS.split())
    for module in repository.modules:
        for node in ast.walk(module.tree):
            if not isinstance(
                node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            ):
                continue
            word = re.match(r"\W*(\w*)", ast.get_docstring(node) or "")
            if word and word[1].lower() in prepositions:
                fact = f"the docstring's first word is the preposition {word[1]!r}"
                line = node.body[0].lineno
                yield Violation(module.path, line, fact, "begin with a verb or a noun")


def line_length(repository: Repository) -> Iterator[Violation]:
    """Find lines that are too long to read side by side."""
    for module in repository.modules:
        for line, text in _numbered(module.text):
            if len(text) > MOST_COLUMNS:
                fact = f"the line has {len(text)} columns, more than {MOST_COLUMNS}"
                yield Violation(module.path, line, fact, "break it")


def names_of_tests(repository: Repository) -> Iterator[Violation]:
    """Find names of tests that are too long, or say no subject."""
    for module in repository.tests:
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if not node.name.startswith("test_"):
                continue
            if len(node.name) > MOST_TEST_NAME:
                fact = f"{node.name} has {len(node.name)} characters, more than {MOST_TEST_NAME}"
                yield Violation(module.path, node.lineno, fact, "say the same in fewer words")
            if prefix := next((p for p in NO_SUBJECTS if node.name.startswith(p)), None):
                fact = f"{node.name} begins with {prefix}"
                yield Violation(module.path, node.lineno, fact, "name the subject of the sentence")


def private_access(repository: Repository) -> Iterator[Violation]:
    """Find tests' uses of others' private attributes, where there are too many in all."""
    found = [
        (module.path, node)
        for module in repository.tests
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and _is_private(node)
    ]
    if len(found) <= MOST_PRIVATE_ACCESSES:
        return
    for path, node in found:
        total = f"{len(found)} in all tests, more than {MOST_PRIVATE_ACCESSES}"
        fact = f"a test uses the private attribute `{ast.unparse(node)}` ({total})"
        yield Violation(path, node.lineno, fact, "use what is public, or make that public")


def lua_headers(repository: Repository) -> Iterator[Violation]:
    """Find Lua files whose first comment does not name the keys, arguments and result they have."""
    for path, text in repository.lua_scripts.items():
        lines = text.splitlines()
        header = list(takewhile(lambda line: line.startswith("--"), lines))
        code = "\n".join(lines[len(header) :])
        needed = [word for word in ("KEYS", "ARGV") if _has_word(code, word)]
        # What is in shared/ is put before scripts, and returns nothing by itself.
        needed += [] if "/shared/" in path else ["RESULT"]
        missing = [word for word in needed if not _has_word("\n".join(header), word)]
        if missing or not header:
            fact = f"the comment at its head does not name {', '.join(missing) or 'its purpose'}"
            yield Violation(path, 1, fact, "add it, as worker/jobs/scripts.py shows")


RULES: dict[str, Callable[[Repository], Iterator[Violation]]] = {
    "folder-size": folder_size,
    "class-names": class_names,
    "standard-library-names": standard_library_names,
    "lua-in-python": lua_in_python,
    "built-names": built_names,
    "docstring-prepositions": docstring_prepositions,
    "line-length": line_length,
    "test-names": names_of_tests,
    "private-access": private_access,
    "lua-headers": lua_headers,
}


def _numbered(text: str) -> Iterator[tuple[int, str]]:
    return enumerate(text.splitlines(), 1)


def _scopes(tree: ast.Module) -> Iterator[list[ast.AST]]:
    """Yield the nodes of each function, and those that stand in none."""
    functions: list[ast.AST] = [tree]
    while functions:
        nodes: list[ast.AST] = []
        _collect(functions.pop(), nodes, functions)
        yield nodes


def _collect(node: ast.AST, nodes: list[ast.AST], functions: list[ast.AST]) -> None:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            functions.append(child)
        else:
            nodes.append(child)
            _collect(child, nodes, functions)


def _assigned_built(node: ast.AST) -> Iterator[str]:
    """Yield the variables that this node gives a built string."""
    match node:
        case ast.Assign(targets=targets, value=value):
            pass
        case ast.AnnAssign(target=target, value=ast.expr() as value):
            targets = [target]
        case ast.NamedExpr(target=target, value=value):
            targets = [target]
        case _:
            return
    if _is_built(value):
        yield from (target.id for target in targets if isinstance(target, ast.Name))


def _attribute_names(node: ast.AST) -> Iterator[ast.expr]:
    """Yield the expressions by which a call looks up attributes."""
    match node:
        case ast.Call(func=ast.Name(id=name), args=[_, attribute, *_]) if name in _BY_NAME:
            yield attribute
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=names) if (
            name in _BY_NAMES
        ):
            yield from names if name == "attrgetter" else names[:1]


def _is_built(node: ast.expr) -> bool:
    """Tell a string that is put together: an f-string, a sum, or what a call returns."""
    return isinstance(node, ast.JoinedStr | ast.BinOp | ast.Call)


def _is_private(node: ast.Attribute) -> bool:
    own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
    return node.attr.startswith("_") and not node.attr.endswith("__") and not own


def _has_word(text: str, word: str) -> bool:
    return re.search(rf"\b{word}\b", text) is not None


def main(arguments: Sequence[str] | None = None) -> int:
    """Print each violation on a line. Returns 1 if there is one, otherwise 0."""
    parser = argparse.ArgumentParser(prog="python -m tools.check_structure", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=RULES, metavar="RULE", default=list(RULES))
    parser.add_argument("--list", action="store_true", help="name the rules and what they do")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository")
    given = parser.parse_args(arguments)
    if given.list:
        print(*(f"{name:24} {rule.__doc__}" for name, rule in RULES.items()), sep="\n")
        return 0
    repository = Repository(given.root)
    counts = dict.fromkeys(given.only, 0)
    for name in counts:
        for violation in RULES[name](repository):
            counts[name] += 1
            print(f"{violation} [{name}]")
    broken = {name: count for name, count in counts.items() if count}
    summary = ", ".join(f"{name} {count}" for name, count in broken.items())
    print(f"structure: {summary or f'{len(counts)} rules hold'}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
