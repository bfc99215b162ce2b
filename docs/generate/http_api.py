"""The reference of the HTTP API, from the OpenAPI document that the service serves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from app.main import create_app
from app.openapi import WITH_KEYS, WITHOUT_KEYS
from app.problems.problems import Problem
from app.settings import ApiSettings
from docs.generate.markdown import NOTICE, page, plain, table

Json = Mapping[str, Any]

_ABOUT = """# HTTP API

A running service describes itself.
`/openapi.json` is its OpenAPI document. `/docs` shows it and lets you try the calls out.
The document is the same for every service, whatever its models and with keys or without.
[A client that is made from it](../how-to/make-a-client.md) therefore fits every service.
[openapi.json](openapi.json) is the document as a file, and this page says the same.

Requests and answers are JSON, unless a call says otherwise.
With [API keys](../how-to/secure-the-api.md), send yours as `Authorization: Bearer KEY`.
Without them, the service answers only under the names of its own machine.
The body of every error is `application/problem+json`: see [ProblemDetails](#problemdetails).
`HEAD` works wherever `GET` does."""
_VERIFY = "[Receive webhooks](../how-to/receive-webhooks.md) shows how to verify it."
_PROBLEMS = """## Problem types

The `type` of an error is `urn:problem-type:ddpm:` and one of these names.
The ones that no call lists can meet any request."""
_TITLES = {"jobs": "Jobs", "models": "Models", "health": "Health"}
_LIMITS = {
    "minimum": "{} or more",
    "maximum": "at most {}",
    "exclusiveMinimum": "above {}",
    "exclusiveMaximum": "below {}",
    "maxLength": "at most {} characters",
    "pattern": "matches `{}`",
}
_WITH, _WITHOUT = "With API keys.", "Without API keys."


def http_page() -> str:
    """Return docs/reference/http-api.md."""
    document = create_app(ApiSettings.model_validate({"models_dir": None})).openapi()
    calls = list(_calls(document))
    overview = table(
        ("call", "what it does"), [(f"[`{c.title}`](#{c.anchor})", c.summary) for c in calls]
    )
    blocks = [NOTICE, _ABOUT, "## Calls", overview]
    for tag, title in _TITLES.items():
        blocks.append(f"## {title}")
        blocks += [block for call in calls if call.tag == tag for block in call.blocks()]
    return page(
        [*blocks, *_webhook(document), "## Schemas", *_schemas(document), _PROBLEMS, _problems()]
    )


def _calls(document: Json) -> Iterator[_Call]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield _Call(path, method.upper(), operation)


class _Call:
    """One path and method."""

    def __init__(self, path: str, method: str, operation: Json) -> None:
        self._path, self._method, self._operation = path, method, operation

    @property
    def tag(self) -> str:
        return str(self._operation["tags"][0])

    @property
    def title(self) -> str:
        return f"{self._method} {self._path}"

    @property
    def anchor(self) -> str:
        return "".join(c for c in self.title.lower() if c.isalnum() or c in "_- ").replace(" ", "-")

    @property
    def summary(self) -> str:
        return str(self._operation["description"]).partition("\n\n")[0]

    def blocks(self) -> Iterator[str]:
        yield f"### `{self.title}`"
        yield plain(self._operation["description"])
        if body := self._operation.get("requestBody"):
            yield f"Takes {_body(body['content'])}."
        yield table(
            ("parameter", "in", "type", "what it is"),
            map(_parameter, self._operation.get("parameters", ())),
        )
        yield table(("status", "gives", "when"), self._answers())
        yield table(("error", "problem", "when"), self._errors())

    def _answers(self) -> Iterator[Sequence[str]]:
        for status, answer in sorted(self._operation["responses"].items()):
            if int(status) < 400:
                said = (
                    answer["description"] if answer["description"] != "Successful Response" else ""
                )
                headers = [
                    f"`{name}`: {header['description']}."
                    for name, header in answer.get("headers", {}).items()
                ]
                yield (
                    status,
                    _body(answer.get("content", {})),
                    " ".join([f"{said}." if said else "", *headers]),
                )

    def _errors(self) -> Iterator[Sequence[str]]:
        for status, answer in sorted(self._operation["responses"].items()):
            for problem in _named(status):
                if (about := problem.__doc__ or "") in answer["description"]:
                    yield status, _problem_link(problem), f"{about} {_where(problem)}".strip()


def _where(problem: type[Problem]) -> str:
    """Say which services answer with a problem of the gate; empty for the others."""
    return _WITH if problem in WITH_KEYS else _WITHOUT if problem in WITHOUT_KEYS else ""


def _named(status: str) -> list[type[Problem]]:
    return [
        problem
        for problem in Problem.__subclasses__()
        if status.isdecimal() and problem.status == int(status)
    ]


def _problem_link(problem: type[Problem]) -> str:
    return f"[`{problem.name}`](#problem-types)"


def _parameter(parameter: Json) -> Sequence[str]:
    schema = parameter["schema"]
    needed = "" if parameter["required"] else ", optional"
    return (
        f"`{parameter['name']}`",
        parameter["in"],
        _kind(schema) + needed + _default(schema),
        _about(parameter),
    )


def _body(content: Json) -> str:
    """Say what a body is: a schema's name, or the media type of what is not JSON."""
    for media, shape in content.items():
        schema = shape.get("schema", {})
        return _kind(schema) if "$ref" in schema else f"`{media.partition(';')[0]}`"
    return ""


def _kind(schema: Json) -> str:
    """Say what a value may be, in words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if options := schema.get("anyOf"):
        return " or ".join(map(_kind, options))
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type", "anything")
    if kind == "array":
        most = f" (at most {schema['maxItems']})" if "maxItems" in schema else ""
        return f"array of {_kind(schema['items'])}{most}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_kind(schema['additionalProperties'])}"
    return f"{schema.get('format', kind)}{_bounds(schema)}"


def _bounds(schema: Json) -> str:
    """Say what else holds of a value: `(0 to 1024)`; empty where nothing does."""
    said = [words.format(_number(schema[key])) for key, words in _LIMITS.items() if key in schema]
    if {"minimum", "maximum"} <= schema.keys():
        said[:2] = [f"{_number(schema['minimum'])} to {_number(schema['maximum'])}"]
    return f" ({', '.join(said)})" if said else ""


def _number(limit: object) -> str:
    """JSON Schema has whole limits as floats."""
    return str(int(limit)) if isinstance(limit, float) and limit.is_integer() else str(limit)


def _default(schema: Json) -> str:
    return (
        f", default `{json.dumps(schema['default'])}`" if schema.get("default") is not None else ""
    )


def _about(schema: Json) -> str:
    return f"{text}." if (text := str(schema.get("description", "")).rstrip(".")) else ""


def _webhook(document: Json) -> Iterator[str]:
    for name, operations in document["webhooks"].items():
        for method, operation in operations.items():
            message = _body(operation["requestBody"]["content"])
            yield "## Webhook"
            sent = f"The service sends `{method.upper()}` with {message}."
            yield f"{operation['description']}.\n{sent}"
            yield f"Its name in the document is `{name}`.\n{_VERIFY}"
            rows = [
                (status, answer["description"]) for status, answer in operation["responses"].items()
            ]
            yield table(("your answer", "what it means"), rows)


def _schemas(document: Json) -> Iterator[str]:
    for name, schema in sorted(document["components"]["schemas"].items()):
        yield f"### {name}"
        yield plain(schema.get("description", ""))
        if "properties" not in schema:
            yield f"One of {_kind(schema)}."
            continue
        required = set(schema.get("required", ()))
        yield table(
            ("field", "type", "what it is", "example"),
            [
                (
                    f"`{field}`",
                    _kind(about) + ("" if field in required else ", optional") + _default(about),
                    _about(about),
                    _example(about),
                )
                for field, about in schema["properties"].items()
            ],
        )


def _example(schema: Json) -> str:
    examples = [example for example in schema.get("examples", ()) if example is not None]
    return f"`{json.dumps(examples[0])}`" if examples else ""


def _problems() -> str:
    rows = [
        (
            str(int(problem.status)),
            f"`{problem.name}`",
            (problem.__doc__ or ""),
            ", ".join(f"`{name}`" for name in problem.with_headers),
        )
        for problem in sorted(
            Problem.__subclasses__(), key=lambda problem: (problem.status, problem.name)
        )
    ]
    return table(("status", "name", "when", "headers"), rows)
