from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.access.rate_limit import RateLimit


def test_requests_of_two_seconds_may_come_at_once_and_then_the_rate_holds() -> None:
    limit = RateLimit(per_s=10)
    assert [limit.wait_s("ann", now=0.0) for _ in range(20)] == [0.0] * 20
    assert limit.wait_s("ann", now=0.0) == pytest.approx(0.1)
    assert limit.wait_s("ann", now=0.06) == pytest.approx(0.04), "a refused request costs nothing"
    assert limit.wait_s("ann", now=0.11) == 0


def test_keys_do_not_share_their_tokens() -> None:
    limit = RateLimit(per_s=0.5)
    refused = [limit.wait_s(name, now=0.0) > 0 for name in ("ann", "ann", "bob")]
    assert refused == [False, True, False]


def test_a_rate_can_be_less_than_one_request_in_two_seconds() -> None:
    limit = RateLimit(per_s=0.1)
    assert limit.wait_s("ann", now=0.0) == 0
    assert limit.wait_s("ann", now=4.0) == pytest.approx(6.0)


def test_a_rate_of_zero_is_no_limit() -> None:
    limit = RateLimit(per_s=0)
    assert not any(limit.wait_s("ann", now=0.0) for _ in range(1000))


@given(gaps=st.lists(st.floats(0, 1), max_size=200), per_s=st.sampled_from([0.3, 1.0, 7.0, 50.0]))
def test_a_client_that_waits_as_long_as_asked_is_let_in_at_the_rate_at_most(
    gaps: list[float], per_s: float
) -> None:
    limit, now, admitted = RateLimit(per_s), 0.0, 0
    for gap in gaps:
        now += gap
        while wait_s := limit.wait_s("ann", now):
            assert wait_s <= 1 / per_s
            # Clocks have no smaller steps than that.
            now += wait_s + 1e-6
        admitted += 1
    assert admitted <= max(1, 2 * per_s) + per_s * now + 1e-6
