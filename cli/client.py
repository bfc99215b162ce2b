"""HTTP to the service. A request is sent again where sending it twice is harmless."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx

from app.access.api_keys import is_loopback_host
from cli.faults import Fault
from cli.problem import detail
from worker.jobs.backoff import Backoff

# How long a request is repeated.
_PATIENCE_S = 30.0
# How long one try may take; a request that hangs is repeated too.
_ANSWER_TIMEOUT_S = 10.0
# Patience after Ctrl-C; an API restarts in two seconds.
LEAVING_S = 5.0
# Between two tries.
_BACKOFF = Backoff(first_s=0.2, longest_s=5.0)
# Errors of a connection to something that was there.
_CUT_OFF = (httpx.NetworkError, httpx.ReadTimeout, httpx.WriteTimeout, httpx.RemoteProtocolError)


class TransientError(Fault):
    """No answer, a 429 or a 503: the same request may be answered later."""

    def __init__(self, text: str, retry_after_s: float = 0.0) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class RateLimited(TransientError):
    """A 429: the service did nothing."""


_LATER: dict[int, type[TransientError]] = {
    httpx.codes.TOO_MANY_REQUESTS: RateLimited,
    httpx.codes.SERVICE_UNAVAILABLE: TransientError,
}


class PatientClient:
    """An HTTP client whose failures are Faults with the service's own words."""

    def __init__(
        self,
        http: httpx.Client,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """Wrap `http`.

        Args:
            http: Client with the base URL of the service.
            clock: Returns the time in seconds.
            sleep: Waits for so many seconds.
        """
        self._http = http
        self._clock = clock
        self._sleep = sleep
        # Whether something has answered at this address. Until then an error is raised at once.
        self._met = False

    def get(self, path: str, **options: Any) -> httpx.Response:
        """Send a GET, again and again while the service does not answer."""
        return self.with_retry("GET", path, **options)

    def with_retry(
        self, method: str, path: str, within_s: float | None = None, **options: Any
    ) -> httpx.Response:
        """Send a request again and again, because the job goes on while the service restarts.

        Use it only for what may be asked twice.

        Raises:
            TransientError: No answer within `within_s` seconds, or at this address at all.
            Fault: Any other error.
        """
        within_s = within_s or _PATIENCE_S
        deadline = self._clock() + within_s
        pauses = _BACKOFF.pauses()
        while True:
            try:
                return self.call(method, path, timeout=min(within_s, _ANSWER_TIMEOUT_S), **options)
            except TransientError as error:
                wait_s = max(pauses.next_s(), error.retry_after_s)
                if not self._met or self._clock() + wait_s > deadline:
                    raise
            self._sleep(wait_s)

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request once.

        Raises:
            TransientError: No answer, a 429 or a 503.
            Fault: Any other error, in the service's own words.
        """
        answer = self._send(method, path, **options)
        if answer.status_code in _LATER:
            raise _LATER[answer.status_code](detail(answer), _retry_after_s(answer))
        if answer.next_request:
            target = str(answer.next_request.url)
            remedy = f"give --url {target.removesuffix(path)}"
            raise Fault(f"{answer.request.url} redirects to {target}; {remedy}")
        if not answer.is_success:
            raise Fault(detail(answer))
        return answer

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **options)
        except httpx.ConnectError:
            remedy = "start the service with `make serve`, or give its --url"
            raise TransientError(f"no answer from {self._http.base_url}; {remedy}") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            self._met |= isinstance(error, _CUT_OFF)
            raise TransientError(
                f"{self._http.base_url}: {error or type(error).__name__}; try again"
            ) from None
        self._met = True
        return answer


def read_job(answer: httpx.Response) -> dict[str, Any]:
    """Return the job in an answer.

    Raises:
        Fault: The answer holds no job, so something else than the service gave it.
    """
    try:
        job = answer.json()
    except ValueError:
        job = None
    if not isinstance(job, dict) or "id" not in job:
        kind = answer.headers.get("content-type", "no type")
        raise Fault(
            f"{answer.request.url} answered {answer.status_code} with {kind} and no job; "
            "give the service's --url"
        )
    return job


def _retry_after_s(answer: httpx.Response) -> float:
    """Return the seconds that the answer asks for; 0 where it names none, or a date."""
    value = answer.headers.get("retry-after", "")
    return float(value) if value.isdecimal() else 0.0


def is_loopback(url: str) -> bool:
    """Return whether `url` names this machine, which no proxy can reach, whatever HTTP_PROXY says.

    Raises:
        Fault: `url` is no URL.
    """
    try:
        host = httpx.URL(url).host
    except httpx.InvalidURL as error:
        raise Fault(f"{url!r} is no URL ({error}); correct --url") from None
    return is_loopback_host(host)
