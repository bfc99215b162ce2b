"""Valid requests to every route, from which the fuzzer makes others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random

Header = tuple[bytes, bytes]
HOST: Header = (b"Host", b"localhost")
_JSON: Header = (b"Content-Type", b"application/json")
_FRAMING = {b"content-length", b"transfer-encoding"}

# What stands for ids of jobs in the paths below.
JOBS = ("queued", "running", "finished", "gone")
_OF_A_JOB = (
    "",
    "?wait=0.1",
    "?wait=20",
    "/events",
    "/events?preview=0&preview=1",
    "/grid",
    "/archive",
    "/images/0",
    "/images/1",
    "/images/0/preview",
)
_PLAIN = (
    "/",
    "/docs",
    "/openapi.json",
    "/static/page.js",
    "/static/swagger-ui-bundle.js",
    "/healthz",
    "/readyz",
    "/readyz/api",
    "/metrics",
    "/v1/me",
    "/v1/models",
    "/v1/models/fashion-mnist-28",
    "/v1/jobs",
    "/v1/jobs?state=queued&limit=3",
    "/v1/jobs?cursor=1795348800000000-9f1c2b7e4d5a4c0f8b6a3e2d1c0b9a87",
    "/v1/jobs?owner=local",
)
_BODIES: tuple[dict[str, object], ...] = (
    {},
    {"count": 2, "seed": 7},
    {"model": "fashion-mnist-28", "count": 65, "priority": "bulk", "start": 3},
    {"sampler": "ddim", "steps": 20, "eta": 0.5},
    {"sampler": "ddpm", "steps": 1000, "variance": "fixed_small"},
    {"count": 1, "webhook": "https://example.com/hook"},
)


@dataclass(frozen=True, slots=True)
class Request:
    """A request before it is written as bytes.

    Attributes:
        body: None for a request without one. Its length is declared, unless a header says how it
            is framed.
    """

    method: bytes
    target: bytes
    headers: tuple[Header, ...] = (HOST,)
    body: bytes | None = None
    version: bytes = b"HTTP/1.1"

    def having(self, *headers: Header) -> Request:
        """Return the request with more headers."""
        return replace(self, headers=(*self.headers, *headers))

    def to_bytes(self) -> bytes:
        """Return the request as it goes over the wire."""
        headers = list(self.headers)
        if self.body is not None and not {name.lower() for name, _ in headers} & _FRAMING:
            headers.append((b"Content-Length", b"%d" % len(self.body)))
        lines = [
            b" ".join((self.method, self.target, self.version)),
            *(name + b": " + value for name, value in headers),
        ]
        return b"\r\n".join(lines) + b"\r\n\r\n" + (self.body or b"")


def valid(random: Random, jobs: Mapping[str, str], headers: tuple[Header, ...] = ()) -> Request:
    """Return a request that the service answers without complaint.

    Args:
        random: What chooses it.
        jobs: Ids of a job of each kind in `JOBS`.
        headers: What it needs besides, such as a key.
    """
    made = random.choice((_get, _get, _of_a_job, _of_a_job, _post, _change))(random, jobs)
    return made.having(*headers)


def _get(random: Random, jobs: Mapping[str, str]) -> Request:
    return Request(random.choice((b"GET", b"GET", b"HEAD")), random.choice(_PLAIN).encode())


def _of_a_job(random: Random, jobs: Mapping[str, str]) -> Request:
    job = jobs[random.choice(JOBS)]
    return Request(
        random.choice((b"GET", b"GET", b"GET", b"HEAD")),
        f"/v1/jobs/{job}{random.choice(_OF_A_JOB)}".encode(),
    )


def _post(random: Random, jobs: Mapping[str, str]) -> Request:
    body = json.dumps(random.choice(_BODIES)).encode()
    return Request(b"POST", b"/v1/jobs", (HOST, _JSON), body)


def _change(random: Random, jobs: Mapping[str, str]) -> Request:
    job = jobs[random.choice(JOBS)]
    if random.random() < 0.5:
        return Request(b"POST", f"/v1/jobs/{job}/cancel".encode(), body=b"")
    return Request(b"DELETE", f"/v1/jobs/{job}".encode())
