"""Snapshots as blobs: they come back to the bit, and anything else is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from models.diffusion.plans import compile_plan
from tests.support.networks import SCHEDULE, SHAPE
from worker.engine.chain import ChainRequest, Snapshot
from worker.engine.snapshot_codec import BadSnapshot, SavedChains, pack

PLANS = {"ddpm": compile_plan(SCHEDULE, 20), "dpmpp_2m": compile_plan(SCHEDULE, 20, "dpmpp_2m")}


def snapshots(sampler: str, rows: list[int]) -> list[Snapshot]:
    requests = [
        ChainRequest(("job-0", 7 + i), "job", PLANS[sampler], 3, 7 + i) for i in range(len(rows))
    ]
    return [
        Snapshot(r, row, torch.randn(SHAPE), torch.randn(SHAPE))
        for r, row in zip(requests, rows, strict=True)
    ]


def unpack(
    blob: bytes,
    requests: dict[int, ChainRequest],
    shard: str = "job-0",
    fingerprint: str = "",
) -> list[Snapshot]:
    return SavedChains(blob).of(shard, requests, SHAPE, "fp32", fingerprint)


def packed(chains: list[Snapshot]) -> bytes:
    return pack({"job-0": chains}, "fp32")


@given(st.sampled_from(sorted(PLANS)), st.lists(st.integers(0, 19), min_size=1, max_size=64))
def test_chains_come_back_to_the_bit(sampler, rows):
    saved = snapshots(sampler, rows)
    back = unpack(packed(saved), {s.request.index: s.request for s in saved})
    assert [(s.request, s.row) for s in back] == [(s.request, s.row) for s in saved]
    assert all(torch.equal(a.x, b.x) for a, b in zip(back, saved, strict=True))
    if PLANS[sampler].remembers:
        assert all(torch.equal(a.x_0_hat, b.x_0_hat) for a, b in zip(back, saved, strict=True))


def test_images_that_were_finished_since_are_left_out():
    saved = snapshots("ddpm", [3, 4, 5])
    back = unpack(packed(saved), {8: saved[1].request})
    assert [(s.request.index, s.row) for s in back] == [(8, 4)]


def spoilt(**changes: object) -> bytes:
    """Pack one chain at row 4 as versions before bundles did, with some tensors changed.

    Those that are None are removed.
    """
    changes = {"shards": None, "shard": None, "checksum": None} | changes
    tensors = load(packed(snapshots("dpmpp_2m", [4]))) | changes
    return save({name: tensor for name, tensor in tensors.items() if tensor is not None})


@pytest.mark.parametrize(
    ("blob", "says"),
    [
        (
            spoilt(x=torch.zeros(1, 1, 8, 8)),
            r"it holds torch.float32 \[1, 1, 8, 8\], not torch.float32 \[1, 1, 4, 6\]",
        ),
        (spoilt(x=torch.zeros(1, *SHAPE).double()), "torch.float64"),
        (spoilt(x_0_hat=torch.zeros(2, *SHAPE)), r"\[2, 1, 4, 6\]"),
        (spoilt(x=torch.full((1, *SHAPE), torch.nan)), "NaN or infinity"),
        (spoilt(row=torch.tensor([20])), "row 20 of image 7 is none of the 20 of its plan"),
        (spoilt(row=torch.tensor([-1])), "row -1"),
        (spoilt(row=torch.tensor([1.5])), r"row 1\.5"),
        (spoilt(row=torch.tensor([1, 2])), "1 images and 2 rows"),
        (spoilt(row=None), "row"),
        (spoilt(precision=None), "precision"),
        (
            spoilt(precision=torch.tensor(list(b"bf16"), dtype=torch.uint8)),
            "it was made in bf16, this worker computes in fp32",
        ),
        (spoilt(precision=torch.tensor([[1.5]])), "TypeError"),
        (
            spoilt(fingerprint=torch.tensor(list(b"bbb"), dtype=torch.uint8)),
            "its worker's fingerprint is bbb, this one's is aaa",
        ),
        (spoilt(fingerprint=torch.tensor([[1.5]])), "TypeError"),
        (spoilt(x_0_hat=None), "no x_0_hat, which the plan needs"),
        (
            spoilt(
                index=torch.tensor([7, 7]),
                row=torch.tensor([1, 1]),
                **{n: torch.zeros(2, *SHAPE) for n in ("x", "x_0_hat")},
            ),
            "twice",
        ),
    ],
)
def test_chains_of_something_else_are_refused(blob, says):
    (chain,) = snapshots("dpmpp_2m", [4])
    with pytest.raises(BadSnapshot, match=says):
        unpack(blob, {7: chain.request}, fingerprint="aaa")


@pytest.mark.parametrize("blob", [spoilt(), spoilt(fingerprint=None)], ids=["empty", "none"])
def test_chains_of_a_version_without_fingerprints_are_read(blob):
    (chain,) = snapshots("dpmpp_2m", [4])
    assert len(unpack(blob, {7: chain.request}, fingerprint="aaa")) == 1


@pytest.mark.parametrize(
    "blob", [b"", b"\0" * 100, b"not safetensors", packed(snapshots("ddpm", [1]))[:-9]]
)
def test_garbage_is_refused(blob):
    with pytest.raises(BadSnapshot):
        unpack(blob, {})


def test_chains_that_a_version_before_bundles_packed_come_back():
    (chain,) = unpack(spoilt(), {7: snapshots("dpmpp_2m", [4])[0].request})
    assert chain.row == 4


def test_one_blob_gives_each_shard_its_own_chains():
    shards = {f"job-{n}": snapshots("ddpm", [n, n + 1]) for n in range(3)}
    chains = SavedChains(pack(shards, "fp32"))
    assert chains.holds_several
    for name, saved in shards.items():
        back = chains.of(name, {s.request.index: s.request for s in saved}, SHAPE, "fp32")
        assert [s.row for s in back] == [s.row for s in saved]
        assert all(torch.equal(a.x, b.x) for a, b in zip(back, saved, strict=True))
    with pytest.raises(BadSnapshot, match="no chain of this shard"):
        chains.of("job-7", {}, SHAPE, "fp32")


def test_a_damaged_chain_costs_its_own_shard_and_no_other():
    shards = {f"job-{n}": snapshots("ddpm", [5]) for n in range(2)}
    tensors = load(pack(shards, "fp32"))
    tensors["x"][1, 0, 0, 0] += 1e-6
    blob = save(tensors)
    requests = {7: shards["job-0"][0].request}
    assert [s.row for s in unpack(blob, requests)] == [5]
    with pytest.raises(BadSnapshot, match="its bytes are not those that were saved"):
        unpack(blob, requests, shard="job-1")
