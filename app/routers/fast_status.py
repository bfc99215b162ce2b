"""The request that comes most often, past routing, dependencies and validation: they are half of its time."""

from __future__ import annotations

import re

from redis.exceptions import RedisError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.jobs.jobs import Jobs
from app.problems.exception_handlers import problem_response
from app.problems.problems import Problem

_STATUS = re.compile("/v1/jobs/([^/]+)")


class FastStatus:
    """Answers `GET /v1/jobs/{id}` without a query as app/routers/jobs.py would, and hands on all else."""

    def __init__(self, app: ASGIApp, jobs: Jobs) -> None:
        self.app, self._jobs = app, jobs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = (
            _STATUS.fullmatch(scope["path"])
            if scope.get("method") == "GET" and not scope["query_string"]
            else None
        )
        if found is None:
            return await self.app(scope, receive, send)
        try:
            response = Response(
                await self._jobs.status(found[1], scope["state"]["key"].name),
                media_type="application/json",
            )
        except (Problem, RedisError) as error:
            response = await problem_response(Request(scope), error)
        return await response(scope, receive, send)
