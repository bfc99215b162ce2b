"""The repository's Markdown as its readers follow it: links, anchors and shell commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
PACKAGES = ("app", "worker", "models", "cli", "bench")
_NOT_OURS = {"build", "dist", "runs", "node_modules"}
_SHELLS = {"sh", "bash", "shell", "console"}
_ENDS_A_COMMAND = set(";&|()\n")
_BEFORE_A_COMMAND = {
    "while",
    "until",
    "if",
    "then",
    "do",
    "else",
    "!",
    "time",
    "exec",
    "sudo",
    "nohup",
    "env",
    "{",
}
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)


def pages() -> list[Path]:
    """Return every Markdown file of the repository, relative to its root."""
    found = (path.relative_to(ROOT) for path in ROOT.rglob("*.md"))
    return sorted(page for page in found if not any(_is_foreign(part) for part in page.parts[:-1]))


def _is_foreign(folder: str) -> bool:
    return folder in _NOT_OURS or (folder.startswith(".") and folder != ".github")


def links(text: str) -> list[str]:
    """Return where the links and pictures of a page lead, as they are written."""
    return [unquote(target) for token in _tokens(text) for target in _targets(token)]


def _targets(token: Token) -> list[str]:
    if token.type in ("html_block", "html_inline"):
        return re.findall(r"""(?:href|src)=["']([^"']+)""", token.content)
    return [str(target) for name in ("href", "src") if (target := token.attrGet(name)) is not None]


@cache
def anchors(text: str) -> frozenset[str]:
    """Return the anchors of a page: those of its headings and those that are written out.

    They are kept, because many links lead to the same long pages.
    """
    found: set[str] = set()
    tokens = _tokens(text)
    for opening, content in pairwise(tokens):
        if opening.type == "heading_open":
            heading = "".join(
                part.content
                for part in content.children or ()
                if part.type in ("text", "code_inline")
            )
            slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            found.add(next(name for name in _numbered(slug) if name not in found))
    return frozenset(found | set(re.findall(r"""<a (?:id|name)=["']([^"']+)""", text)))


def _numbered(slug: str) -> Iterator[str]:
    yield slug
    number = 0
    while True:
        number += 1
        yield f"{slug}-{number}"


def commands(text: str) -> list[list[str]]:
    """Return the words of every command in the shell blocks of a page.

    Variables that a page sets are filled in. What is not known of a word before it runs is `0`.

    Raises:
        ValueError: No shell could read a block.
    """
    known: dict[str, str] = {}
    fences = [
        token
        for token in _tokens(text)
        if token.type == "fence" and token.info.partition(" ")[0] in _SHELLS
    ]
    return [words for fence in fences for words in _commands(_script(fence), known)]


def _script(fence: Token) -> str:
    """Return what a reader would type."""
    lines = fence.content.splitlines()
    if fence.info.startswith("console"):
        lines = [
            line.removeprefix("$ ")
            for line, before in zip(lines, ["", *lines], strict=False)
            if _is_typed(line, before)
        ]
    without_comments = (re.sub(r"(^|\s)#.*$", "", line) for line in lines)
    return re.sub(r"<[A-Za-z][^<>\n]*>", "0", "\n".join(without_comments)).replace("\\\n", " ")


def _is_typed(line: str, before: str) -> bool:
    return line.startswith("$ ") or before.endswith("\\")


def _commands(script: str, known: dict[str, str]) -> Iterator[list[str]]:
    lexer = shlex.shlex(script, posix=True, punctuation_chars=";&|()<>\n")
    lexer.whitespace, lexer.commenters, lexer.whitespace_split = " \t", "", True
    words: list[str] = []
    after_redirection = False
    for token in [*lexer, "\n"]:
        if set(token) <= _ENDS_A_COMMAND:
            if command := _without_what_comes_first(words, known):
                yield command
            words = []
        elif set(token) <= set("<>"):
            after_redirection = True
        elif after_redirection:
            after_redirection = False
        else:
            words.append(token)


def _without_what_comes_first(words: Sequence[str], known: dict[str, str]) -> list[str]:
    """Drop keywords and assignments, keep the values in `known`, and fill in variables."""
    words = list(words)
    while words:
        if assignment := _ASSIGNMENT.fullmatch(words[0]):
            known[assignment[1]] = "0" if "$" in assignment[2] else assignment[2]
        elif words[0] not in _BEFORE_A_COMMAND:
            break
        del words[0]
    return [re.sub(r"\$\{?(\w+)\}?", lambda name: known.get(name[1], "0"), word) for word in words]


def _tokens(text: str) -> list[Token]:
    """Return the blocks of a page, each before what stands in it."""
    blocks = MarkdownIt("commonmark").enable("table").parse(text)
    return [token for block in blocks for token in (block, *(block.children or ()))]
