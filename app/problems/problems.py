"""Every error that a client can see, ordered by status. Texts are fact, value, remedy.

The docstring of a class is its description in the OpenAPI document.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, ClassVar

from starlette.exceptions import HTTPException

from app.schemas.problems import InvalidField
from worker.jobs.domain import State

_START_A_WORKER = {
    "none": "start one with `ddpm worker`",
    "up": "`ddpm up` starts them again, and its log says why they ended",
    "compose": "start one with `docker compose up -d worker`; `docker compose logs worker` says "
    "why it ended",
    "kubernetes": "see `kubectl get pods -l app.kubernetes.io/component=worker`, and scale the "
    "deployment up if there is none",
    "systemd": "start one with `systemctl start ddpm-worker@0`; `journalctl -u ddpm-worker@0` says "
    "why it ended",
}
_CONTENT = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}}


class Problem(HTTPException):
    """An error of a kind of its own, which knows its status and text.

    It is an HTTPException, so that FastAPI lets it through while it reads a body.
    """

    status: ClassVar[HTTPStatus]
    name: ClassVar[str]
    about: ClassVar[str]
    with_headers: ClassVar[Mapping[str, str]] = {}
    errors: tuple[InvalidField, ...] = ()

    def __init_subclass__(cls) -> None:
        """Describe the kind by its docstring."""
        cls.about = cls.__doc__ or ""

    def __init__(self, detail: str) -> None:
        super().__init__(self.status, detail, dict(self.with_headers))

    def content(self) -> dict[str, Any]:
        """Return the body of the answer, as RFC 9457 defines it."""
        body = {
            "type": f"urn:problem-type:ddpm:{self.name}",
            "title": self.name.replace("-", " ").capitalize(),
            "status": int(self.status),
            "detail": self.detail,
        }
        if self.errors:
            body["errors"] = [error.model_dump() for error in self.errors]
        return body


class BrokenBody(Problem):
    """The body is not JSON, nests too deeply or holds a number that is too long."""

    status = HTTPStatus.BAD_REQUEST
    name = "broken-body"


class NotHttp(Problem):
    """The bytes received are not an HTTP/1.1 request."""

    status = HTTPStatus.BAD_REQUEST
    name = "not-http"

    def __init__(self) -> None:
        super().__init__(
            "the bytes received are not an HTTP/1.1 request; use a client library, and send "
            "`http://` where no proxy takes TLS."
        )


class RepeatedHeader(Problem):
    """A header that says one thing stands there twice."""

    status = HTTPStatus.BAD_REQUEST
    name = "repeated-header"

    def __init__(self, header: str) -> None:
        super().__init__(f"the request has two {header} headers; send one.")


class WrongTransferEncoding(Problem):
    """The body is sent in a coding that nobody here reads."""

    status = HTTPStatus.BAD_REQUEST
    name = "wrong-transfer-encoding"

    def __init__(self, transfer_encoding: str) -> None:
        super().__init__(
            f"transfer-encoding={_cut(transfer_encoding)} is not read here; send `chunked` alone, "
            "or a Content-Length."
        )


class Unauthorized(Problem):
    """The request has no API key, or one that is not known or has expired."""

    status = HTTPStatus.UNAUTHORIZED
    name = "unauthorized"
    # RFC 6750
    with_headers: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": 'Bearer realm="ddpm"'}

    def __init__(self, sent: bool, expired: bool = False) -> None:
        """Take whether the request has sent a key, and whether that has expired."""
        if sent:
            fact = "has expired; use its successor" if expired else "is not known; check it"
            super().__init__(f"the API key {fact}, or ask the operator of this service for one.")
            self.headers = {"WWW-Authenticate": 'Bearer realm="ddpm", error="invalid_token"'}
        else:
            super().__init__("the request has no API key; send it as `Authorization: Bearer KEY`.")


class Forbidden(Problem):
    """The API key may not do this."""

    status = HTTPStatus.FORBIDDEN
    name = "forbidden"

    def __init__(self, needed: str, scopes: Iterable[str]) -> None:
        """Take the scope that is needed, and those that the key has."""
        super().__init__(
            f"this takes a key with the scope {needed!s}, and this key has "
            f"{', '.join(sorted(scopes))}; use another key, or ask the operator of this service."
        )


class BadLink(Problem):
    """The signed link is not for this path, has expired or was changed, or its key is gone."""

    status = HTTPStatus.FORBIDDEN
    name = "bad-link"

    def __init__(self, fact: str) -> None:
        super().__init__(f"{fact}; load the page again, or ask whoever gave the link for another.")


class UnknownRoute(Problem):
    """There is nothing at this path."""

    status = HTTPStatus.NOT_FOUND
    name = "unknown-route"

    def __init__(self, path: str) -> None:
        super().__init__(f"there is nothing at {_cut(path)}; /docs lists what there is.")


class UnknownJob(Problem):
    """There is no such job, or it was deleted or forgotten."""

    status = HTTPStatus.NOT_FOUND
    name = "unknown-job"

    def __init__(self, job: str) -> None:
        super().__init__(f"there is no job {_cut(job)}; `GET /v1/jobs` lists those that exist.")


class NoLinks(Problem):
    """This service signs no links."""

    status = HTTPStatus.NOT_FOUND
    name = "no-links"

    def __init__(self) -> None:
        super().__init__(
            "this service signs no links, as it has no DDPM_LINK_SECRET; ask its operator to set "
            "one, or send your key with each request."
        )


class UnknownImage(Problem):
    """The job has no image of this index."""

    status = HTTPStatus.NOT_FOUND
    name = "unknown-image"

    def __init__(self, index: int, start: int, count: int) -> None:
        super().__init__(
            f"index={index} is not an image of this job; use {start} to {start + count - 1}."
        )


class UnknownModel(Problem):
    """There is no such model."""

    status = HTTPStatus.NOT_FOUND
    name = "unknown-model"

    def __init__(self, model: str, known: Iterable[str]) -> None:
        super().__init__(unknown_model(model, known))


class NoSheet(Problem):
    """The model has no sheet of samples."""

    status = HTTPStatus.NOT_FOUND
    name = "no-sheet"

    def __init__(self, model: str) -> None:
        super().__init__(
            f"{model!r} has no sheet of samples; draw images of your own with POST /v1/jobs, or "
            "have the operator add the model again without `--no-draw`."
        )


class MethodNotAllowed(Problem):
    """The path is there, but not for this method."""

    status = HTTPStatus.METHOD_NOT_ALLOWED
    name = "method-not-allowed"

    def __init__(self, method: str, path: str, allowed: Iterable[str]) -> None:
        allow = ", ".join(allowed)
        super().__init__(f"{_cut(path)} does not answer to {method}; use {allow}.")
        self.headers = {"Allow": allow}


class SlowRequest(Problem):
    """The request did not arrive in time."""

    status = HTTPStatus.REQUEST_TIMEOUT
    name = "slow-request"

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"the complete request did not arrive within {seconds:g} s; send it again."
        )


class NotFinished(Problem):
    """The image is not finished; `detail` says whether it will be."""

    status = HTTPStatus.CONFLICT
    name = "not-finished"

    def __init__(self, fact: str, state: State) -> None:
        remedy = (
            "post the job again"
            if state.final
            else "poll the job until images_done grows, with ?wait=S"
        )
        super().__init__(f"{fact}, and the job is {state}; {remedy}.")


class NoPreview(Problem):
    """No worker shows the image: it has taken no step yet, or never will."""

    status = HTTPStatus.CONFLICT
    name = "no-preview"

    def __init__(self, index: int, state: State) -> None:
        remedy = (
            "post the job again"
            if state.final
            else "ask again when the job is running and `progress.step` has grown"
        )
        super().__init__(f"no worker shows image {index} and the job is {state}; {remedy}.")


class NotEnded(Problem):
    """The job has not ended, and its archive would lack images."""

    status = HTTPStatus.CONFLICT
    name = "not-ended"

    def __init__(self, state: State) -> None:
        super().__init__(
            f"the job is {state} and its archive would lack images; ask again when it has ended, "
            "as `GET` of the job with ?wait=S tells, or get the finished images one by one."
        )


class Expired(Problem):
    """The image was finished, and its time to live is over."""

    status = HTTPStatus.GONE
    name = "expired"

    def __init__(self) -> None:
        super().__init__(
            "the images of this job have expired; post the job again with its seed to get the same "
            "bytes."
        )


class BodyTooLarge(Problem):
    """The body is larger than the limit."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    name = "body-too-large"

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"the body is larger than {limit} bytes; send a job alone: it needs less than 1024 "
            "besides its webhook."
        )


