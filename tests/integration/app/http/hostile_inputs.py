"""Hostile inputs and the status of the answer to each: the rows of the page on them.

The page is docs/reference/hostile-inputs.md.
"""

from __future__ import annotations

import json

from tests.support.raw_http import HOST, get, post

_JOB = b"/v1/jobs/" + b"0" * 32


def _field(name: str, value: object) -> bytes:
    return post(json.dumps({"model": "tiny", name: value}).encode())


def _number(text: str, field: str = "count") -> bytes:
    return post(f'{{"model": "tiny", "{field}": {text}}}'.encode())


def _chunked(*chunks: bytes, more: bytes = b"") -> bytes:
    head = (
        b"POST /v1/jobs HTTP/1.1\r\n"
        + HOST
        + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
        + more
    )
    return (
        head
        + b"\r\n"
        + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
        + b"0\r\n\r\n"
    )


SIZES = {
    "a body of 64 KiB": (post(b'{"model": "tiny"}'.ljust(65_536)), 202),
    "a body of 64 KiB and a byte": (post(b'{"model": "tiny"}'.ljust(65_537)), 413),
    "a body of 10 MB": (post(b" " * 10_000_000), 413),
    "a body of 10 MB in chunks": (_chunked(*[b" " * 10_000] * 1000), 413),
    "a body of which 1 GB is declared": (post(b"{", length=10**9), 413),
    "an empty body": (post(b""), 422),
    "headers of 1 MB": (get(_JOB, b"X: " + b"x" * 1_000_000), 431),
    "10,000 headers": (get(_JOB, *[b"X-%d: xxxxxxxxxxxxxxx" % n for n in range(10_000)]), 431),
    "100 headers": (get(_JOB, *[b"X: y"] * 99), 404),
    "101 headers": (get(_JOB, *[b"X: y"] * 100), 431),
    "trailers of 1 MB": (_chunked(b"{}")[:-2] + b"a:\r\n" * 250_000 + b"\r\n", 431),
    "one trailer of 1 MB": (_chunked(b"{}")[:-2] + b"a: " + b"x" * 1_000_000 + b"\r\n\r\n", 431),
    "a chunk's extension of 1 MB": (
        _chunked(b"{}").replace(b"\r\n2\r\n", b"\r\n2;" + b"x" * 1_000_000 + b"\r\n"),
        413,
    ),
    "a path of 1 MB": (get(b"/" + b"x" * 1_000_000), 431),
    "a model's name of 60,000 letters": (_field("model", "x" * 60_000), 422),
    "3,000 unknown fields": (post(json.dumps({str(n): n for n in range(3000)}).encode()), 422),
}
NUMBERS = {
    "count 0": (_number("0"), 422),
    "count 10^9": (_number("1000000000"), 422),
    "count 1e999": (_number("1e999"), 422),
    "count NaN": (_number("NaN"), 422),
    "count -Infinity": (_number("-Infinity"), 422),
    "count of 5,000 digits": (_number("9" * 5000), 400),
    "count 1e2, which is 100": (_number("1e2"), 202),
    "seed 2^53": (_number(str(2**53), "seed"), 422),
    "seed -1": (_number("-1", "seed"), 422),
    "start 2^32": (_number(str(2**32), "start"), 422),
    "steps 10^9": (_number("1000000000", "steps"), 422),
    "steps -0": (_number("-0", "steps"), 422),
    "the image of index 2^64": (get(_JOB + b"/images/" + str(2**64).encode()), 422),
    "an index in Arabic digits": (get(_JOB + b"/images/%D9%A1"), 404),
}
TYPES = {
    "a count in quotes": (_field("count", "7"), 422),
    "true for a count": (_field("count", True), 422),
    "a list for a count": (_field("count", [1]), 422),
    "an object for a model": (_field("model", {"$ne": ""}), 422),
    "a list for the body": (post(b"[]"), 422),
    "null for the body": (post(b"null"), 422),
    "a field __proto__": (_field("__proto__", {"count": 1}), 422),
    "a field twice: the last one counts": (
        post(b'{"model": "tiny", "count": 2000, "count": 1}'),
        202,
    ),
    "50,000 brackets": (post(b"[" * 50_000), 400),
    "900 nested objects": (post(b'{"x": ' + b'{"a":' * 900 + b"1" + b"}" * 901), 422),
    "a trailing comma": (post(b'{"count": 1,}'), 400),
    "a form": (
        post(b"count=1").replace(b"application/json", b"application/x-www-form-urlencoded"),
        415,
    ),
    "XML": (post(b"<!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><x>&e;</x>"), 400),
    "a compressed body": (post(b"\x1f\x8b\x08", b"Content-Encoding: gzip"), 415),
    "a plain body that is called compressed": (post(b"{}", b"Content-Encoding: gzip"), 415),
    "a body in the encoding identity": (
        post(b'{"model": "tiny"}', b"Content-Encoding: Identity"),
        202,
    ),
}
UNICODE = {
    "a lone surrogate": (post(rb'{"model": "\ud800"}'), 422),
    "a NUL in a name": (post(rb'{"model": "tiny\u0000"}'), 422),
    "a name written from right to left": (_field("model", "\u202eynit"), 422),
    "a name in four-byte letters": (post('{"model": "\U0001f600"}'.encode()), 422),
    "a name in full-width letters": (_field("model", "\uff54iny"), 422),
    "bytes that are no UTF-8": (post(b'{"model": "\xff\xfe"}'), 400),
    "UTF-16": (post('{"model": "tiny"}'.encode("utf-16")), 202),
    "a byte order mark": (post(b'\xef\xbb\xbf{"model": "tiny"}'), 202),
    "a path that is no UTF-8": (get(b"/v1/jobs/%FF%FE"), 404),
    "a path in raw UTF-8": (get("/v1/jobs/\u00e9".encode()), 400),
}
HEADERS = {
    "a line break in an id": (get(b"/v1/jobs/x%0d%0aX-Injected:%20yes"), 404),
    "a line break in a query": (get(b"/v1/jobs?cursor=%0d%0aX-Injected:%20yes"), 422),
    "a NUL in a path": (get(b"/v1/jobs/%00"), 404),
    "a carriage return in an Idempotency-Key": (
        post(b"{}", b"Idempotency-Key: a\rX-Injected: yes"),
        400,
    ),
    "a NUL in an Idempotency-Key": (post(b"{}", b"Idempotency-Key: a\0b"), 400),
    "two Idempotency-Keys": (post(b"{}", b"Idempotency-Key: a", b"Idempotency-Key: b"), 400),
    "two Authorizations": (
        get(b"/v1/jobs", b"Authorization: Bearer a", b"Authorization: Bearer b"),
        400,
    ),
    "two Content-Types": (post(b"{}", b"Content-Type: text/plain"), 400),
    "two Last-Event-IDs": (get(_JOB + b"/events", *[b"Last-Event-ID: 1-0"] * 2), 400),
    "an Idempotency-Key that is not ASCII": (post(b"{}", "Idempotency-Key: \u00e9".encode()), 422),
    "an Idempotency-Key of 300 letters": (post(b"{}", b"Idempotency-Key: " + b"k" * 300), 422),
    "another name in Host": (get(b"/v1/jobs").replace(b"localhost", b"evil.example"), 421),
    "a line break in Host": (
        get(b"/v1/jobs").replace(b"localhost", b"localhost\rX-Injected: yes"),
        400,
    ),
    "two Hosts": (get(b"/v1/jobs", b"Host: evil.example"), 400),
    "two Hosts of one name": (get(b"/v1/jobs", b"HOST: localhost"), 400),
    "no Host": (b"GET /v1/jobs HTTP/1.1\r\n\r\n", 421),
    "X-Forwarded-Host and X-Forwarded-Prefix": (
        get(b"/v1/jobs", b"X-Forwarded-Host: evil.example", b"X-Forwarded-Prefix: //e"),
        403,
    ),
    "X-Forwarded-For, without keys": (get(b"/v1/jobs", b"X-Forwarded-For: 192.0.2.7"), 403),
    "Forwarded, without keys": (get(b"/v1/jobs", b"Forwarded: for=192.0.2.7"), 403),
    "Via, without keys": (get(b"/v1/jobs", b"Via: 1.1 proxy"), 403),
    "an Idempotency-Key of 300 letters in a trailer, which is no header": (
        _chunked(b'{"model": "tiny"}')[:-2] + b"Idempotency-Key: " + b"k" * 300 + b"\r\n\r\n",
        202,
    ),
    "X-HTTP-Method-Override": (get(b"/v1/jobs", b"X-HTTP-Method-Override: DELETE"), 200),
    "a space before a header's colon": (get(b"/v1/jobs", b"X : y"), 400),
    "a folded header": (get(b"/v1/jobs", b"X: y", b" z"), 400),
}
PATHS = {
    "/v1/jobs/..%2f..%2fhealthz": (get(b"/v1/jobs/..%2f..%2fhealthz"), 404),
    "/v1/jobs/../../healthz": (get(b"/v1/jobs/../../healthz"), 404),
    "/v1/jobs/..%5c..%5cetc%5cpasswd": (get(b"/v1/jobs/..%5c..%5cetc%5cpasswd"), 404),
    "/v1/models/..%2f..%2f..%2fetc%2fpasswd": (get(b"/v1/models/..%2f..%2f..%2fetc%2fpasswd"), 404),
    "//v1/jobs": (get(b"//v1/jobs"), 404),
    "/v1//jobs": (get(b"/v1//jobs"), 404),
    "/v1/jobs/": (get(b"/v1/jobs/"), 404),
    "/v1/jobs;x=y": (get(b"/v1/jobs;x=y"), 404),
    "/V1/JOBS": (get(b"/V1/JOBS"), 404),
    "/v1/jobs#x": (get(b"/v1/jobs#x"), 200),
    "/v1/%6aobs": (get(b"/v1/%6aobs"), 200),
    "an id with :sha256 behind it, which names a key": (get(_JOB + b":sha256"), 404),
    "a whole URL of ours": (get(b"http://localhost/v1/jobs"), 200),
    "a whole URL of another host": (get(b"http://evil.example/v1/jobs"), 421),
    "a whole URL of ours, with another Host": (
        get(b"http://localhost/v1/jobs").replace(b"Host: localhost", b"Host: evil.example"),
        200,
    ),
    "a path without a slash": (get(b"v1/jobs"), 400),
    "CONNECT": (b"CONNECT evil.example:443 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "OPTIONS *": (b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", 404),
}
PROTOCOL = {
    "no HTTP": (b"nonsense\r\n\r\n", 400),
    "a TLS hello": (b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + b"\x00" * 64, 400),
    "HTTP/0.9": (b"GET /healthz\r\n\r\n", 200),
    "HTTP/1.0": (get(b"/healthz", version=b"HTTP/1.0"), 200),
    "HTTP/2 without being asked": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "HTTP/9.9": (get(b"/healthz", version=b"HTTP/9.9"), 400),
    "an upgrade to h2c": (
        get(
            b"/healthz",
            b"Connection: Upgrade, HTTP2-Settings",
            b"Upgrade: h2c",
            b"HTTP2-Settings: AAMAAABk",
        ),
        200,
    ),
    "an upgrade to a WebSocket": (
        get(b"/healthz", b"Connection: Upgrade", b"Upgrade: websocket"),
        200,
    ),
    "a method in small letters": (get(b"/healthz").replace(b"GET", b"get"), 400),
    "a method of its own": (get(b"/healthz").replace(b"GET", b"BREW"), 400),
    "TRACE": (get(b"/healthz").replace(b"GET", b"TRACE"), 405),
    "Content-Length -1": (post(b"{}", length=-1), 400),
    "Content-Length 1e3": (post(b"{}", length="1e3"), 400),
    "two Content-Lengths": (post(b"{}", b"Content-Length: 3"), 400),
    "Content-Length beside chunks": (_chunked(b"{}", more=b"Content-Length: 2\r\n"), 400),
    "Transfer-Encoding: xchunked": (post(b"{}", b"Transfer-Encoding: xchunked"), 400),
    "Transfer-Encoding: gzip, chunked, and no gzip": (
        _chunked(b"{}").replace(b": chunked", b": gzip, chunked"),
        400,
    ),
    "a chunk of 2^64 bytes": (
        _chunked(b"{}").replace(b"\r\n2\r\n", b"\r\n10000000000000000\r\n"),
        400,
    ),
    "a chunk of -1 bytes": (_chunked(b"{}").replace(b"\r\n2\r\n", b"\r\n-1\r\n"), 400),
    "lines that end in \\n alone": (get(b"/healthz").replace(b"\r\n", b"\n"), 400),
}
FUZZED = {
    "a chunk that breaks behind a whole one": (_chunked(b"{}")[:-5] + b"zz\r\n", 400),
    "a chunk's extension with a bare carriage return": (
        _chunked(b"{}").replace(b"\r\n2\r\n", b'\r\n2;a="\r"\r\n'),
        400,
    ),
    "a chunk of +2 bytes": (_chunked(b"{}").replace(b"\r\n2\r\n", b"\r\n+2\r\n"), 400),
    "a chunk of 0x2 bytes": (_chunked(b"{}").replace(b"\r\n2\r\n", b"\r\n0x2\r\n"), 400),
    "a chunk without a size": (_chunked(b"{}").replace(b"\r\n2\r\n", b"\r\n\r\n"), 400),
    "a trailer without a colon": (_chunked(b"{}")[:-2] + b"no colon\r\n\r\n", 400),
    "Content-Length +2": (post(b"{}", length="+2"), 400),
    "Content-Length 2, 2": (post(b"{}", length="2, 2"), 400),
    "Content-Length 0x2": (post(b"{}", length="0x2"), 400),
    "an empty Content-Length": (post(b"{}", length=""), 400),
    "Transfer-Encoding: chunked, chunked": (
        _chunked(b"{}").replace(b": chunked", b": chunked, chunked"),
        400,
    ),
    "an Expect of another kind": (post(b'{"model": "tiny"}', b"Expect: 200-ok"), 202),
    "HTTP/1.2": (get(b"/healthz", version=b"HTTP/1.2"), 400),
    "http/1.1": (get(b"/healthz", version=b"http/1.1"), 400),
    "a header without a name": (get(b"/healthz", b": y"), 400),
    "a header's name in brackets": (get(b"/healthz", b"(x): y"), 400),
    "a port of 99999 in Host": (get(b"/v1/jobs").replace(b"localhost", b"localhost:99999"), 200),
    "a bracket in Host": (get(b"/v1/jobs").replace(b"localhost", b"["), 421),
    "an empty Host": (get(b"/v1/jobs").replace(b"localhost", b""), 421),
    "half a surrogate in a path": (get(b"/v1/jobs/%ed%a0%80"), 404),
    "a limit of 1_0": (get(b"/v1/jobs?limit=1_0"), 422),
    "a wait of 1_0": (get(_JOB + b"?wait=1_0"), 422),
    "a limit in Arabic digits": (get(b"/v1/jobs?limit=%D9%A1"), 422),
    "a wait of 1e-9": (get(_JOB + b"?wait=1e-9"), 404),
    "a wait of NaN": (get(_JOB + b"?wait=NaN"), 422),
    "forty waits": (get(_JOB + b"?" + b"&".join([b"wait=x"] * 40)), 422),
    "a range that ends before it begins": (get(b"/", b"Range: bytes=9-1"), 200),
    "500 commas in If-None-Match": (get(b"/openapi.json", b"If-None-Match: " + b"," * 500), 200),
    "UTF-32": (post('{"model": "tiny"}'.encode("utf-32")), 202),
    "two bodies in one": (post(b"{}{}"), 400),
    "a traceparent of zeros": (
        get(b"/v1/jobs", b"traceparent: 00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01"),
        200,
    ),
}
GROUPS = {
    "Sizes": SIZES,
    "Numbers": NUMBERS,
    "Types": TYPES,
    "Unicode": UNICODE,
    "Headers": HEADERS,
    "Paths": PATHS,
    "Protocol": PROTOCOL,
    "What the fuzzer has tried": FUZZED,
}
