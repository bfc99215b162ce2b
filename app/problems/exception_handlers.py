"""Turns every exception into an answer. No other module does."""

from __future__ import annotations

import json
from http import HTTPStatus

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from redis import exceptions as redis
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from app.problems.problems import (
    BrokenBody,
    ConnectionsInUse,
    Internal,
    MethodNotAllowed,
    Problem,
    StoreFull,
    StoreRefuses,
    StoreUnreachable,
    UnknownRoute,
)
from app.problems.store_error_log import StoreErrorLog
from app.problems.validation import validation_problem
from worker.jobs.store.errors import is_exhausted, is_unreachable, refusal_of

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


def install_handlers(app: FastAPI) -> None:
    """Have `app` answer every exception with a problem."""
    for kind in (
        HTTPException,
        RequestValidationError,
        redis.RedisError,
    ):
        app.add_exception_handler(kind, problem_response)
    app.add_exception_handler(Exception, bug_response)
    app.state.store_errors = StoreErrorLog()


async def problem_response(request: Request, error: Exception) -> Response:
    """Return the answer to a request that has failed with `error`.

    Raises:
        Exception: `error` itself, where it comes from a bug of ours. The log then has it, and the
            handler of bugs answers with 500.
    """
    return render(_problem(request, error))


async def bug_response(request: Request, error: Exception) -> Response:
    """Return the answer to a request that has failed by a bug of ours, which the log has."""
    return render(Internal())


def render(problem: Problem) -> Response:
    """Return the answer to a problem, as JSON in ASCII.

    A lone surrogate in what was sent would break any other encoding.
    """
    body = json.dumps(problem.content()).encode()
    return Response(body, problem.status_code, problem.headers, "application/problem+json")


def _problem(request: Request, error: Exception) -> Problem:
    match error:
        case Problem():
            return error
        case RequestValidationError():
            return validation_problem(error.errors())
        case HTTPException():
            return _starlette_problem(request, error)
        case redis.RedisError():
            problem = _store_problem(error)
            request.app.state.store_errors.note(error, problem)
            return problem
    raise error


def _starlette_problem(request: Request, error: HTTPException) -> Problem:
    match error.status_code:
        case HTTPStatus.NOT_FOUND:
            return UnknownRoute(request.url.path)
        case HTTPStatus.METHOD_NOT_ALLOWED:
            return MethodNotAllowed(request.method, request.url.path, _allowed(request))
        case HTTPStatus.BAD_REQUEST:
            return BrokenBody(
                "the body is not JSON in UTF-8, nests too deeply or holds a number that is too "
                "long; correct it."
            )
    raise error


def _store_problem(error: redis.RedisError) -> Problem:
    """Return the problem that the job store has, or raise an error that is a bug of ours."""
    if is_exhausted(error):
        return ConnectionsInUse()
    if refusal := refusal_of(error):
        if refusal.kind == "full":
            return StoreFull()
        return StoreRefuses(refusal.fact, needs_operator=refusal.kind == "denied")
    if is_unreachable(error):
        return StoreUnreachable()
    raise error


def _allowed(request: Request) -> list[str]:
    """Return the methods of all routes that have the path.

    Starlette names those of the first such route only.
    """
    return [
        method
        for method in _METHODS
        if _answers({**request.scope, "method": "GET" if method == "HEAD" else method}, request.app)
    ]


def _answers(scope: dict[str, object], app: FastAPI) -> bool:
    return any(route.matches(scope)[0] is Match.FULL for route in app.router.routes)