class WrongContentType(Problem):
    """The body is not declared as JSON."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    name = "wrong-content-type"

    def __init__(self, content_type: str | None) -> None:
        fact = (
            f"content-type={_cut(content_type)} is not JSON"
            if content_type
            else "the request has no Content-Type"
        )
        super().__init__(f"{fact}; send `Content-Type: application/json`.")


class WrongContentEncoding(Problem):
    """The body is compressed."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    name = "wrong-content-encoding"
    # RFC 9110, section 15.5.16
    with_headers: ClassVar[Mapping[str, str]] = {"Accept-Encoding": "identity"}

    def __init__(self, content_encoding: str) -> None:
        super().__init__(
            f"content-encoding={_cut(content_encoding)} is not read here; send the body as it is, "
            "without a Content-Encoding."
        )


class WrongHost(Problem):
    """The service has no API keys and answers under its own names only; `Host` is another."""

    status = HTTPStatus.MISDIRECTED_REQUEST
    name = "wrong-host"

    def __init__(self, host: str) -> None:
        super().__init__(
            f"host={_cut(host)} is not a name that this service answers to without API keys; ask "
            "for it as localhost, or set DDPM_API_KEYS or DDPM_ANONYMOUS_HOSTS where it runs."
        )


class ThroughProxy(Problem):
    """The service has no API keys, and a proxy hands on what may come from anywhere."""

    status = HTTPStatus.FORBIDDEN
    name = "through-proxy"

    def __init__(self, header: str, host: str) -> None:
        super().__init__(
            f"the request came through a proxy ({header}) to host={_cut(host)}, and this service "
            "has no API keys; set DDPM_API_KEYS where it runs, or have the proxy hand on the Host "
            "that its clients use and name that in DDPM_ANONYMOUS_HOSTS."
        )


