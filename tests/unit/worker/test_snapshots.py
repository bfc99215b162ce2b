from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.plans import compile_plan
from tests.support.networks import SCHEDULE, SHAPE
from worker.engine import ChainRequest, Snapshot
from worker.snapshots import BadSnapshot, pack, unpack

PLANS = {"ddpm": compile_plan(SCHEDULE, 20), "dpmpp_2m": compile_plan(SCHEDULE, 20, "dpmpp_2m")}


def snapshots(sampler: str, rows: list[int]) -> list[Snapshot]:
    requests = [ChainRequest(("job-0", 7 + i), "job", PLANS[sampler], 3, 7 + i) for i in range(len(rows))]
    return [Snapshot(r, row, torch.randn(SHAPE), torch.randn(SHAPE)) for r, row in zip(requests, rows, strict=True)]


@settings(deadline=None)
@given(st.sampled_from(sorted(PLANS)), st.lists(st.integers(0, 19), min_size=1, max_size=64))
def test_chains_come_back_to_the_bit(sampler, rows):
    saved = snapshots(sampler, rows)
    back = unpack(pack(saved), {s.request.index: s.request for s in saved})
    assert [(s.request, s.row) for s in back] == [(s.request, s.row) for s in saved]
    assert all(torch.equal(a.x, b.x) for a, b in zip(back, saved, strict=True))
    if PLANS[sampler].remembers:
        assert all(torch.equal(a.x_0_hat, b.x_0_hat) for a, b in zip(back, saved, strict=True))


def test_images_that_were_finished_since_are_left_out():
    saved = snapshots("ddpm", [3, 4, 5])
    back = unpack(pack(saved), {8: saved[1].request})
    assert [(s.request.index, s.row) for s in back] == [(8, 4)]


@pytest.mark.parametrize("blob", [b"", b"\0" * 100, b"not safetensors", pack(snapshots("ddpm", [1]))[:-9]])
def test_garbage_is_refused(blob):
    with pytest.raises(BadSnapshot):
        unpack(blob, {})
