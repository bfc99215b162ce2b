"""Every bad request, and the answer to it."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from redis import Redis

from tests.support.problems import problem
from tests.support.worker import IdleWorker
from worker.jobs.keys import sha256_key

JSON = {"content-type": "application/json"}

BAD_FIELDS = [
    ("count", 0, "count=0 is less than 1; use 1 or more."),
    ("count", 1025, "count=1025 is more than 1024; use 1024 or less."),
    ("count", "7", 'count="7" is not an integer; send digits without quotes or a fraction.'),
    ("count", 7.5, "count=7.5 is not an integer; send digits without quotes or a fraction."),
    ("count", True, "count=true is not an integer; send digits without quotes or a fraction."),
    ("count", None, "count=null is not an integer; send digits without quotes or a fraction."),
    ("seed", -1, "seed=-1 is less than 0; use 0 or more."),
    (
        "seed",
        2**53,
        "seed=9007199254740992 is more than 9007199254740991; use 9007199254740991 or less.",
    ),
    ("start", -1, "start=-1 is less than 0; use 0 or more."),
    ("start", 2**32 - 1023, "start=4294966273 is more than 4294966272; use 4294966272 or less."),
    ("steps", 0, "steps=0 is less than 1; use 1 or more."),
    (
        "steps",
        2000,
        "steps=2000 is more than the 1000 that 'tiny' was trained with; use 1 to 1000.",
    ),
    ("model", "nobody", "model='nobody' is not known; use one of: "),
    ("model", 7, "model=7 is not a string; send one in quotes."),
    (
        "sampler",
        "euler",
        "sampler=\"euler\" is not known; use one of: 'ddpm', 'ddim' or 'dpmpp_2m'.",
    ),
    (
        "priority",
        "urgent",
        "priority=\"urgent\" is not known; use one of: 'interactive' or 'bulk'.",
    ),
    (
        "nonsense",
        1,
        "nonsense=1 is not a known field; remove it, or see /docs for the fields there are.",
    ),
    (
        "eta",
        0.5,
        "eta is an option of sampler ddim, and the request names no sampler; "
        'send "sampler": "ddim" or leave it out.',
    ),
    (
        "variance",
        "fixed_large",
        "variance is an option of sampler ddpm, and the request names no sampler; "
        'send "sampler": "ddpm"',
    ),
]


@pytest.mark.parametrize(("field", "value", "detail"), BAD_FIELDS)
def test_a_bad_field_is_named_with_its_value_and_the_remedy(
    api: httpx.Client, field: str, value: object, detail: str
) -> None:
    body = problem(api.post("/v1/jobs", json={"model": "tiny"} | {field: value}), 422)
    (error,) = body["errors"]
    assert error["field"] == field
    assert error["value"] == json.dumps(value)
    assert body["detail"].startswith(detail)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("field", ["count", "seed", "eta"])
def test_a_number_that_is_not_finite_is_refused(api: httpx.Client, field: str, number: str) -> None:
    body = f'{{"model": "tiny", "sampler": "ddim", "{field}": {number}}}'
    refused = problem(api.post("/v1/jobs", content=body, headers=JSON), 422)
    assert refused["errors"][0]["field"] == field


def test_an_option_of_another_sampler_is_refused(api: httpx.Client) -> None:
    request = {"model": "tiny", "sampler": "dpmpp_2m", "eta": 0.5}
    assert problem(api.post("/v1/jobs", json=request), 422)["detail"] == (
        'eta is an option of sampler ddim, not of dpmpp_2m; send "sampler": "ddim" or leave it out.'
    )


def test_every_bad_field_of_a_request_is_named(api: httpx.Client) -> None:
    body = problem(api.post("/v1/jobs", json={"count": 0, "seed": -1}), 422)
    assert [error["field"] for error in body["errors"]] == ["count", "seed"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        '{"count": 1,}',
        "nonsense",
        "[" * 50_000,
        '{"count": ' + "9" * 5000 + "}",
        b"\xff\xfe",
    ],
)
def test_a_body_that_is_not_json_is_refused(api: httpx.Client, content: str | bytes) -> None:
    status = 422 if content == "" else 400
    problem(api.post("/v1/jobs", content=content, headers=JSON), status)


def test_a_number_that_is_too_long_is_named_as_such(api: httpx.Client) -> None:
    body = problem(api.post("/v1/jobs", content='{"count": ' + "9" * 5000 + "}", headers=JSON), 400)
    assert "a number that is too long" in body["detail"]


def test_broken_json_is_refused_with_the_place(api: httpx.Client) -> None:
    body = problem(api.post("/v1/jobs", content='{"count": }', headers=JSON), 400)
    detail = "the body is not JSON: Expecting value at character 10; correct it there."
    assert body["detail"] == detail


@pytest.mark.parametrize("content", ["[]", "null", "7", '"text"'])
def test_json_that_is_no_object_is_refused(api: httpx.Client, content: str) -> None:
    problem(api.post("/v1/jobs", content=content, headers=JSON), 422)


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", "json", None],
)
def test_another_content_type_is_refused(api: httpx.Client, content_type: str | None) -> None:
    headers = {"content-type": content_type} if content_type else {}
    body = problem(api.post("/v1/jobs", content=b"{}", headers=headers), 415)
    assert "send `Content-Type: application/json`" in body["detail"]


def test_a_body_of_10_mb_is_refused(api: httpx.Client) -> None:
    body = problem(api.post("/v1/jobs", content=b" " * 10_000_000, headers=JSON), 413)
    assert body["detail"] == (
        "the body is larger than 65536 bytes; send a job alone: it needs less than 1024 besides "
        "its webhook."
    )


def test_a_large_body_without_a_length_is_refused_too(api: httpx.Client) -> None:
    chunks = (b" " * 10_000 for _ in range(100))
    problem(api.post("/v1/jobs", content=chunks, headers=JSON), 413)


def test_a_body_of_64_kib_is_read(api: httpx.Client) -> None:
    content = b'{"model": "tiny"}'.ljust(65_536)
    assert api.post("/v1/jobs", content=content, headers=JSON).status_code == 202


def test_a_lone_surrogate_breaks_nothing(api: httpx.Client) -> None:
    for content in (rb'{"model": "\ud800"}', rb'{"\ud800": 1}', rb'{"sampler": "\ud800"}'):
        problem(api.post("/v1/jobs", content=content, headers=JSON), 422)


def test_long_values_are_cut(api: httpx.Client) -> None:
    assert len(api.post("/v1/jobs", json={"model": "x" * 60_000}).content) < 1000
    assert len(api.post("/v1/jobs", json={str(k): k for k in range(5000)}).content) < 5000


UNKNOWN = [
    "nobody",
    "0" * 31,
    "0" * 32,
    "0" * 33,
    "A" * 32,
    "%00",
    "x%00y",
    "%F0%9F%98%80",
    "%FF",
    "..%2F",
    "x" * 8000,
    "0" * 32 + ":png",
]


@pytest.mark.parametrize("job", UNKNOWN)
@pytest.mark.parametrize(
    ("method", "rest"),
    [
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/cancel"),
        ("GET", "/grid"),
        ("GET", "/archive"),
        ("GET", "/images/0"),
        ("GET", "/images/0/preview"),
    ],
)
def test_an_unknown_job_is_not_found(api: httpx.Client, method: str, job: str, rest: str) -> None:
    problem(api.request(method, f"/v1/jobs/{job}{rest}"), 404)


def test_a_key_beside_a_job_is_no_job(api: httpx.Client, redis: Redis) -> None:
    redis.hset(sha256_key("0" * 32), "0", "ab")
    problem(api.get(f"/v1/jobs/{'0' * 32}:sha256"), 404)


@pytest.mark.parametrize("path", ["/v1", "/v1/jobs/", "/v1/models/", "/nothing", "/v1/jobs/x/y/z"])
def test_an_unknown_path_is_not_found(api: httpx.Client, path: str) -> None:
    problem(api.get(path), 404)


@pytest.mark.parametrize(
    "index", ["1_0", "00", "01", "%2000", "0%20", "0%0A", "0.0", "+0", "-1", "%D9%A0", "x"]
)
def test_an_image_has_one_path_only(api: httpx.Client, index: str) -> None:
    job = api.post("/v1/jobs", json={"model": "tiny", "count": 20}).json()["id"]
    for known in ("0", "10"):
        problem(api.get(f"/v1/jobs/{job}/images/{known}"), 409)
    problem(api.get(f"/v1/jobs/{job}/images/{index}"), 404)


@pytest.mark.parametrize("index", [str(2**32), "9" * 5000])
def test_an_index_out_of_range_is_named(api: httpx.Client, index: str) -> None:
    refused = problem(api.get(f"/v1/jobs/{'0' * 32}/images/{index}"), 422)
    assert refused["errors"][0]["field"] == "index"


def test_an_unknown_model_is_not_found(api: httpx.Client) -> None:
    detail = problem(api.get("/v1/models/nobody"), 404)["detail"]
    assert detail.startswith("model='nobody' is not known; use one of: ")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/v1/jobs", "GET, HEAD, POST"),
        ("POST", "/v1/jobs/x", "GET, HEAD, DELETE"),
        ("GET", "/v1/jobs/x/cancel", "POST"),
        ("HEAD", "/v1/jobs/x/cancel", "POST"),
        ("DELETE", "/healthz", "GET, HEAD"),
        ("TRACE", "/v1/models", "GET, HEAD"),
    ],
)
def test_a_method_that_is_not_allowed_is_answered_with_all_that_are(
    api: httpx.Client, method: str, path: str, allow: str
) -> None:
    response = api.request(method, path)
    assert (response.status_code, response.headers["allow"]) == (405, allow)
    if method != "HEAD":
        problem(response, 405)


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 101}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"state": "asleep"}, "state"),
        ({"cursor": "nonsense"}, "cursor"),
        ({"cursor": "1-" + "0" * 31 + "\n"}, "cursor"),
    ],
)
def test_a_bad_parameter_of_a_listing_is_named(
    api: httpx.Client, params: dict[str, Any], field: str
) -> None:
    assert problem(api.get("/v1/jobs", params=params), 422)["errors"][0]["field"] == field


@pytest.mark.parametrize("wait", [-1, 61, "NaN", "inf", "long"])
def test_a_bad_wait_is_named(api: httpx.Client, wait: object) -> None:
    refused = problem(api.get(f"/v1/jobs/{'0' * 32}", params={"wait": wait}), 422)
    assert refused["errors"][0]["field"] == "wait"


def test_an_unfinished_image_says_whether_to_wait(api: httpx.Client) -> None:
    job = api.post("/v1/jobs", json={"model": "tiny"}).json()["id"]
    assert "poll" in problem(api.get(f"/v1/jobs/{job}/images/0"), 409)["detail"]
    assert problem(api.get(f"/v1/jobs/{job}/grid"), 409)["detail"].startswith(
        "no image is finished, and the job is queued; poll"
    )
    api.post(f"/v1/jobs/{job}/cancel")
    assert "post the job again" in problem(api.get(f"/v1/jobs/{job}/images/0"), 409)["detail"]


def test_readiness_needs_a_live_worker(api: httpx.Client, worker: IdleWorker) -> None:
    assert "no worker" in problem(api.get("/readyz"), 503)["detail"]
    worker.announce(lives_s=-1)
    problem(api.get("/readyz"), 503)
    worker.announce()
    response = api.get("/readyz")
    assert response.status_code == 200
    tiny = {"precision": "fp32", "kernels": "pytorch", "threads": 1, "seconds": {"1": 0.01}}
    tiny |= {"fingerprint": "a1b2c3d4e5f6", "state": "loaded"}
    expected = {"name": "worker-1", "device": "cpu", "models": {"tiny": tiny}}
    expected |= {"loading": [], "unserved": {}, "memory_bytes": 0, "memory_bound_bytes": 0}
    assert response.json()["workers"] == [expected | {"image_steps_per_s": 100.0, "fault": ""}]
    assert api.get("/healthz").json() == {"status": "alive"}


def test_the_readiness_of_the_api_needs_no_worker(api: httpx.Client) -> None:
    assert api.get("/readyz/api").json() == {"status": "ready"}


def test_no_depth_of_nesting_is_a_5xx(api: httpx.Client) -> None:
    """A body near Python's limit of recursion can be read, and be too deep for the answer."""
    for depth in range(400, 1100, 7):
        lists = "[" * depth + "]" * depth
        objects = '{"a":' * depth + "1" + "}" * depth
        for nested in (lists, objects):
            content = f'{{"x": {nested}}}'
            assert api.post("/v1/jobs", content=content, headers=JSON).status_code in (400, 422)