class InvalidRequest(Problem):
    """A field or parameter is invalid; `errors` names each."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    name = "invalid-request"

    def __init__(self, errors: Iterable[InvalidField]) -> None:
        self.errors = tuple(errors)
        super().__init__(" ".join(error.detail for error in self.errors))


class KeyReused(Problem):
    """The `Idempotency-Key` is that of a job with another body."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    name = "idempotency-key-reused"

    def __init__(self) -> None:
        super().__init__(
            "the Idempotency-Key is that of a job with another body; send a key of its own with "
            "every new job."
        )


class TooManyRequests(Problem):
    """The key has sent more requests a second than it may, or dearer ones."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    name = "too-many-requests"
    with_headers: ClassVar[Mapping[str, str]] = {"Retry-After": "1"}

    def __init__(self, per_s: float, wait_s: float, prices: str) -> None:
        """Take the limit, when to ask again, and what counts as more than one request."""
        retry_after_s = math.ceil(wait_s)
        super().__init__(
            f"this key has sent more than {per_s:g} requests a second; ask again in "
            f"{retry_after_s} s, and follow a job by its events or with ?wait=S instead of "
            f"polling. {prices}"
        )
        self.headers = {"Retry-After": str(retry_after_s)}


class TooManyStreams(Problem):
    """The key has as many streams and waits open as it may."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    name = "too-many-streams"
    with_headers: ClassVar[Mapping[str, str]] = {"Retry-After": "5"}

    def __init__(self, most: int) -> None:
        super().__init__(
            f"this key has {most} streams and waits open at this API process, which is all that it "
            "may have; close one, or ask again in 5 s."
        )


