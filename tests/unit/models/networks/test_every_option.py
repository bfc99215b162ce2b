"""Networks and processes of any options at once, drawn by Hypothesis, against diffusers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from docs.generate.comparison import EQUAL, compare_network, compare_process
from docs.generate.configurations import PLAIN, drawn, drawn_processes

seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=15, deadline=None)
@given(seeds)
def test_any_network_is_that_of_diffusers_or_refused_with_its_reason(seed: int):
    (options,) = drawn(1, seed)
    result = compare_network(options)
    assert result == EQUAL or result.startswith("refused: "), result


# diffusers casts tables of one number
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning")
@settings(max_examples=30, deadline=None)
@given(seeds)
def test_any_process_steps_as_diffusers_does_or_is_refused_with_its_reason(seed: int):
    (options,) = drawn_processes(1, seed)
    result = compare_process(options)
    assert result == EQUAL or result.startswith("refused: "), result


def test_a_network_that_differs_is_noticed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("models.networks.layers.activate", lambda x, name: x)
    with pytest.raises(AssertionError, match="the networks differ"):
        compare_network(PLAIN | {"act_fn": "gelu"})


def test_a_process_that_differs_is_noticed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        "worker.engine.step.thresholded", lambda guess, ratio, most: guess.clip(-1, 1)
    )
    with pytest.raises(AssertionError, match="differs by"):
        compare_process({"thresholding": True, "sample_max_value": 2.0})
