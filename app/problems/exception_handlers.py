"""The one place where an exception becomes an answer."""

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
from app.problems.validation import problem_of

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


def install_handlers(app: FastAPI) -> None:
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
    return render(_problem(request, error))


def render(problem: Problem) -> Response:
    """In ASCII: a lone surrogate in what was sent must not break the answer."""
    body = json.dumps(problem.content()).encode()
    return Response(body, problem.status_code, problem.headers, "application/problem+json")


def _problem(request: Request, error: Exception) -> Problem:
    match error:
        case Problem():
            return error
        case RequestValidationError():
            return problem_of(error.errors())
        case HTTPException():
            return _of_starlette(request, error)
        case redis.ResponseError():
            return _of_redis(error)
        case redis.ConnectionError() | redis.TimeoutError():
            return StoreUnreachable()
    return Internal()


def _of_starlette(request: Request, error: HTTPException) -> Problem:
    match error.status_code:
        case HTTPStatus.NOT_FOUND:
            return UnknownRoute(request.url.path)
        case HTTPStatus.METHOD_NOT_ALLOWED:
            return MethodNotAllowed(request.method, request.url.path, _allowed(request))
        case HTTPStatus.BAD_REQUEST:
            return BrokenBody(
                "the body is not JSON in UTF-8, nests too deeply or holds a number that is too long; correct it."
            )
    raise error


def _of_redis(error: redis.ResponseError) -> Problem:
    """Raises what is a bug of ours, so that it is logged as one."""
    if isinstance(error, redis.OutOfMemoryError) or "MISCONF " in str(
        error
    ):  # its disk is full; a pipeline puts words before it
        return StoreFull()
    if isinstance(error, redis.ReadOnlyError):  # a replica, while another one takes over
        return StoreUnreachable()
    raise error


def _allowed(request: Request) -> list[str]:
    """Over all routes: Starlette names the methods of the first that has the path."""
    return [
        method
        for method in _METHODS
        if _answers({**request.scope, "method": "GET" if method == "HEAD" else method}, request.app)
    ]


def _answers(scope: dict[str, object], app: FastAPI) -> bool:
    return any(route.matches(scope)[0] is Match.FULL for route in app.router.routes)