class QuotaExceeded(Problem):
    """This job would take the key's open jobs over its limit of image-steps."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    name = "quota-exceeded"
    with_headers: ClassVar[Mapping[str, str]] = {"Retry-After": "60"}

    def __init__(self, open_: int, asked: str, most: int, wait_s: int) -> None:
        """Take what is open, what the job counts as, in words, the bound, and when to ask."""
        super().__init__(
            f"your jobs have {open_} image-steps left to run, and with this job's {asked} they "
            f"would have more than the {most} that one key may have; try again in {wait_s} s, or "
            "cancel a job."
        )
        self.headers = {"Retry-After": str(wait_s)}


class TooManyJobs(Problem):
    """The key has as many jobs as it may have, open or kept; `detail` says which."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    name = "too-many-jobs"
    with_headers: ClassVar[Mapping[str, str]] = {"Retry-After": "60"}

    def __init__(self, jobs: int, kind: str, most: int, wait_s: int) -> None:
        """Take how many there are, `open` or `kept`, the bound, and when to ask."""
        remedy = (
            "cancel one" if kind == "open" else "delete some that have ended, which are kept too"
        )
        super().__init__(
            f"you have {jobs} jobs {kind}, and one key may have {most}; try again in {wait_s} s, "
            f"or {remedy}."
        )
        self.headers = {"Retry-After": str(wait_s)}


class TooManyBytes(Problem):
    """The key's images, with those of this job, would take more bytes than they may."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    name = "too-many-bytes"
    with_headers: ClassVar[Mapping[str, str]] = {"Retry-After": "60"}

    def __init__(self, kept: int, asked: int, most: int, wait_s: int) -> None:
        """Take what images take and this job's may take, the bound, and when to ask."""
        super().__init__(
            f"your images take {kept} bytes, and with this job's, up to {asked}, they would take "
            f"more than the {most} that one key may have kept; delete jobs that you have read, or "
            f"try again in {wait_s} s: images go by themselves some time after their job has ended."
        )
        self.headers = {"Retry-After": str(wait_s)}


class QueueFull(Problem):
    """This job would take all open jobs over the service's limit of image-steps."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    name = "queue-full"
    with_headers: ClassVar[Mapping[str, str]] = {"Retry-After": "60"}

    def __init__(self, open_: int, asked: str, most: int, wait_s: int) -> None:
        """Take what is open, what the job counts as, in words, the bound, and when to ask."""
        super().__init__(
            f"{open_} image-steps are left to run, and with this job's {asked} they would be more "
            f"than the {most} that the service queues; try again in {wait_s} s."
        )
        self.headers = {"Retry-After": str(wait_s)}


class HeadTooLarge(Problem):
    """The request line and headers, or the trailers, are larger or more than the limit."""

    status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
    name = "head-too-large"

    def __init__(self, limit: int, most: int) -> None:
        super().__init__(
            f"the request's line and headers, or the trailers of its body, are larger than {limit} "
            f"bytes or more than {most}; send fewer or shorter ones."
        )


class Internal(Problem):
    """A bug of the server's."""

    status = HTTPStatus.INTERNAL_SERVER_ERROR
    name = "internal"

    def __init__(self) -> None:
        super().__init__("the server failed on this request, which is a bug; its log says more.")


class LoopEnded(Problem):
    """A part of this process has ended by a bug of the service. A restart brings it back."""

    status = HTTPStatus.INTERNAL_SERVER_ERROR
    name = "loop-ended"

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__(
            f"{', '.join(names)} of this process has ended by a bug of the service; restart the "
            "API, and report what its log says (event loop.ended)."
        )


class NotOnDisk(Problem):
    """The job store (Redis) did not say in time that the job is on its disk."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    name = "not-on-disk"
    with_headers: ClassVar[Mapping[str, str]] = {"Retry-After": "2"}

    def __init__(self) -> None:
        super().__init__(
            "the job store (Redis) did not say in time that the job is on its disk, so it may not "
            "have been accepted; send it again in 2 s, with the same Idempotency-Key if it had one."
        )


class StoreUnreachable(Problem):
    """The job store (Redis) does not answer."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    name = "store-unreachable"
    with_headers: ClassVar[Mapping[str, str]] = {"Retry-After": "2"}

    def __init__(self) -> None:
        super().__init__("the job store (Redis) does not answer; try again in 2 s.")


