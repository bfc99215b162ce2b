"""Completes the OpenAPI document that FastAPI makes from the routes.

The document is the same whatever the deployment, so that a client made from it fits every service.
Models, keys and webhooks of a service are found by asking it.
"""

from __future__ import annotations

from typing import Any, get_args

from fastapi import FastAPI
from fastapi.routing import APIRoute

from app.access.public_paths import open_paths
from app.problems.problems import (
    BadLink,
    Forbidden,
    Problem,
    ThroughProxy,
    TooManyRequests,
    Unauthorized,
    WrongHost,
    problems,
)
from app.schemas.events import ImageEvent, PreviewEvent, ProgressEvent, StateEvent
from app.schemas.problems import ProblemDetails
from app.schemas.webhooks import WebhookMessage
from models.diffusion.options import Sampler, Variance
from worker.jobs.domain import Precision

# What app/access/gate.py answers before a route is reached.
WITH_KEYS: tuple[type[Problem], ...] = (Unauthorized, Forbidden, TooManyRequests)
WITHOUT_KEYS: tuple[type[Problem], ...] = (ThroughProxy, WrongHost)
_EVENTS = (StateEvent, ImageEvent, ProgressEvent, PreviewEvent)
_ENUMS = {"Sampler": Sampler, "Variance": Variance, "Precision": Precision}
_SCHEME = (
    "A key of `DDPM_API_KEYS`; it sees the jobs that were posted with it. A service without keys "
    "needs none"
)
_LINK = "Of a link that `GET /v1/jobs/{job_id}/links` has signed for this path"
# What such links lead to.
_LINKED = ("events", "grid", "archive", "images/{index}")
_LINK = "Of a link that `GET /v1/jobs/{job_id}/links` has signed for this path"
# What such links lead to.
_LINKED = ("events", "grid", "archive", "images/{index}")
_WEBHOOK = {
    "summary": "Job ended",
    "description": "Sent to the `webhook` of a job that has ended, signed as "
    "https://www.standardwebhooks.com has it",
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/WebhookMessage"}}
        },
    },
    "responses": {
        "2XX": {"description": "Delivered"},
        "410": {"description": "No more is wanted"},
        "default": {"description": "Sent again"},
    },
}


def operation_id(route: APIRoute) -> str:
    """Return the name of a route's function, which clients made from the document take over."""
    return route.name


def describe(app: FastAPI) -> None:
    """Replace the document that `app` serves with a complete one, written once."""
    make_document = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = make_document()
            _add_schemas(document)
            _name_enums(document["components"])
            _correct_fastapi(document)
            _describe_access(document)
            document["webhooks"] = {"job-ended": {"post": _WEBHOOK}}
            _link_jobs(document)
        assert app.openapi_schema is not None
        return app.openapi_schema

    # FastAPI's documentation recommends this assignment.
    app.openapi = openapi  # type: ignore[method-assign]


def _add_schemas(document: dict[str, Any]) -> None:
    """Add the schemas of bodies that no route is declared to answer with."""
    schemas = document["components"]["schemas"]
    for model in (ProblemDetails, *_EVENTS, WebhookMessage):
        schema = model.model_json_schema(
            mode="serialization", ref_template="#/components/schemas/{model}"
        )
        schemas |= schema.pop("$defs", {}) | {model.__name__: schema}
    references = {
        str(event.model_fields["type"].default): f"#/components/schemas/{event.__name__}"
        for event in _EVENTS
    }
    schemas["JobEvent"] = {
        "description": "The `data` of an event of a job's stream.",
        "oneOf": [{"$ref": reference} for reference in references.values()],
        "discriminator": {"propertyName": "type", "mapping": references},
    }


def _name_enums(components: dict[str, Any]) -> None:
    """Give each enum that several schemas have one schema, and so one type in each client."""
    for name, literal in _ENUMS.items():
        values = list(get_args(literal))
        _refer(components["schemas"], values, {"$ref": f"#/components/schemas/{name}"})
        components["schemas"][name] = {"type": "string", "enum": values}


def _refer(schema: Any, values: list[str], reference: dict[str, str]) -> None:
    """Put the reference wherever the enum of these values stands."""
    if isinstance(schema, dict) and schema.get("enum") == values:
        del schema["enum"], schema["type"]
        schema |= reference
    for part in schema.values() if isinstance(schema, dict) else schema:
        if isinstance(part, dict | list):
            _refer(part, values, reference)


def _correct_fastapi(document: dict[str, Any]) -> None:
    """Remove what FastAPI describes and this API does not do."""
    _drop_fastapis_422(document)
    _drop_null_parameters(document)
    # FastAPI takes what a stream consists of for one text.
    stream = document["paths"]["/v1/jobs/{job_id}/events"]["get"]["responses"]["200"]
    stream["content"]["text/event-stream"]["schema"].pop("type")


def _describe_access(document: dict[str, Any]) -> None:
    """Describe what app/access/gate.py does before a route is reached."""
    document["components"]["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": _SCHEME},
        "link": {"type": "apiKey", "in": "query", "name": "link", "description": _LINK},
    }
    for path, operations in document["paths"].items():
        guarded = path not in open_paths(has_keys=True)
        named = path not in open_paths(has_keys=False)
        kinds = (*(WITH_KEYS if guarded else ()), *(WITHOUT_KEYS if named else ()))
        for operation in operations.values():
            for status, response in problems(*kinds).items():
                _join(operation["responses"], str(status), response)
            if guarded:
                operation["security"] = [{"key": []}, {}]
    for path in _LINKED:
        operation = document["paths"][f"/v1/jobs/{{job_id}}/{path}"]["get"]
        operation["security"].append({"link": []})
        for status, response in problems(BadLink).items():
            _join(operation["responses"], str(status), response)


def _link_jobs(document: dict[str, Any]) -> None:
    """Link the answer to an accepted job with every operation on that job."""
    operations = [
        operation
        for path, methods in document["paths"].items()
        for operation in methods.values()
        if path.startswith("/v1/jobs/{job_id}")
    ]
    expressions = {"job_id": "$response.body#/id", "index": "$response.body#/start"}
    document["paths"]["/v1/jobs"]["post"]["responses"]["202"]["links"] = {
        operation["operationId"]: {
            "operationId": operation["operationId"],
            "parameters": {
                p["name"]: expressions[p["name"]]
                for p in operation["parameters"]
                if p["name"] in expressions
            },
        }
        for operation in operations
    }


def _join(responses: dict[str, Any], status: str, response: dict[str, Any]) -> None:
    """Add a response. Where the status has one already, join their descriptions."""
    if status in responses:
        responses[status]["description"] += f" {response['description']}"
    else:
        responses[status] = response


def _drop_fastapis_422(document: dict[str, Any]) -> None:
    """Remove the 422 that FastAPI adds wherever there is a parameter.

    It does so even for a parameter that can be any string.
    """
    for path in document["paths"].values():
        for operation in path.values():
            answer = operation["responses"].get("422", {})
            if "application/json" in answer.get("content", {}):
                del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)


def _drop_null_parameters(document: dict[str, Any]) -> None:
    """Remove null from the types of parameters.

    A parameter can be left out, but a header or a query cannot hold null: it would be a text.
    """
    for path in document["paths"].values():
        for operation in path.values():
            for parameter in operation.get("parameters", []):
                options = parameter["schema"].get("anyOf", [])
                options[:] = [option for option in options if option.get("type") != "null"]
