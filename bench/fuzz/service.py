"""What the fuzzer needs of the service besides answers: jobs of every kind, health and a log."""

from __future__ import annotations

import hashlib
import threading
import time
from io import BytesIO

import httpx
from PIL import Image
from redis import Redis

from bench.fuzz.corpus import JOBS
from worker.jobs import transitions
from worker.jobs.keys import preview_key
from worker.jobs.scripts import Argument, Script

_IMAGES = 2
_PROBE_EVERY_S = 0.05
# Of log lines that no client may cause.
_BUGS = ('"exception"', "Traceback", '"event": "request.failed"')


class JobsOfEveryKind:
    """Jobs that wait, run, have ended and are gone, made anew now and then.

    Cases cancel and delete them. No worker is needed: this publishes the images itself.
    """

    def __init__(self, http: httpx.Client, redis: Redis) -> None:
        self._http = http
        self._redis = redis
        self.ids = dict.fromkeys(JOBS, "")
        self.renew()

    def renew(self) -> None:
        """Post one of each."""
        made = {kind: self._post() for kind in JOBS}
        for kind, published in (("running", 1), ("finished", _IMAGES)):
            self._start(made[kind])
            self._publish(made[kind], published)
        self._redis.set(preview_key(made["running"], 1), _png(77), px=60_000)
        self._http.delete(f"/v1/jobs/{made['gone']}").raise_for_status()
        self.ids = made

    def _post(self) -> str:
        answer = self._http.post("/v1/jobs", json={"count": _IMAGES, "steps": 10})
        return str(answer.raise_for_status().json()["id"])

    def _start(self, job: str) -> None:
        taken: dict[str, Argument] = {"number": 0, "attempt": 1, "external": 0}
        self._run(transitions.START, job, fingerprint="", others="", **taken)

    def _publish(self, job: str, count: int) -> None:
        pngs = [(index, _png(index)) for index in range(count)]
        images = [(index, hashlib.sha256(png).hexdigest(), png, len(png)) for index, png in pngs]
        self._run(transitions.PUBLISH, job, field="", progress="", images=images)

    def _run(self, script: Script, job: str, **arguments: Argument) -> None:
        keys = transitions.transition_keys(job, "interactive")
        script.eval(self._redis, **keys, **arguments)


def _png(shade: int) -> bytes:
    out = BytesIO()
    Image.new("L", (8, 8), shade).save(out, "PNG")
    return out.getvalue()


class HealthProbe(threading.Thread):
    """Asks for /healthz on new connections while its block runs.

    Attributes:
        times_ms: How long each answer took.
        refused: What was not answered with 200.
    """

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._over = threading.Event()
        self.times_ms: list[float] = []
        self.refused: list[str] = []

    def __enter__(self) -> HealthProbe:
        """Begin."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._over.set()
        self.join()

    def run(self) -> None:
        """Ask until the block ends."""
        while not self._over.wait(_PROBE_EVERY_S):
            began = time.perf_counter()
            try:
                httpx.get(f"{self._url}/healthz", timeout=30, trust_env=False).raise_for_status()
            except httpx.HTTPError as error:
                self.refused.append(repr(error))
            self.times_ms.append(1e3 * (time.perf_counter() - began))


def bugs_in(log: str) -> list[str]:
    """Return the log lines that say that the service failed by a bug of its own."""
    return [line for line in log.splitlines() if any(bug in line for bug in _BUGS)]
