"""What one connection can send without end."""

from __future__ import annotations

_POST = b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
_CHUNKED = _POST + b"Transfer-Encoding: chunked\r\n\r\n"
_GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n"

# What is sent first, and then for ever.
ENDLESS = {
    "trailers": (_CHUNKED + b"2\r\n{}\r\n0\r\n", b"a:\r\n"),
    "one trailer": (_CHUNKED + b"2\r\n{}\r\n0\r\na: ", b"x"),
    "headers": (_GET, b"a:\r\n"),
    "one header": (_GET + b"a: ", b"x"),
    "a path": (b"GET /", b"x"),
    "requests behind an unanswered one": (b"", _GET + b"\r\n"),
    "requests with a body": (b"", _POST + b"Content-Length: 2\r\n\r\n{}"),
    "a body that is too large": (_POST + b"Content-Length: 1000000000000\r\n\r\n", b"x"),
    "chunks of one byte": (_CHUNKED, b"1\r\nx\r\n"),
    "one chunk's extension": (_CHUNKED + b"1;", b"x"),
    "empty lines": (b"", b"\r\n"),
}
