"""Completes the OpenAPI document that FastAPI makes from the routes.

Only the models' cards, the gate and the settings know what this module adds.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from app.access.api_keys import Keyring
from app.access.public_paths import open_paths
from app.problems.problems import TooManyRequests, Unauthorized, WrongHost, problems
from app.schemas.events import ImageEvent, PreviewEvent, StateEvent
from app.schemas.problems import ProblemDetails
from app.schemas.webhooks import WebhookMessage
from models.checkpoints.catalog import Catalog

_SCHEME = "A key of `DDPM_API_KEYS`; it sees the jobs that were posted with it"
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


def describe(app: FastAPI, catalog: Catalog, keyring: Keyring, *, webhooks: bool) -> None:
    """Replace the document that `app` serves with a complete one.

    Args:
        app: The API, with all its routes.
        catalog: The models, whose names and limits the document gives.
        keyring: The keys; without any, requests need a known host name instead.
        webhooks: Whether this service sends webhooks.
    """
    make_document = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = make_document()
            _add_schemas(document)
            _correct_fastapi(document)
            _name_models(document, catalog)
            _describe_access(document, keyring)
            _describe_webhooks(document, sent=webhooks)
            _link_jobs(document)
        assert app.openapi_schema is not None
        return app.openapi_schema

    # FastAPI's documentation recommends this assignment.
    app.openapi = openapi  # type: ignore[method-assign]


def _add_schemas(document: dict[str, Any]) -> None:
    """Add the schemas of bodies that no route is declared to answer with."""
    schemas = document["components"]["schemas"]
    for model in (ProblemDetails, StateEvent, ImageEvent, PreviewEvent, WebhookMessage):
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {}) | {model.__name__: schema}


def _correct_fastapi(document: dict[str, Any]) -> None:
    """Remove what FastAPI describes and this API does not do."""
    _drop_fastapis_422(document)
    _drop_null_parameters(document)
    # FastAPI describes the stream as one string too, and no reader takes it for one.
    answer = document["paths"]["/v1/jobs/{job_id}/events"]["get"]["responses"]["200"]
    answer["content"]["text/event-stream"].pop("schema")


def _name_models(document: dict[str, Any], catalog: Catalog) -> None:
    """Limit requests to the models that there are, and to what they can do."""
    request = document["components"]["schemas"]["JobRequest"]
    fields = request["properties"]
    _not_null(fields["model"])["enum"] = sorted(catalog)
    _not_null(fields["steps"])["maximum"] = max(card.schedule.T for card in catalog.values())
    _limit_analytic(request, catalog)


def _limit_analytic(request: dict[str, Any], catalog: Catalog) -> None:
    """Allow the analytic variance only to models that have an estimate for it."""
    able = sorted(name for name, card in catalog.items() if card.residual_variance)
    if not able:
        _not_null(request["properties"]["variance"])["enum"].remove("analytic")
        return
    by_default = catalog.default.name in able
    named = {
        "properties": {"model": {"enum": [*able, None] if by_default else able}},
        "required": [] if by_default else ["model"],
    }
    asked = {"required": ["variance"], "properties": {"variance": {"const": "analytic"}}}
    request["allOf"] = [*request["allOf"], {"if": asked, "then": named}]


def _describe_access(document: dict[str, Any], keyring: Keyring) -> None:
    """Describe what app/access/gate.py does before a route is reached."""
    if keyring:
        document["components"]["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer", "description": _SCHEME}
        }
    public = open_paths(keyring)
    closed = [
        operation
        for path, operations in document["paths"].items()
        if path not in public
        for operation in operations.values()
    ]
    for operation in closed:
        kinds = (Unauthorized, TooManyRequests) if keyring else (WrongHost,)
        for status, response in problems(*kinds).items():
            _join(operation["responses"], str(status), response)
        if keyring:
            operation["security"] = [{"key": []}]


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


def _describe_webhooks(document: dict[str, Any], sent: bool) -> None:
    """Describe the webhook that is sent, or that a request may not ask for one."""
    if sent:
        document["webhooks"] = {"job-ended": {"post": _WEBHOOK}}
    else:
        field = document["components"]["schemas"]["JobRequest"]["properties"]["webhook"]
        field |= {
            "description": "This service sends no webhooks: it has no DDPM_WEBHOOK_SECRET",
            "examples": [None],
        }
        field["anyOf"].remove(_not_null(field))


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


def _not_null(field: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of the values of an optional field that are not null."""
    option: dict[str, Any] = next(option for option in field["anyOf"] if option["type"] != "null")
    return option
