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
    Internal,
    MethodNotAllowed,
    Problem,
    StoreFull,
    StoreUnreachable,
    UnknownRoute,
)
from app.problems.validation import validation_problem

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


def install_handlers(app: FastAPI) -> None:
    """Have `app` answer every exception with a problem."""
    for kind in (
        HTTPException,
        RequestValidationError,
        redis.ConnectionError,
        redis.TimeoutError,
        redis.ResponseError,
        Exception,
    ):
        app.add_exception_handler(kind, problem_response)


async def problem_response(request: Request, error: Exception) -> Response:
    """Return the answer to a request that has failed with `error`.

    Raises:
        Exception: `error` itself, where it comes from a bug of ours. The log then has it, and the
            handler of bugs answers with 500.
    """
    return render(_problem(request, error))


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
        case redis.ResponseError():
            return _redis_problem(error)
        case redis.ConnectionError() | redis.TimeoutError():
            return StoreUnreachable()
    return Internal()


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


def _redis_problem(error: redis.ResponseError) -> Problem:
    """Return the problem that Redis has, or raise an error that is a bug of ours."""
    # MISCONF: its disk is full. A pipeline puts words before it.
    if isinstance(error, redis.OutOfMemoryError) or "MISCONF " in str(error):
        return StoreFull()
    # A replica, while another one takes over.
    if isinstance(error, redis.ReadOnlyError):
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
