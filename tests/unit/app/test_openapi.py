from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from jsonschema_rs import validator_for

from app.main import create_app
from app.schemas.events import ImageEvent, PreviewEvent, ProgressEvent, StateEvent
from app.schemas.jobs import JobRequest
from app.settings import ApiSettings


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
        if "description" not in about and not (name == "ModelDetails" and "$ref" in about)
    }
    assert silent == set()


def test_every_parameter_is_described(document: dict[str, Any]) -> None:
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    parameters = [
        parameter for operation in operations for parameter in operation.get("parameters", [])
    ]
    assert [parameter["name"] for parameter in parameters if "description" not in parameter] == []


def test_the_whole_bodies_that_docs_offers_are_valid(document: dict[str, Any]) -> None:
    body = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]
    validator = validator_for({"$ref": "#/components/schemas/JobRequest", **document})
    assert body["examples"]
    for name, example in body["examples"].items():
        assert validator.is_valid(example["value"]), name
        assert JobRequest.model_validate(example["value"]).webhook is None


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


def test_the_webhook_is_documented(document: dict[str, Any]) -> None:
    body = document["webhooks"]["job-ended"]["post"]["requestBody"]
    reference = body["content"]["application/json"]["schema"]["$ref"]
    message = document["components"]["schemas"][reference.rpartition("/")[2]]
    assert "timestamp" in message["properties"]
    asked = document["components"]["schemas"]["JobRequest"]["properties"]["webhook"]["anyOf"]
    assert [option["type"] for option in asked] == ["string", "null"]
    assert (asked[0]["pattern"], asked[0]["maxLength"]) == ("^https?://", 2000)


def test_operations_have_names_that_functions_can_have(document: dict[str, Any]) -> None:
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    names = [operation["operationId"] for operation in operations]
    assert [name for name in names if not re.fullmatch("[a-z_]+", name)] == []
    assert len(set(names)) == len(names)
    assert "create_job" in names


def test_every_field_of_a_request_for_a_job_can_be_left_out(document: dict[str, Any]) -> None:
    """Generators take a field that has a default for required, so none has one."""
    request = document["components"]["schemas"]["JobRequest"]
    assert "required" not in request
    assert [field for field, about in request["properties"].items() if "default" in about] == []
    assert not {"allOf", "if"} & request.keys(), "generators make `unknown` of these"


@pytest.mark.parametrize("name", ["Sampler", "Variance", "Precision"])
def test_an_enum_of_several_schemas_is_named_once(document: dict[str, Any], name: str) -> None:
    schemas = dict(document["components"]["schemas"])
    values = schemas.pop(name)["enum"]
    assert f'"enum": {json.dumps(values)}' not in json.dumps(schemas)
    assert f'"#/components/schemas/{name}"' in json.dumps(schemas)


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("images/{index}", "image/png"),
        ("images/{index}/preview", "image/png"),
        ("grid", "image/png"),
        ("archive", "application/zip"),
    ],
)
def test_images_and_archives_are_binary(
    document: dict[str, Any], path: str, media_type: str
) -> None:
    answer = document["paths"][f"/v1/jobs/{{job_id}}/{path}"]["get"]["responses"]["200"]
    assert answer["content"] == {media_type: {"schema": {"type": "string", "format": "binary"}}}


@pytest.mark.parametrize(
    "event",
    [
        StateEvent(state="queued", at=datetime.now(UTC), error=None),
        ImageEvent(index=0, url="/", sha256="", label=None),
        ProgressEvent(step=1, steps=2, images_done=0, fraction=0.5, images_per_s=None),
        PreviewEvent(index=0, png=""),
    ],
    ids=lambda event: event.type,
)
def test_the_data_of_an_event_is_told_by_its_type(document: dict[str, Any], event: Any) -> None:
    validators = {
        option["$ref"]: validator_for({"$ref": option["$ref"], **document})
        for option in document["components"]["schemas"]["JobEvent"]["oneOf"]
    }
    data = event.model_dump(mode="json")
    assert [name.rpartition("/")[2] for name, v in validators.items() if v.is_valid(data)] == [
        type(event).__name__
    ]


def test_an_index_is_documented_as_an_integer(document: dict[str, Any]) -> None:
    parameters = document["paths"]["/v1/jobs/{job_id}/images/{index}"]["get"]["parameters"]
    (index,) = [parameter["schema"] for parameter in parameters if parameter["name"] == "index"]
    assert (index["type"], index["minimum"], index["maximum"]) == ("integer", 0, 2**32 - 1)
