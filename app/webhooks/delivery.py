"""Delivery of webhooks: each is tried until it is delivered or given up.

The script that ends a job enters it in `ddpm:webhooks` (worker/jobs/transitions.py).
From there it comes into the lane of its owner and receiver
(worker/jobs/lua/shared/webhook_lanes.lua).
An API process claims an entry by setting it to a later time.
After sending it, the process takes the entry out, or sets it to the time of the next attempt.
An entry that was set anew meanwhile stays.

A process passes over owners and receivers that have their share of its attempts already.

So a process may be killed at any moment: the webhook is then sent again, with the same id.
Each is sent at least once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from typing import TypeVar

from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.operation.background import background
from app.records.record import Record
from app.schemas.webhooks import WebhookMessage
from app.webhooks import signature
from app.webhooks.sender import AT_ONCE, TIMEOUT_S, Outcome, Sender
from app.webhooks.target import BadTarget, Target
from worker.jobs.backoff import Backoff
from worker.jobs.domain import Origin
from worker.jobs.keys import WEBHOOKS, job_key
from worker.jobs.scripts import load
from worker.logs import event

log = logging.getLogger(__name__)
# Over 6 hours.
MAX_ATTEMPTS = 9
_CLAIM_S = 4 * TIMEOUT_S
POLL_EVERY_S = 1.0
# Attempts at a time. If an owner's receivers never answer, there is room for other owners', and if
# one receiver never answers, there is room for the owner's others.
AT_ONCE_PER_OWNER = 16
AT_ONCE_PER_RECEIVER = 4
# A fifth more or less is drawn at random, so that attempts spread.
BACKOFF = Backoff(first_s=5.0, longest_s=7200.0, factor=4.0, jitter=0.2)
_Key = TypeVar("_Key")
_CLAIM = load("claim_webhook")
_SETTLE = load("settle_webhook")


@dataclass(frozen=True, slots=True)
class _Claim:
    """A job whose webhook this process may send until the claim lapses.

    Attributes:
        job: The job's id.
        receiver: Host and port that the webhook goes to, as its URL has them.
        until: When the claim lapses, as Redis has it.
        fields: The job's hash.
        images_done: Finished images of the job.
    """

    job: str
    receiver: str
    until: bytes
    fields: Mapping[bytes, bytes] = field(repr=False)
    images_done: int

    @property
    def owner(self) -> str:
        """The owner of the job."""
        return self.fields[b"owner"].decode()

    @property
    def attempts(self) -> int:
        """Attempts so far, with the one that is claimed."""
        return int(self.fields[b"webhook_attempts"])


class Delivery:
    """Sends what is due, in one task a process.

    Without a secret to sign with there is no such task.
    """

    def __init__(
        self,
        redis: Redis,
        sender: Sender,
        service_secrets: Sequence[str],
        poll_every_s: float = POLL_EVERY_S,
        at_once_per_owner: int = AT_ONCE_PER_OWNER,
        at_once_per_receiver: int = AT_ONCE_PER_RECEIVER,
    ) -> None:
        """Prepare, without touching Redis.

        Args:
            redis: Where the jobs and the webhooks that are due are.
            sender: Makes the attempts; closed at the end.
            service_secrets: What owners' secrets are made of, the present one first; empty where
                none are sent.
            poll_every_s: Seconds until the next look for webhooks where none is due.
            at_once_per_owner: Attempts that one owner's webhooks may have at a time; fewer while
                many owners have some.
            at_once_per_receiver: The same of an owner's webhooks to one host and port.
        """
        self._redis = redis
        self._sender = sender
        self._secrets = tuple(service_secrets)
        self.poll_every_s = poll_every_s
        self.at_once_per_owner = at_once_per_owner
        self.at_once_per_receiver = at_once_per_receiver
        self._free = asyncio.Semaphore(AT_ONCE)
        # Attempts under way by owner, and by owner and receiver.
        self._by_owner: Counter[str] = Counter()
        self._by_receiver: Counter[tuple[str, str]] = Counter()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Send what is due while the block runs."""
        with closing(self._sender):
            async with background(*([self._run()] if self._secrets else [])):
                yield

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as attempts:
            while True:
                await self._free.acquire()
                claim = await self._next()
                if claim:
                    attempts.create_task(self._handle(claim))
                else:
                    self._free.release()
                    await asyncio.sleep(self.poll_every_s)

    async def _next(self) -> _Claim | None:
        try:
            claimed = await _CLAIM.call(
                self._redis, webhooks=WEBHOOKS, claim_s=_CLAIM_S, busy=self._busy()
            )
        except RedisError as error:
            log.warning(
                "cannot look for webhooks that are due: %s",
                error,
                extra=event("webhooks.unreadable"),
            )
            return None
        if not claimed:
            return None
        job, receiver, until, fields, images_done = claimed
        claim = _Claim(
            job.decode(),
            receiver.decode(),
            until,
            dict(zip(fields[::2], fields[1::2], strict=True)),
            images_done,
        )
        # At once, as the next look passes over those that have their share.
        self._by_owner[claim.owner] += 1
        self._by_receiver[claim.owner, claim.receiver] += 1
        return claim

    def _busy(self) -> list[str]:
        """List owners and receivers that have their share of the attempts.

        One share is always left to an owner who has none.
        """
        share = min(self.at_once_per_owner, max(1, AT_ONCE // (len(self._by_owner) + 1)))
        owners = [owner for owner, count in self._by_owner.items() if count >= share]
        return owners + [
            f"{owner} {receiver}"
            for (owner, receiver), count in self._by_receiver.items()
            if count >= self.at_once_per_receiver
        ]

    async def _handle(self, claim: _Claim) -> None:
        """Attempt a webhook.

        If the outcome cannot be noted, the claim lapses and the webhook is sent again.
        """
        try:
            await self._attempt(claim)
        except RedisError as error:
            log.warning(
                "the webhook of job %s may be sent again, as its outcome could not be noted: %s",
                claim.job,
                error,
                extra=event("webhook.unnoted", job=claim.job, owner=claim.owner),
            )
        finally:
            _subtract(self._by_owner, claim.owner)
            _subtract(self._by_receiver, (claim.owner, claim.receiver))
            self._free.release()

    async def _attempt(self, claim: _Claim) -> None:
        outcome = await self._outcome(claim)
        if outcome.delivered:
            noted = {"webhook_state": "delivered", "webhook_said": outcome.report}
            await self._settle(claim, None, noted)
        elif outcome.final or claim.attempts >= MAX_ATTEMPTS:
            log.warning(
                "the webhook of job %s is given up after %d attempts: %s",
                claim.job,
                claim.attempts,
                outcome.report,
                extra=event(
                    "webhook.given_up", job=claim.job, owner=claim.owner, attempts=claim.attempts
                ),
            )
            noted = {"webhook_state": "given_up", "webhook_said": outcome.report}
            await self._settle(claim, None, noted)
        else:
            await self._settle(
                claim, BACKOFF.pause_s(claim.attempts), {"webhook_said": outcome.report}
            )
        if outcome.lookup:
            # Its thread is busy until then, and so is the attempt's place among its owner's.
            await asyncio.wait({outcome.lookup})

    async def _outcome(self, claim: _Claim) -> Outcome:
        """Send a webhook, and make an outcome of each failure.

        A bug of ours must not try the same webhook for ever, nor end the task that sends others.
        Nor is a webhook tried for ever that takes the process down each time.
        """
        if claim.attempts > MAX_ATTEMPTS:
            return Outcome("the last attempt did not come to an end", final=True)
        try:
            return await self._send(claim)
        except Exception:
            log.exception(
                "the webhook of job %s could not be sent",
                claim.job,
                extra=event("webhook.failed", job=claim.job, owner=claim.owner),
            )
            return Outcome("the service failed to send it, which is a bug")

    async def _send(self, claim: _Claim) -> Outcome:
        """Sign and post the message."""
        record = Record.from_hash(claim.fields)
        try:
            target = Target.parse(record.webhook or "")
        except BadTarget:  # accepted by an older version
            return Outcome("the URL cannot be sent to", final=True)
        message = WebhookMessage.for_job(record.summary(claim.images_done, time.time()))
        body = message.model_dump_json().encode()
        secrets = [signature.owner_secret(secret, record.owner) for secret in self._secrets]
        headers = signature.headers(secrets, f"job_{record.id}", int(time.time()), body)
        about = {
            "Host": target.authority,
            "Content-Type": "application/json",
            "User-Agent": "ddpm-service",
        }
        traceparent = Origin.from_hash(claim.fields).traceparent
        if traceparent:
            about["traceparent"] = traceparent
        return await self._sender.post(target, about | headers, body)

    async def _settle(
        self, claim: _Claim, again_in_s: float | None, noted: Mapping[str, str | int]
    ) -> None:
        """End a claim: note fields of the job, and try again in so many seconds or never."""
        await _SETTLE.call(
            self._redis,
            record=job_key(claim.job),
            job=claim.job,
            owner=claim.owner,
            receiver=claim.receiver,
            claimed_until=claim.until,
            again_in_s="" if again_in_s is None else again_in_s,
            outcome=noted.items(),
        )


def _subtract(counts: Counter[_Key], key: _Key) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
