from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema_rs import validator_for

from app.main import create_app
from app.settings import ApiSettings
from tests.support.cards import write_card_of


@pytest.fixture
def document(models_dir: Path) -> dict[str, Any]:
    return create_app(ApiSettings(models_dir=models_dir)).openapi()


def _answers(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in document["paths"].values():
        for operation in path.values():
            yield from operation["responses"].items()


def test_every_error_is_a_problem(document: dict[str, Any]) -> None:
    errors = [answer for status, answer in _answers(document) if int(status) >= 400]
    assert errors
    assert {tuple(answer["content"]) for answer in errors} == {("application/problem+json",)}


def test_every_field_of_ours_is_described(document: dict[str, Any]) -> None:
    silent = {
        f"{name}.{field}"
        for name, schema in document["components"]["schemas"].items()
        for field, about in schema.get("properties", {}).items()
        if "description" not in about and not (name == "Card" and "$ref" in about)
    }
    assert silent == set()


def test_every_parameter_is_described(document: dict[str, Any]) -> None:
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    parameters = [
        parameter for operation in operations for parameter in operation.get("parameters", [])
    ]
    assert [parameter["name"] for parameter in parameters if "description" not in parameter] == []


def test_the_document_names_the_models_and_their_longest_schedule(document: dict[str, Any]) -> None:
    fields = document["components"]["schemas"]["JobRequest"]["properties"]
    assert "tiny" in fields["model"]["anyOf"][0]["enum"]
    assert fields["steps"]["anyOf"][0]["maximum"] == 1000


@pytest.mark.parametrize(
    ("with_estimate", "accepted"),
    [
        ([], []),
        (["other"], ["other"]),
        (["tiny"], ["tiny", None]),
        (["other", "tiny"], ["other", "tiny", None]),
    ],
)
def test_the_document_allows_the_analytic_variance_to_models_that_have_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    with_estimate: list[str],
    accepted: list[str | None],
) -> None:
    monkeypatch.setattr("app.main.SHIPPED", tmp_path)
    for name in ("other", "tiny"):
        estimate = "cd" * 32 if name in with_estimate else None
        write_card_of(name, tmp_path, default=name == "tiny", residual_variance=estimate)
    document = create_app(ApiSettings()).openapi()
    validator = validator_for({"$ref": "#/components/schemas/JobRequest", **document})
    bodies = [
        {"sampler": "ddpm", "variance": "analytic", "model": name}
        for name in ("other", "tiny", None)
    ]
    assert [body["model"] for body in bodies if validator.is_valid(body)] == accepted
    assert validator.is_valid({"sampler": "ddpm", "variance": "analytic"}) == (None in accepted)
    assert validator.is_valid({"sampler": "ddpm", "variance": "fixed_large", "model": "other"})


def test_every_503_of_an_image_is_documented(document: dict[str, Any]) -> None:
    for path in (
        "/v1/jobs/{job_id}/images/{index}",
        "/v1/jobs/{job_id}/images/{index}/preview",
        "/v1/jobs/{job_id}/grid",
        "/v1/jobs/{job_id}/archive",
    ):
        about = document["paths"][path]["get"]["responses"]["503"]["description"]
        assert "Redis" in about
        assert "results store" in about


def test_webhooks_are_documented_where_they_are_sent(
    document: dict[str, Any], models_dir: Path
) -> None:
    sends = create_app(ApiSettings(models_dir=models_dir, webhook_secret="s" * 32)).openapi()
    body = sends["webhooks"]["job-ended"]["post"]["requestBody"]
    reference = body["content"]["application/json"]["schema"]["$ref"]
    assert "timestamp" in sends["components"]["schemas"][reference.rpartition("/")[2]]["properties"]
    assert "webhooks" not in document
    kinds = [
        part["components"]["schemas"]["JobRequest"]["properties"]["webhook"]["anyOf"]
        for part in (sends, document)
    ]
    types = [[option["type"] for option in options] for options in kinds]
    assert types == [["string", "null"], ["null"]]
    assert (kinds[0][0]["pattern"], kinds[0][0]["maxLength"]) == ("^https?://", 2000)


def test_an_index_is_documented_as_an_integer(document: dict[str, Any]) -> None:
    parameters = document["paths"]["/v1/jobs/{job_id}/images/{index}"]["get"]["parameters"]
    (index,) = [parameter["schema"] for parameter in parameters if parameter["name"] == "index"]
    assert (index["type"], index["minimum"], index["maximum"]) == ("integer", 0, 2**32 - 1)
