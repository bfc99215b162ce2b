"""Every error that a client can see: one tree, the status on the class. Texts are fact, value, remedy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, ClassVar

from starlette.exceptions import HTTPException

from app.schemas.problems import InvalidField
from worker.jobs.domain import State


class Problem(HTTPException):
    """An HTTPException, so that FastAPI lets it through while it reads a body."""

    status: ClassVar[HTTPStatus]
    name: ClassVar[str]
    about: ClassVar[str]  # what OpenAPI says of it
    with_headers: ClassVar[Mapping[str, str]] = {}
    errors: tuple[InvalidField, ...] = ()

    def __init__(self, detail: str) -> None:
        super().__init__(self.status, detail, dict(self.with_headers))

    def content(self) -> dict[str, Any]:
        title = self.name.replace("-", " ").capitalize()
        body = {
            "type": f"urn:problem-type:ddpm:{self.name}",
            "title": title,
            "status": int(self.status),
            "detail": self.detail,
        }
        return body | (
            {"errors": [error.model_dump() for error in self.errors]} if self.errors else {}
        )


class InvalidRequest(Problem):
    status, name = HTTPStatus.UNPROCESSABLE_ENTITY, "invalid-request"
    about = "A field or parameter is invalid; `errors` names each."

    def __init__(self, errors: Iterable[InvalidField]) -> None:
        self.errors = tuple(errors)
        super().__init__(" ".join(error.detail for error in self.errors))


class BrokenBody(Problem):
    status, name = HTTPStatus.BAD_REQUEST, "broken-body"
    about = "The body is not JSON, nests too deeply or holds a number that is too long."


class Unauthorized(Problem):
    status, name, about = (
        HTTPStatus.UNAUTHORIZED,
        "unauthorized",
        "The request has no API key, or one that is not known.",
    )
    with_headers: ClassVar[Mapping[str, str]] = {
        "WWW-Authenticate": 'Bearer realm="ddpm"'
    }  # RFC 6750

    def __init__(self, sent: bool) -> None:
        if sent:
            super().__init__(
                "the API key is not known; check it, or ask the operator of this service for one."
            )
            self.headers = {"WWW-Authenticate": 'Bearer realm="ddpm", error="invalid_token"'}
        else:
            super().__init__("the request has no API key; send it as `Authorization: Bearer KEY`.")


class TooManyRequests(Problem):
    status, name = HTTPStatus.TOO_MANY_REQUESTS, "too-many-requests"
    about = "The key has sent more requests a second than it may."
    with_headers: ClassVar[Mapping[str, str]] = {"Retry-After": "1"}

    def __init__(self, per_s: float, wait_s: float) -> None:
        retry_after_s = math.ceil(wait_s)
        super().__init__(
            f"this key has sent more than {per_s:g} requests a second; ask again in {retry_after_s} s, "
            "and follow a job by its events or with ?wait=S instead of polling."
        )
        self.headers = {"Retry-After": str(retry_after_s)}


class WrongHost(Problem):
    status, name = HTTPStatus.MISDIRECTED_REQUEST, "wrong-host"
    about = "The service has no API keys and answers under its own names only; `Host` is another."

    def __init__(self, host: str) -> None:
        super().__init__(
            f"host={_cut(host)} is not a name that this service answers to without API keys; ask for it as localhost, "
            "or set DDPM_API_KEYS or DDPM_ANONYMOUS_HOSTS where it runs."
        )


class UnknownRoute(Problem):
    status, name, about = HTTPStatus.NOT_FOUND, "unknown-route", "There is nothing at this path."

    def __init__(self, path: str) -> None:
        super().__init__(f"there is nothing at {_cut(path)}; /docs lists what there is.")


class UnknownJob(Problem):
    status, name, about = (
        HTTPStatus.NOT_FOUND,
        "unknown-job",
        "There is no such job, or it was deleted or forgotten.",
    )

    def __init__(self, job: str) -> None:
        super().__init__(f"there is no job {_cut(job)}; `GET /v1/jobs` lists those that exist.")


class UnknownImage(Problem):
    status, name, about = (
        HTTPStatus.NOT_FOUND,
        "unknown-image",
        "The job has no image of this index.",
    )

    def __init__(self, index: int, start: int, count: int) -> None:
        super().__init__(
            f"index={index} is not an image of this job; use {start} to {start + count - 1}."
        )


class UnknownModel(Problem):
    status, name, about = HTTPStatus.NOT_FOUND, "unknown-model", "There is no such model."

    def __init__(self, model: str, known: Iterable[str]) -> None:
        super().__init__(unknown_model(model, known))


class MethodNotAllowed(Problem):
    status, name, about = (
        HTTPStatus.METHOD_NOT_ALLOWED,
        "method-not-allowed",
        "The path is there, but not for this method.",
    )

    def __init__(self, method: str, path: str, allowed: Iterable[str]) -> None:
        allow = ", ".join(allowed)
        super().__init__(f"{_cut(path)} does not answer to {method}; use {allow}.")
        self.headers = {"Allow": allow}


class NotFinished(Problem):
    status, name, about = (
        HTTPStatus.CONFLICT,
        "not-finished",
        "The image is not finished; `detail` says whether it will be.",
    )

    def __init__(self, fact: str, state: State) -> None:
        remedy = (
            "post the job again"
            if state.final
            else "poll the job until images_done grows, with ?wait=S"
        )
        super().__init__(f"{fact}, and the job is {state}; {remedy}.")


class NoPreview(Problem):
    status, name, about = (
        HTTPStatus.CONFLICT,
        "no-preview",
        "No worker shows the image: it has taken no step yet, or never will.",
    )

    def __init__(self, index: int, state: State) -> None:
        remedy = (
            "post the job again"
            if state.final
            else "ask again when the job is running and `progress.step` has grown"
        )
        super().__init__(f"no worker shows image {index} and the job is {state}; {remedy}.")


class NotEnded(Problem):
    status, name, about = (
        HTTPStatus.CONFLICT,
        "not-ended",
        "The job has not ended, and its archive would lack images.",
    )

    def __init__(self, state: State) -> None:
        super().__init__(
            f"the job is {state} and its archive would lack images; ask again when it has ended, as `GET` of the job with "
            "?wait=S tells, or get the finished images one by one."
        )


class Expired(Problem):
    status, name, about = (
        HTTPStatus.GONE,
        "expired",
        "The image was finished, and its time to live is over.",
    )

    def __init__(self) -> None:
        super().__init__(
            "the images of this job have expired; post the job again with its seed to get the same bytes."
        )


class BodyTooLarge(Problem):
    status, name, about = (
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "body-too-large",
        "The body is larger than the limit.",
    )

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"the body is larger than {limit} bytes; send a job alone: it needs less than 1024 besides its webhook."
        )


class NotHttp(Problem):
    status, name, about = (
        HTTPStatus.BAD_REQUEST,
        "not-http",
        "The bytes received are not an HTTP/1.1 request.",
    )

    def __init__(self) -> None:
        super().__init__(
            "the bytes received are not an HTTP/1.1 request; use a client library, and send `http://` where no proxy takes TLS."
        )


class SlowRequest(Problem):
    status, name, about = (
        HTTPStatus.REQUEST_TIMEOUT,
        "slow-request",
        "The request did not arrive in time.",
    )

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"the complete request did not arrive within {seconds:g} s; send it again."
        )


class HeadTooLarge(Problem):
    status, name = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "head-too-large"
    about = "The request line and headers are larger than the limit."

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"the request's headers are larger than {limit} bytes; send fewer or shorter ones."
        )


class WrongContentType(Problem):
    status, name, about = (
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        "wrong-content-type",
        "The body is not declared as JSON.",
    )

    def __init__(self, content_type: str | None) -> None:
        fact = (
            f"content-type={_cut(content_type)} is not JSON"
            if content_type
            else "the request has no Content-Type"
        )
        super().__init__(f"{fact}; send `Content-Type: application/json`.")


class Internal(Problem):
    status, name, about = HTTPStatus.INTERNAL_SERVER_ERROR, "internal", "A bug of the server's."

    def __init__(self) -> None:
        super().__init__("the server failed on this request, which is a bug; its log says more.")


class KeyReused(Problem):
    status, name = HTTPStatus.UNPROCESSABLE_ENTITY, "idempotency-key-reused"
    about = "The `Idempotency-Key` is that of a job with another body."

    def __init__(self) -> None:
        super().__init__(
            "the Idempotency-Key is that of a job with another body; send a key of its own with every new job."
        )


class QuotaExceeded(Problem):
    status, name = HTTPStatus.TOO_MANY_REQUESTS, "quota-exceeded"
    about = "This job would take the key's open jobs over its limit of image-steps."
    with_headers: ClassVar[Mapping[str, str]] = {"Retry-After": "60"}

    def __init__(self, open_: int, asked: int, most: int, wait_s: int) -> None:
        fact = f"your jobs have {open_} image-steps left to run, and with this job's {asked} they would have more than the {most}"
        super().__init__(f"{fact} that one key may have; try again in {wait_s} s, or cancel a job.")
        self.headers = {"Retry-After": str(wait_s)}


class QueueFull(Problem):
    status, name = HTTPStatus.TOO_MANY_REQUESTS, "queue-full"
    about = "This job would take all open jobs over the service's limit of image-steps."
    with_headers: ClassVar[Mapping[str, str]] = {"Retry-After": "60"}

    def __init__(self, open_: int, asked: int, most: int, wait_s: int) -> None:
        fact = f"{open_} image-steps are left to run, and with this job's {asked} they would be more than the {most}"
        super().__init__(f"{fact} that the service queues; try again in {wait_s} s.")
        self.headers = {"Retry-After": str(wait_s)}


class NotOnDisk(Problem):
    status, name = HTTPStatus.SERVICE_UNAVAILABLE, "not-on-disk"
    about = "The job store (Redis) did not say in time that the job is on its disk."
    with_headers: ClassVar[Mapping[str, str]] = {"Retry-After": "2"}

    def __init__(self) -> None:
        super().__init__(
            "the job store (Redis) did not say in time that the job is on its disk, so it may not have been accepted; send it "
            "again in 2 s, with the same Idempotency-Key if it had one."
        )


class StoreUnreachable(Problem):
    status, name, about = (
        HTTPStatus.SERVICE_UNAVAILABLE,
        "store-unreachable",
        "The job store (Redis) does not answer.",
    )
    with_headers: ClassVar[Mapping[str, str]] = {"Retry-After": "2"}

    def __init__(self) -> None:
        super().__init__("the job store (Redis) does not answer; try again in 2 s.")


class ResultsUnreachable(Problem):
    status, name, about = (
        HTTPStatus.SERVICE_UNAVAILABLE,
        "results-unreachable",
        "The results store does not answer.",
    )
    with_headers: ClassVar[Mapping[str, str]] = {"Retry-After": "5"}

    def __init__(self) -> None:
        super().__init__(
            "the results store, which holds this job's images, does not answer; try again in 5 s."
        )


class NoWorker(Problem):
    status, name, about = HTTPStatus.SERVICE_UNAVAILABLE, "no-worker", "No worker is alive."
    with_headers: ClassVar[Mapping[str, str]] = {"Retry-After": "5"}

    def __init__(self) -> None:
        super().__init__(
            "no worker is alive: jobs are accepted but wait; start one with `ddpm worker`."
        )


class StoreFull(Problem):
    status, name, about = (
        HTTPStatus.INSUFFICIENT_STORAGE,
        "store-full",
        "The job store is out of memory or disk.",
    )

    def __init__(self) -> None:
        super().__init__(
            "the job store (Redis) is out of memory or disk; delete jobs, or give it more."
        )


def unknown_model(model: str, known: Iterable[str]) -> str:
    return f"model={_cut(model)} is not known; use one of: {', '.join(sorted(known))}."


def _cut(text: str, size: int = 80) -> str:
    return repr(text if len(text) <= size else text[:size] + "...")


def problems(*kinds: type[Problem]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI `responses` of the errors that a route can answer with."""
    by_status: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        entry = by_status.setdefault(
            int(kind.status), {"description": "", "content": _CONTENT, "headers": {}}
        )
        entry["description"] = f"{entry['description']} {kind.about}".strip()
        entry["headers"] |= {header: {"schema": {"type": "string"}} for header in kind.with_headers}
    return by_status


_CONTENT = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}}
