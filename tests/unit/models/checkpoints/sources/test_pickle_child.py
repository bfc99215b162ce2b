"""What the child finds in a pickle, without its confinement, which no process can take off."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.checkpoints.sources.pickle_child import Refused, check_sizes, convert, find_weights

WEIGHT = torch.arange(6.0).reshape(2, 3)


def test_averaged_weights_are_taken_before_others_and_the_rest_is_named(tmp_path: Path) -> None:
    saved = {
        "step": 7,
        "model": {"a": torch.zeros(2, 3)},
        "ema": {"model": {"a": WEIGHT, "updates": 3}},
    }
    torch.save(saved, tmp_path / "model.pt")
    answer = convert(tmp_path / "model.pt", tmp_path / "out.safetensors")
    assert answer == {"place": "ema.model", "beside": ["step", "model", "updates"]}
    assert torch.equal(load_file(tmp_path / "out.safetensors")["a"], WEIGHT)


@pytest.mark.parametrize(
    ("averages", "place", "beside"),
    [([{"a": WEIGHT}], "item 4 of 5", ["0", "1", "2", "3"]), ([], "item 0 of 4", ["1", "2", "3"])],
)
def test_of_a_list_that_ddim_s_trainer_saved_the_averages_come_first(
    averages: list[object], place: str, beside: list[str]
) -> None:
    network = {"a": torch.zeros(2, 3) if averages else WEIGHT}
    optimizer = {"state": {0: {"step": 1}}, "param_groups": [{"lr": 1e-3}]}
    tensors, found, rest = find_weights([network, optimizer, 7, 1000, *averages])
    assert (found, rest) == (place, beside)
    assert torch.equal(tensors["a"], WEIGHT)


def test_tensors_that_share_memory_are_written_each_with_its_own(tmp_path: Path) -> None:
    torch.save({"a": WEIGHT, "b": WEIGHT, "c": WEIGHT.T}, tmp_path / "model.pt")
    answer = convert(tmp_path / "model.pt", tmp_path / "out.safetensors")
    assert answer == {"place": "", "beside": []}
    written = load_file(tmp_path / "out.safetensors")
    assert torch.equal(written["b"], WEIGHT)
    assert torch.equal(written["c"], WEIGHT.T)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([WEIGHT], "it holds a list, not the weights of a network"),
        ({}, "it holds no weights of a network, but nothing"),
        ({"model": {"epoch": 1, "loss": 2}}, "no weights of a network, but epoch, loss"),
    ],
)
def test_a_pickle_without_weights_is_refused(content: object, reason: str) -> None:
    with pytest.raises(Refused, match=re.escape(reason)):
        find_weights(content)


def test_a_tensor_that_claims_more_than_its_file_has_is_refused() -> None:
    claims = torch.zeros(1).expand(1 << 20)
    with pytest.raises(Refused, match="claim 4194304 bytes, and the file has 1000"):
        check_sizes({"a": claims}, 1000)