class StoreRefuses(Problem):
    """The job store (Redis) answers, and refuses for now; `detail` says why."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    name = "store-refuses"
    with_headers: ClassVar[Mapping[str, str]] = {"Retry-After": "2"}

    def __init__(self, fact: str, needs_operator: bool) -> None:
        remedy = (
            "the operator of this service has to correct that"
            if needs_operator
            else "try again in 2 s"
        )
        super().__init__(f"the job store (Redis) {fact}; {remedy}.")


class ConnectionsInUse(Problem):
    """All connections of this API process to the job store (Redis) are in use."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    name = "connections-in-use"
    with_headers: ClassVar[Mapping[str, str]] = {"Retry-After": "1"}

    def __init__(self) -> None:
        super().__init__(
            "all connections of this API process to the job store (Redis) are in use; try again in "
            "1 s. The operator can allow more with DDPM_REDIS_CONNECTIONS."
        )


# What any request may meet that asks the job store.
STORE_AWAY = (StoreUnreachable, StoreRefuses, ConnectionsInUse)


class ResultsUnreachable(Problem):
    """The results store does not answer."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    name = "results-unreachable"
    with_headers: ClassVar[Mapping[str, str]] = {"Retry-After": "5"}

    def __init__(self) -> None:
        super().__init__(
            "the results store, which holds this job's images, does not answer; try again in 5 s."
        )


class Stopping(Problem):
    """This process is about to stop."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    name = "stopping"
    with_headers: ClassVar[Mapping[str, str]] = {"Retry-After": "2"}

    def __init__(self) -> None:
        super().__init__(
            "this process is about to stop; ask another one, or this address again in 2 s."
        )


class WorkersStarting(Problem):
    """No worker is ready yet, and one is starting."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    name = "workers-starting"
    with_headers: ClassVar[Mapping[str, str]] = {"Retry-After": "5"}

    def __init__(self) -> None:
        super().__init__(
            "no worker is ready yet: one is loading its models or measuring its machine, which "
            "takes minutes at its first start; jobs are accepted and wait; ask again in 5 s."
        )


class NoWorker(Problem):
    """No worker is alive, or none takes jobs."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    name = "no-worker"
    with_headers: ClassVar[Mapping[str, str]] = {"Retry-After": "5"}

    def __init__(self, supervisor: str = "none", fault: str = "") -> None:
        """Take what runs the workers, as DDPM_SUPERVISOR has it, and what ails those there are."""
        what = f"no worker takes jobs ({fault})" if fault else "no worker is alive"
        remedy = "mend this" if fault else _START_A_WORKER[supervisor]
        super().__init__(f"{what}: jobs are accepted but wait; {remedy}.")


class TooManyConnections(Problem):
    """All connections that this process may hold are busy with requests."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    name = "too-many-connections"
    with_headers: ClassVar[Mapping[str, str]] = {"Retry-After": "1"}

    def __init__(self, most: int) -> None:
        super().__init__(
            f"all {most} connections that this process may hold are busy; try again in 1 s."
        )


class StoreFull(Problem):
    """The job store is out of memory or disk."""

    status = HTTPStatus.INSUFFICIENT_STORAGE
    name = "store-full"

    def __init__(self) -> None:
        super().__init__(
            "the job store (Redis) is out of memory or disk; delete jobs, or give it more."
        )


def problems(*kinds: type[Problem]) -> dict[int | str, dict[str, Any]]:
    """Return OpenAPI's `responses` of the errors that a route can answer with."""
    by_status: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        entry = by_status.setdefault(
            int(kind.status), {"description": "", "content": _CONTENT, "headers": {}}
        )
        entry["description"] = f"{entry['description']} {kind.about}".strip()
        entry["headers"] |= {header: {"schema": {"type": "string"}} for header in kind.with_headers}
    return by_status


def unknown_model(model: str, known: Iterable[str]) -> str:
    """Return the text about a model that is not among the `known` ones."""
    return f"model={_cut(model)} is not known; use one of: {', '.join(sorted(known))}."


def _cut(text: str, size: int = 80) -> str:
    """Return the text in quotes, and no more than `size` characters of it."""
    return repr(text if len(text) <= size else text[:size] + "...")
