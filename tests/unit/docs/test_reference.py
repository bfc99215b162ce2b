"""The reference pages that are made from the code."""

from __future__ import annotations

import pytest

from app.main import create_app
from app.settings import ApiSettings
from docs.generate.__main__ import PAGES
from docs.generate.markdown import plain, table
from tests.support.pages import ROOT

REFERENCE = ROOT / "docs" / "reference"


# the comparisons of models.md take half a minute of a core
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_what_the_code_makes_of_it(name: str) -> None:
    assert (REFERENCE / name).read_text() == PAGES[name](), "run `make docs-reference`"


def test_the_api_has_a_section_for_every_call_and_schema() -> None:
    document = create_app(ApiSettings()).openapi()
    calls = {
        f"### `{method.upper()} {path}`"
        for path, operations in document["paths"].items()
        for method in operations
    }
    schemas = {f"### {name}" for name in document["components"]["schemas"]}
    headings = {line for line in PAGES["http-api.md"]().splitlines() if line.startswith("### ")}
    assert headings == calls | schemas


def test_a_call_names_its_parameters_its_answers_and_its_problems() -> None:
    section = (
        PAGES["http-api.md"]().partition("### `GET /v1/jobs/{job_id}`")[2].partition("\n### ")[0]
    )
    assert "| `wait` | query | number (0 to 60), optional, default `0` |" in section
    assert "| 200 | [Job](#job) |" in section
    assert "| 404 | [`unknown-job`](#problem-types) |" in section
    assert "| 404 | [`unknown-image`](#problem-types) |" not in section
    assert [
        line
        for line in section.splitlines()
        if line.startswith("| 421") and line.endswith("Without API keys. |")
    ]
    assert [
        line
        for line in section.splitlines()
        if line.startswith("| 401") and line.endswith("With API keys. |")
    ]


def test_a_command_names_its_arguments_its_options_and_their_defaults() -> None:
    section = PAGES["cli.md"]().partition("## `ddpm evaluate`")[2].partition("\n## ")[0]
    assert "```text\nddpm evaluate MODEL --data PATH [OPTIONS]\n```" in section
    assert "| `MODEL` |" in section
    assert "| `--data` | PATH | *required* |" in section
    assert "| `--images` | INTEGER, 1 or more | `64` |" in section
    assert "| `--seed` | INTEGER, 0 to 9007199254740991 | `0` |" in section


def test_a_table_leaves_out_what_is_empty_and_breaks_at_no_bar() -> None:
    assert (
        table(("a", "b", "c"), [("1", "", "x | y"), ("2", "", "z\nz")])
        == "| a | c |\n| --- | --- |\n| 1 | x \\| y |\n| 2 | z z |"
    )
    assert table(("a",), []) == ""


def test_only_code_may_hold_what_looks_like_a_tag() -> None:
    assert plain("OUT/<seed>.png, `<seed>`") == "OUT/\\<seed>.png, `<seed>`"
