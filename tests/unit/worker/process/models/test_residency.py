"""Which models a worker has in memory, when more are offered than fit."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from worker.process.models.residency import (
    LONGEST_SLICE_S,
    SLICE_S,
    Choice,
    Resident,
    Wanted,
    choose,
    slice_s,
)


def resident(needs: int, *, has_work: bool = False, loaded: float = 0, used: float = 0) -> Resident:
    return Resident(needs, has_work, loaded, used)


def test_a_model_that_fits_beside_the_others_is_loaded():
    there = {"a": resident(4, has_work=True)}
    assert choose(10, 0, {"b": Wanted(6, 0)}, there) == Choice(load="b")


def test_the_least_recently_used_idle_model_gives_way_first():
    there = {"a": resident(5, used=9), "b": resident(5, used=3)}
    assert choose(10, 10, {"c": Wanted(5, 0)}, there) == Choice(leave=frozenset("b"))


def test_a_model_with_work_keeps_its_memory_for_a_slice():
    there = {"a": resident(8, has_work=True, loaded=0)}
    wanted = {"b": Wanted(8, 0)}
    assert choose(10, SLICE_S - 0.1, wanted, there) == Choice()
    assert choose(10, SLICE_S, wanted, there) == Choice(leave=frozenset("a"))


def test_nobody_gives_way_for_a_model_that_would_not_fit_even_then():
    there = {
        "idle": resident(2),
        "ripe": resident(2, has_work=True, loaded=0),
        "young": resident(6, has_work=True, loaded=95),
    }
    assert choose(10, 100, {"large": Wanted(9, 95)}, there) == Choice()


def test_a_small_model_goes_before_a_large_one_for_a_slice_only():
    there = {"a": resident(7, has_work=True, loaded=5)}
    wanted = {"large": Wanted(8, 0), "small": Wanted(2, 1)}
    assert choose(10, 9, wanted, there) == Choice(load="small")
    assert choose(10, 12, wanted, there) == Choice()


def test_a_slice_is_ten_loads_within_limits():
    assert [slice_s(s) for s in (0.1, 3, 1000)] == [SLICE_S, 30, LONGEST_SLICE_S]


def play(bound: int, needs: dict[str, int], seconds: int) -> tuple[Counter[str], Counter[str]]:
    """Let jobs of all models wait all the time; count each one's loads, and its seconds."""
    there: dict[str, Resident] = {}
    since: dict[str, float] = dict.fromkeys(needs, 0.0)
    loads: Counter[str] = Counter()
    had_s: Counter[str] = Counter()
    for now in range(seconds):
        wanted = {name: Wanted(needs[name], since[name]) for name in needs if name not in there}
        choice = choose(bound, now, wanted, there)
        for name in choice.leave:
            del there[name]
            since[name] = now
        if choice.load:
            there[choice.load] = resident(needs[choice.load], has_work=True, loaded=now, used=now)
            loads[choice.load] += 1
        had_s.update(there.keys())
    return loads, had_s


def test_two_models_of_which_one_fits_take_turns_of_a_slice():
    seconds = 600
    loads, had_s = play(10, {"a": 8, "b": 8}, seconds)
    # a slice each, and a second for the change
    assert sum(loads.values()) <= seconds / SLICE_S + 1
    assert min(had_s.values()) > 0.4 * seconds


def test_large_models_and_small_ones_all_get_their_time():
    needs = {"large": 10, "huge": 10} | {f"small-{i}": 1 for i in range(10)}
    seconds = 2000
    loads, had_s = play(11, needs, seconds)
    assert set(had_s) == set(needs)
    assert min(had_s["large"], had_s["huge"]) > seconds / 8
    assert max(loads.values()) <= seconds / SLICE_S / 2


@given(
    st.dictionaries(
        st.sampled_from("abcdefgh"), st.integers(min_value=1, max_value=10), min_size=2
    ),
    st.integers(min_value=10, max_value=30),
)
def test_no_model_starves_and_the_bound_holds(needs, bound):
    loads, had_s = play(bound, needs, 600)
    assert set(had_s) == set(needs)
    # a model alone would have all of the time
    assert all(count <= 600 / SLICE_S for count in loads.values())
