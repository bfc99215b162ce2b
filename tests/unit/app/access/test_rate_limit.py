from __future__ import annotations

from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.access.rate_limit import FILE_BYTES, Allowance, RateLimit


def test_requests_of_two_seconds_may_come_at_once_and_then_the_rate_holds() -> None:
    limit = RateLimit(10)
    assert [limit.wait_s("ann", now=0.0) for _ in range(20)] == [0.0] * 20
    assert limit.wait_s("ann", now=0.0) == pytest.approx(0.1)
    assert limit.wait_s("ann", now=0.06) == pytest.approx(0.04), "a refused request costs nothing"
    assert limit.wait_s("ann", now=0.11) == 0


def test_keys_do_not_share_their_tokens() -> None:
    limit = RateLimit(0.5)
    refused = [limit.wait_s(name, now=0.0) > 0 for name in ("ann", "ann", "bob")]
    assert refused == [False, True, False]


def test_a_rate_can_be_less_than_one_request_in_two_seconds() -> None:
    limit = RateLimit(0.1)
    assert limit.wait_s("ann", now=0.0) == 0
    assert limit.wait_s("ann", now=4.0) == pytest.approx(6.0)


def test_a_key_may_have_a_rate_of_its_own() -> None:
    limit = RateLimit(10)
    passed = [limit.wait_s("ann", now=0.0, per_s=2.0) for _ in range(10)].count(0.0)
    assert passed == 4
    assert limit.wait_s("ann", now=0.0, per_s=2.0) == pytest.approx(0.5)
    assert not any(limit.wait_s("bob", now=0.0, per_s=0.0) for _ in range(1000))


def test_whoever_owes_nothing_may_send_a_dear_request_and_then_pays_for_it() -> None:
    limit = RateLimit(10)
    assert limit.wait_s("ann", now=0.0, cost=50.0) == 0
    assert limit.wait_s("ann", now=0.0) == pytest.approx(3.1), "all but the burst of 1.9 s"
    assert limit.wait_s("ann", now=3.2, cost=50.0) == 0


def test_a_request_is_not_refused_for_what_it_has_paid_itself() -> None:
    limit = RateLimit(0.01)
    assert limit.wait_s("ann", now=0.0) == 0
    assert limit.wait_s("ann", now=0.0, cost=3.0, paid=1.0) == 0
    assert limit.wait_s("ann", now=0.0, cost=3.0, paid=1.0) == pytest.approx(300)


def test_work_that_is_done_is_owed_and_no_debt_grows_without_end() -> None:
    limit = RateLimit(10)
    limit.owe("ann", now=0.0, cost=1e9, per_s=10)
    assert limit.wait_s("ann", now=0.0) == pytest.approx(1000)
    assert limit.wait_s("ann", now=1000.1) == 0


def test_a_key_knows_what_it_has_left() -> None:
    limit = RateLimit(10)
    assert limit.allowance("ann", 0.0, 10) == Allowance(most=20, within_s=2, left=20, full_in_s=0)
    for _ in range(15):
        limit.wait_s("ann", now=0.0)
    assert limit.allowance("ann", 0.0, 10) == Allowance(most=20, within_s=2, left=5, full_in_s=2)
    assert limit.allowance("ann", 1.0, 10).left == 15
    limit.owe("ann", now=0.0, cost=100, per_s=10)
    assert limit.allowance("ann", 0.0, 10).left == 0
    assert limit.allowance("bob", 0.0, 0.1) == Allowance(most=1, within_s=10, left=1, full_in_s=0)


def test_a_thousand_names_share_nothing_in_any_process(tmp_path: Path) -> None:
    with (tmp_path / "limits").open("w+b") as file:
        file.truncate(FILE_BYTES)
        limits = [RateLimit(0.5, file.fileno()) for _ in range(2)]
        names = [f"key-{n}" for n in range(1000)]
        assert not any(limits[n % 2].wait_s(name, now=0.0) for n, name in enumerate(names))
        assert all(limits[(n + 1) % 2].wait_s(name, now=0.0) for n, name in enumerate(names))


def test_a_rate_of_zero_is_no_limit() -> None:
    limit = RateLimit(0)
    assert not any(limit.wait_s("ann", now=0.0) for _ in range(1000))


@given(gaps=st.lists(st.floats(0, 1), max_size=200), per_s=st.sampled_from([0.3, 1.0, 7.0, 50.0]))
def test_a_client_that_waits_as_long_as_asked_is_let_in_at_the_rate_at_most(
    gaps: list[float], per_s: float
) -> None:
    limit, now, admitted = RateLimit(per_s), 0.0, 0
    for gap in gaps:
        now += gap
        while wait_s := limit.wait_s("ann", now):
            assert wait_s <= 1 / per_s + 1e-6
            # Clocks have no smaller steps than that.
            now += wait_s + 1e-6
        admitted += 1
    assert admitted <= max(1, 2 * per_s) + per_s * now + 1e-6


def test_processes_that_share_a_limit_let_a_key_send_as_much_as_one_does(tmp_path: Path) -> None:
    with (tmp_path / "limits").open("w+b") as file:
        file.truncate(FILE_BYTES)
        limits = [RateLimit(10, file.fileno()) for _ in range(4)]
        passed = [limits[n % 4].wait_s("bob", now=0.0) for n in range(25)].count(0.0)
        assert passed == 20
        assert limits[0].wait_s("ann", now=0.0) == 0
        assert limits[1].wait_s("bob", now=0.11) == 0
        assert limits[2].wait_s("bob", now=0.11) == pytest.approx(0.09)


def test_processes_that_ask_at_the_same_moment_let_nothing_through_twice(tmp_path: Path) -> None:
    path = tmp_path / "limits"
    path.write_bytes(bytes(FILE_BYTES))
    context = get_context("spawn")
    begin = context.Barrier(PROCESSES)
    passed = context.SimpleQueue()
    processes = [
        context.Process(target=pass_requests, args=(path, begin, passed)) for _ in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    assert sum(passed.get() for _ in processes) == 2 * PER_S
    for process in processes:
        process.join()


PROCESSES = 3
PER_S = 20_000


def pass_requests(path: Path, begin: Barrier, passed: SimpleQueue[int]) -> None:
    """Ask for many requests of one key, in one process of several."""
    with path.open("r+b") as file:
        limit = RateLimit(PER_S, file.fileno())
        begin.wait()
        passed.put([limit.wait_s("ann", now=0.0) for _ in range(2 * PER_S)].count(0.0))
