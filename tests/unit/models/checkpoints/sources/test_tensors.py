"""Files of tensors: what an index says against what they hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.checkpoints.bad_checkpoint import BadCheckpoint
from models.checkpoints.sources.tensors import merge, tensor_names, write


@pytest.fixture
def shards(tmp_path: Path) -> tuple[Path, Path]:
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    save_file({"a": torch.ones(2)}, first)
    save_file({"b": torch.zeros(2)}, second)
    return first, second


def test_shards_are_read_as_one(shards: tuple[Path, Path]) -> None:
    first, second = shards
    tensors = merge({first: ["a"], second: None})
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {"a": [1, 1], "b": [0, 0]}


def test_a_shard_without_what_the_index_says_is_refused(shards: tuple[Path, Path]) -> None:
    with pytest.raises(BadCheckpoint, match=r"1\.safetensors: c is missing, which the index"):
        merge({shards[0]: ["a", "c"]})


def test_a_tensor_in_two_shards_is_refused(shards: tuple[Path, Path]) -> None:
    first, second = shards
    save_file({"a": torch.zeros(2)}, second)
    with pytest.raises(BadCheckpoint, match=r"2\.safetensors: a is in another shard too; remove"):
        merge({first: None, second: None})


def test_a_file_whose_header_is_no_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "1.safetensors"
    path.write_bytes((8).to_bytes(8, "little") + b"{broken}" + bytes(8))
    with pytest.raises(BadCheckpoint, match=r"1\.safetensors .*download or save it again"):
        tensor_names(path)


def test_tensors_of_a_type_that_the_format_lacks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="cannot be written as safetensors"):
        write({"a": torch.zeros(2, dtype=torch.complex128)}, tmp_path / "out.safetensors")
