"""Clients that post jobs over plain sockets, one after the other on each connection."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any


async def posts_per_s(port: int, job: dict[str, Any], connections: int, seconds: float) -> float:
    """Post jobs for so many seconds, and return how many were accepted a second.

    Args:
        port: Port of 127.0.0.1.
        job: What is posted.
        connections: How many clients post at the same time.
        seconds: How long they do.

    Raises:
        RuntimeError: A job was not accepted.
    """
    body = json.dumps(job).encode()
    head = (
        "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    request = head.encode() + body
    began = time.perf_counter()
    until = began + seconds
    posted = await asyncio.gather(*(_post(port, request, until) for _ in range(connections)))
    return sum(posted) / (time.perf_counter() - began)


async def _post(port: int, request: bytes, until: float) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    posted = 0
    while time.perf_counter() < until:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.partition(b":")[2])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length")
        )
        answer = await reader.readexactly(length)
        if not head.startswith(b"HTTP/1.1 202"):
            raise RuntimeError(answer.decode())
        posted += 1
    writer.close()
    return posted
