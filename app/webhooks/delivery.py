"""Webhooks that are due, until they are delivered or given up.

The script that ends a job enters it in `ddpm:webhooks` (worker/jobs/transitions.py). An API process claims an entry by setting
it to a later time, sends it, and takes it out or sets it to the next attempt; an entry that was set anew meanwhile stays. So a kill
at any moment only means that it is sent again: at least once, with the same id.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field

from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.operation.background import background
from app.records.record import Record
from app.schemas.webhooks import WebhookMessage
from app.webhooks import signature
from app.webhooks.sender import AT_ONCE, TIMEOUT_S, Outcome, Sender
from app.webhooks.target import BadTarget, Target
from worker.jobs.keys import WEBHOOKS, job_key
from worker.jobs.scripts import load

log = logging.getLogger(__name__)
MAX_ATTEMPTS = 9  # over 6 hours
_CLAIM_S = 4 * TIMEOUT_S
_LOOK_EVERY_S = 1.0
_AT_ONCE_OF_ONE = 16  # attempts; one owner's receivers that never answer leave room for others'
_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _GROWTH = 5.0, 7200.0, 4.0
_CLAIM = load("claim_webhook")
_SETTLE = load("settle_webhook")


@dataclass(frozen=True, slots=True)
class _Claim:
    job: str
    until: bytes
    fields: Mapping[bytes, bytes] = field(repr=False)
    images_done: int

    @property
    def owner(self) -> str:
        return self.fields[b"owner"].decode()

    @property
    def attempts(self) -> int:
        return int(self.fields[b"webhook_attempts"])


class Delivery:
    """One task a process; none where the service has no secret to sign with."""

    def __init__(self, redis: Redis, sender: Sender, service_secret: str) -> None:
        self._redis, self._sender, self._secret = redis, sender, service_secret
        self._free = asyncio.Semaphore(AT_ONCE)
        self._sending: Counter[str] = Counter()  # by owner

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        with closing(self._sender):
            async with background(*([self._run()] if self._secret else [])):
                yield

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as attempts:
            while True:
                await self._free.acquire()
                claim = await self._next()
                if claim:
                    attempts.create_task(self._attend(claim))
                else:
                    self._free.release()
                    await asyncio.sleep(_LOOK_EVERY_S)

    async def _next(self) -> _Claim | None:
        try:
            claimed = await _CLAIM.call(
                self._redis, webhooks=WEBHOOKS, claim_s=_CLAIM_S, record_prefix=job_key("")
            )
        except RedisError as error:
            log.warning("cannot look for webhooks that are due: %s", error)
            return None
        if not claimed:
            return None
        job, until, fields, images_done = claimed
        return _Claim(
            job.decode(), until, dict(zip(fields[::2], fields[1::2], strict=True)), images_done
        )

    async def _attend(self, claim: _Claim) -> None:
        """Where the outcome cannot be noted, the claim lapses and it is sent again."""
        self._sending[claim.owner] += 1
        try:
            if self._sending[claim.owner] > _AT_ONCE_OF_ONE:
                await self._settle(claim, TIMEOUT_S, {"webhook_attempts": claim.attempts - 1})
            else:
                await self._attempt(claim)
        except RedisError as error:
            log.warning(
                "the webhook of job %s may be sent again, as its outcome could not be noted: %s",
                claim.job,
                error,
            )
        finally:
            self._sending[claim.owner] -= 1
            self._free.release()

    async def _attempt(self, claim: _Claim) -> None:
        outcome = await self._outcome(claim)
        if outcome.delivered:
            await self._settle(
                claim, None, {"webhook_state": "delivered", "webhook_said": outcome.said}
            )
        elif outcome.final or claim.attempts >= MAX_ATTEMPTS:
            log.warning(
                "the webhook of job %s is given up after %d attempts: %s",
                claim.job,
                claim.attempts,
                outcome.said,
            )
            await self._settle(
                claim, None, {"webhook_state": "given_up", "webhook_said": outcome.said}
            )
        else:
            await self._settle(claim, pause_s(claim.attempts), {"webhook_said": outcome.said})
        if (
            outcome.lookup
        ):  # its thread is busy until then, and so is this attempt's place among its owner's
            await asyncio.wait({outcome.lookup})

    async def _outcome(self, claim: _Claim) -> Outcome:
        """A bug of ours must not try the same webhook for ever, nor end the task that sends the others'.

        Nor is one sent for ever of which nobody lives to tell.
        """
        if claim.attempts > MAX_ATTEMPTS:
            return Outcome("the last attempt did not come to an end", final=True)
        try:
            return await self._send(claim)
        except Exception:
            log.exception("the webhook of job %s could not be sent", claim.job)
            return Outcome("the service failed to send it, which is a bug")

    async def _send(self, claim: _Claim) -> Outcome:
        record = Record.from_hash(claim.fields)
        try:
            target = Target.parse(record.webhook or "")
        except BadTarget:  # accepted by an older version
            return Outcome("the URL cannot be sent to", final=True)
        body = (
            WebhookMessage.for_job(record.summary(claim.images_done, time.time()))
            .model_dump_json()
            .encode()
        )
        secret = signature.secret_of(self._secret, record.owner)
        headers = signature.headers(secret, f"job_{record.id}", int(time.time()), body)
        about = {
            "Host": target.authority,
            "Content-Type": "application/json",
            "User-Agent": "ddpm-service",
        }
        return await self._sender.post(target, about | headers, body)

    async def _settle(
        self, claim: _Claim, again_in_s: float | None, noted: Mapping[str, str | int]
    ) -> None:
        await _SETTLE.call(
            self._redis,
            webhooks=WEBHOOKS,
            record=job_key(claim.job),
            job=claim.job,
            claimed_until=claim.until,
            again_in_s="" if again_in_s is None else again_in_s,
            outcome=noted.items(),
        )


def pause_s(attempts: int) -> float:
    """After so many attempts: 5 s, then four times as long each time, 2 h at most, a fifth more or less so that they spread."""
    return min(_FIRST_PAUSE_S * _GROWTH ** (attempts - 1), _LONGEST_PAUSE_S) * random.uniform(
        0.8, 1.2
    )
