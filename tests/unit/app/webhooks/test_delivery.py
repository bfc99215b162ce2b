from __future__ import annotations

from app.webhooks.delivery import BACKOFF, MAX_ATTEMPTS


def test_the_attempts_take_about_six_hours_and_spread() -> None:
    pauses = [BACKOFF.pause_s(attempts) for attempts in range(1, MAX_ATTEMPTS)]
    assert 4 <= pauses[0] <= 6
    assert max(pauses) <= 1.2 * 7200
    assert 4 * 3600 < sum(pauses) < 8 * 3600
    assert len({BACKOFF.pause_s(1) for _ in range(10)}) == 10
