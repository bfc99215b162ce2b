"""Answers the most frequent request, a job's status, past routing, dependencies and validation.

Those take half of its time.
"""

from __future__ import annotations

import re

from redis.exceptions import RedisError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.http.request_log import note_route
from app.jobs.queries import JobQueries
from app.problems.exception_handlers import problem_response
from app.problems.problems import Problem

_STATUS_PATH = re.compile("/v1/jobs/([^/]+)")


_ROUTE = "/v1/jobs/{job_id}"


class FastStatus:
    """Answers `GET /v1/jobs/{id}` without a query as app/routers/jobs.py would.

    Every other request goes on to the routes.
    """

    def __init__(self, app: ASGIApp, queries: JobQueries) -> None:
        self.app = app
        self._queries = queries

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, or hand it on."""
        job = _job_id(scope)
        if job is None:
            return await self.app(scope, receive, send)
        note_route(scope, _ROUTE, job)
        response: Response
        try:
            status = await self._queries.status(job, scope["state"]["key"].sees)
            response = Response(status, media_type="application/json")
        except (Problem, RedisError) as error:
            response = await problem_response(Request(scope), error)
        return await response(scope, receive, send)


def _job_id(scope: Scope) -> str | None:
    """Return the id of the job whose status the request asks for; None for other requests."""
    if scope.get("method") != "GET" or scope["query_string"]:
        return None
    path = _STATUS_PATH.fullmatch(scope["path"])
    return path and path[1]
