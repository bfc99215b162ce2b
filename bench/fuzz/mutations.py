"""What the fuzzer does to a valid request, and how it then sends it."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from random import Random

from bench.fuzz.corpus import HOST, Header, Request, valid

_ODD_TEXT = (
    b"",
    b" ",
    b"\t",
    b"\0",
    b"\r",
    b"\n",
    b"\r\n\r\n",
    b"\x7f",
    b"\x80",
    b"\xff\xfe",
    "\u00e9\u202e\U0001f600".encode(),
    b"%00",
    b"%0d%0aX-Injected:%20yes",
    b"%ff",
    b"%ed%a0%80",
    b"%",
    b"%zz",
    b"..",
    b"../" * 20,
    b"//",
    b"\\",
    b"'",
    b'"',
    b"{{7*7}}",
    b"${x}",
    b"-1",
    b"0",
    b"00",
    b"1e9",
    b"NaN",
    b"Infinity",
    b"9" * 20,
    b"9" * 5000,
    b"\xd9\xa1",
    b"\xb2",
    b"1_000",
    b"0x10",
    b"true",
    b"null",
    b"*",
    b",",
    b";",
    b"=",
    b"x" * 300,
    b"x" * 9000,
    b"x" * 70_000,
)
_ODD_JSON: tuple[object, ...] = (
    None,
    True,
    "",
    "\0",
    "\ud800",
    "\U0001f600",
    "9" * 400,
    0,
    -1,
    -0.0,
    0.5,
    1e308,
    float("nan"),
    float("inf"),
    2**31,
    2**32,
    2**53,
    2**63,
    2**64,
    10**400,
    [],
    [[]],
    {},
    {"$ne": 1},
    "ddim",
    "fashion-mnist-28",
    "http://127.0.0.1/",
    "https://[::1]/",
    "https://x:y@z:99999/",
    "https://" + "a." * 400 + "example",
)
_FIELDS = (
    *("model", "count", "seed", "start", "steps", "sampler", "eta", "variance"),
    *("priority", "webhook", "__proto__", "id", "owner", "state"),
)
# Headers that something here reads, and values that it may not expect.
_HEADERS: Mapping[bytes, Sequence[bytes]] = {
    b"Last-Event-ID": (b"0", b"2-1f", b"0-", b"-", b"9-" + b"f" * 300, b"2-1F", b"end", b"3-g"),
    b"Idempotency-Key": (b"k", b"k" * 255, b"k" * 256, b"a b", b"\xe9", b"a,b", b'"a"'),
    b"Range": (b"bytes=0-0", b"bytes=-1", b"bytes=9-1", b"bytes=0-0,1-1,2-", b"lines=1", b"bytes"),
    b"If-Range": (b'"x"', b"Wed, 21 Oct 2015 07:28:00 GMT", b"x"),
    b"If-None-Match": (b"*", b'"x"', b'W/"x", "y"', b'"', b"," * 500),
    b"If-Modified-Since": (b"Wed, 99 Oct 99999 07:28:00 GMT", b"0", b"Wed, 21 Oct 2015 07:28:00"),
    b"Host": (
        b"localhost:99999",
        b"[::1]",
        b"[",
        b"a b",
        b"evil.example",
        b"localhost:x",
        b"@",
        b"",
    ),
    b"Forwarded": (b'for="[::1]:1"', b"for=;;,,=", b'for="', b"for=1.2.3.4;host=a b;proto=gopher"),
    b"X-Forwarded-For": (b"1.2.3.4", b"unknown", b",,,", b"::1, x", b"1.2.3.4:99999:9"),
    b"X-Forwarded-Host": (b"a", b"a/b", b"[::", b"a:b"),
    b"X-Forwarded-Proto": (b"https", b"javascript", b"HTTP"),
    b"X-Forwarded-Prefix": (b"/x", b"//evil.example", b"/x/../y", b"/", b"x", b"/%0d"),
    b"Authorization": (b"Bearer", b"Bearer  ", b"Basic YTpi", b"Bearer \xe9", b"bearer a b c"),
    b"Accept": (b"text/event-stream", b"*/*;q=x", b"," * 300),
    b"User-Agent": (b"Mozilla/5.0", b""),
    b"Content-Type": (b"application/json; charset=utf-16", b"text/plain", b"application/", b"a/b;"),
    b"Content-Encoding": (b"gzip", b"identity", b"br, gzip"),
    b"Expect": (b"100-continue", b"200-ok", b"100-Continue"),
    b"Connection": (b"close", b"keep-alive", b"upgrade", b"close, keep-alive", b"Host"),
    b"Upgrade": (b"websocket", b"h2c", b"TLS/1.3"),
    b"Origin": (b"null", b"https://evil.example", b"https://app.example.com"),
    b"Access-Control-Request-Method": (b"DELETE", b"*", b"x y"),
    b"Access-Control-Request-Headers": (b"authorization", b"," * 300, b"x\x01"),
    b"X-Request-Id": (b"a", b"a b", b"x" * 300, b"\xe9", b"{}"),
    b"traceparent": (b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01", b"00-x-y-z", b"ff-"),
    b"TE": (b"trailers", b"gzip;q=x"),
    b"Cookie": (b"a=b; c", b"=" * 300),
    b"Content-Length": (b"0", b"1", b"-1", b"+2", b"2, 2", b"0x2", b"1e1", b"9" * 30, b" 2 ", b""),
    b"Transfer-Encoding": (
        b"chunked",
        b"chunked, chunked",
        b"gzip",
        b"identity",
        b"Chunked",
        b"\x0b",
    ),
}
_METHODS = (
    b"GET HEAD POST PUT PATCH DELETE OPTIONS TRACE CONNECT PROPFIND QUERY PRI get BREW".split()
)
_VERSIONS = (
    b"HTTP/1.0",
    b"HTTP/1.1",
    b"HTTP/0.9",
    b"HTTP/2.0",
    b"HTTP/1.2",
    b"http/1.1",
    b"HTTP/1",
)
_ENCODINGS: tuple[Callable[[bytes], bytes], ...] = (
    gzip.compress,
    zlib.compress,
    lambda body: b"\xef\xbb\xbf" + body,
    lambda body: body.decode("latin-1").encode("utf-16"),
    lambda body: body.decode("latin-1").encode("utf-32"),
    lambda body: body.replace(b'"', b"'"),
    lambda body: b"[" * 2000 + body,
    lambda body: body * 2,
    lambda body: body + b" " * 70_000,
    lambda body: b"[" + body + b"]",
)
_TRAILERS = (
    b"Idempotency-Key: k\r\n",
    b"Content-Length: 1\r\n",
    b"a:\r\n" * 900,
    b"a: " + b"x" * 5000 + b"\r\n",
    b"no colon\r\n",
    b"Transfer-Encoding: chunked\r\n",
)


class Manner(StrEnum):
    """How the bytes are sent, and what becomes of the connection."""

    WHOLE = "at once"
    PIECES = "in pieces"
    SLOW = "byte by byte, and never all"
    CUT = "cut off, and then silence"
    HALF_CLOSED = "and the sending side closed"
    UNREAD = "and for a while nothing is read"
    LEAVES = "and the client leaves"
    RESET = "and the client resets"


# Whether all of the bytes are sent, so that an answer can be expected.
SENT_WHOLE = {Manner.WHOLE, Manner.PIECES, Manner.UNREAD}


@dataclass(frozen=True, slots=True)
class Case:
    """Bytes for one connection, and how they are sent.

    Attributes:
        number: Which case of its seed.
        mutations: What was done, in words.
    """

    number: int
    data: bytes
    manner: Manner
    mutations: tuple[str, ...]


def make_case(
    seed: int, number: int, jobs: Mapping[str, str], headers: tuple[Header, ...] = ()
) -> Case:
    """Return a case of a seed. The same jobs give the same case.

    Args:
        seed: Of the run.
        number: Of the case.
        jobs: Ids of a job of each kind in `corpus.JOBS`.
        headers: What a valid request needs, such as a key.
    """
    random = Random(f"{seed}:{number}")
    mutations: list[str] = []
    data = b""
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        request = valid(random, jobs, headers)
        for change in random.choices(_CHANGES, k=random.choice((0, 1, 1, 2, 3))):
            mutations.append(change.__name__.strip("_"))
            request = change(request, random)
        data += request.to_bytes()
    for spoil in random.choices(_SPOILS, k=random.choice((0, 0, 0, 1, 2))):
        mutations.append(spoil.__name__.strip("_"))
        data = spoil(data, random)
    manner = random.choices(list(Manner), (50, 15, 2, 4, 6, 4, 10, 9))[0]
    return Case(number, data, manner, tuple(mutations))


def _target(request: Request, random: Random) -> Request:
    odd = random.choice(_ODD_TEXT)
    path = request.target
    at = random.randrange(len(path) + 1)
    changed = random.choice((path[:at] + odd + path[at:], path + odd, odd + path, odd))
    return replace(request, target=changed)


def _segment(request: Request, random: Random) -> Request:
    segments = request.target.split(b"/")
    segments[random.randrange(len(segments))] = random.choice(_ODD_TEXT)
    return replace(request, target=b"/".join(segments))


def _whole_url(request: Request, random: Random) -> Request:
    base = random.choice(
        (b"http://localhost", b"http://evil.example:1", b"https://", b"ftp://a:b@c")
    )
    return replace(request, target=base + request.target)


def _query(request: Request, random: Random) -> Request:
    path, _, query = request.target.partition(b"?")
    names = (b"wait", b"limit", b"state", b"cursor", b"owner", b"preview", b"x", b"")
    pairs = [
        random.choice(names) + random.choice((b"=", b"=", b"")) + random.choice(_ODD_TEXT)
        for _ in range(random.choice((1, 2, 40)))
    ]
    return replace(request, target=path + b"?" + b"&".join([query, *pairs]))


def _header(request: Request, random: Random) -> Request:
    name = random.choice(list(_HEADERS))
    value = random.choice((random.choice(_HEADERS[name]), random.choice(_ODD_TEXT)))
    return request.having((name, value))


def _headers_without_one(request: Request, random: Random) -> Request:
    gone = random.choice((HOST, *request.headers))
    return replace(request, headers=tuple(kept for kept in request.headers if kept != gone))


def _many_headers(request: Request, random: Random) -> Request:
    return request.having(*[(b"X-%d" % n, b"y") for n in range(random.choice((90, 98, 99, 5000)))])


def _header_twice(request: Request, random: Random) -> Request:
    return request.having(random.choice((HOST, *request.headers)))


def _odd_header_name(request: Request, random: Random) -> Request:
    name = random.choice(
        (b"", b" X", b"X ", b"X\t", b"\xe9", b"X\0", b"X" * 5000, b"(x)", b"X\r\n y")
    )
    return request.having((name, b"y"))


def _method(request: Request, random: Random) -> Request:
    return replace(request, method=random.choice((*_METHODS, *_ODD_TEXT)))


def _version(request: Request, random: Random) -> Request:
    return replace(request, version=random.choice(_VERSIONS))


def _body(request: Request, random: Random) -> Request:
    fields = {
        random.choice(_FIELDS): random.choice(_ODD_JSON) for _ in range(random.choice((1, 1, 3)))
    }
    return replace(
        request.having((b"Content-Type", b"application/json")), body=json.dumps(fields).encode()
    )


def _encoding(request: Request, random: Random) -> Request:
    return replace(request, body=random.choice(_ENCODINGS)(request.body or b"{}"))


def _chunked(request: Request, random: Random) -> Request:
    """Send the body in chunks, which are mostly wrong."""
    body = request.body or b"{}"
    cuts = sorted(random.choices(range(len(body) + 1), k=random.choice((0, 1, 5))))
    parts = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    extension = random.choice((b"", b"", b";a=b", b';a="\r"', b";" + b"x" * 300, b" "))
    chunks = [b"%x%b\r\n%b\r\n" % (len(part), extension, part) for part in parts if part]
    if random.random() < 0.4:
        size = random.choice(
            (b"-1", b"0x2", b"10000000000000000", b"g", b"", b"+1", b"1 ", b"00002")
        )
        chunks.insert(random.randrange(len(chunks) + 1), size + b"\r\nx\r\n")
    trailer = random.choice((b"", b"", b"", *_TRAILERS))
    end = random.choice((b"0\r\n", b"0\r\n", b"0\r\n", b"000\r\n", b"0;x\r\n", b""))
    written = b"".join(chunks) + end + trailer + b"\r\n"
    return replace(request.having((b"Transfer-Encoding", b"chunked")), body=written)


def _length(request: Request, random: Random) -> Request:
    """Declare another length than the body has."""
    body = request.body or b"{}"
    length = max(0, len(body) + random.choice((-1, 1, 50, 10**6, 10**12)))
    return replace(request.having((b"Content-Length", b"%d" % length)), body=body)


def _flip(data: bytes, random: Random) -> bytes:
    spoiled = bytearray(data)
    for _ in range(random.choice((1, 3, 20))):
        spoiled[random.randrange(len(spoiled))] = random.randrange(256)
    return bytes(spoiled)


def _leave_out(data: bytes, random: Random) -> bytes:
    at = random.randrange(len(data))
    return data[:at] + data[at + random.choice((1, 2, 20)) :] or b"\r\n"


def _insert(data: bytes, random: Random) -> bytes:
    at = random.randrange(len(data))
    return data[:at] + random.choice(_ODD_TEXT) + data[at:]


def _repeat(data: bytes, random: Random) -> bytes:
    a, b = sorted(random.choices(range(len(data)), k=2))
    return data[:a] + data[a:b] * random.choice((2, 3, 50)) + data[b:]


def _bare_newlines(data: bytes, random: Random) -> bytes:
    return data.replace(b"\r\n", random.choice((b"\n", b"\r", b"\n\r")), random.choice((1, -1)))


_CHANGES = (
    *(_target, _segment, _whole_url, _query, _query),
    *(_header, _header, _header, _headers_without_one, _many_headers, _header_twice),
    *(_odd_header_name, _method, _version, _body, _body, _encoding, _chunked, _chunked, _length),
)
_SPOILS = (_flip, _leave_out, _insert, _repeat, _bare_newlines)
