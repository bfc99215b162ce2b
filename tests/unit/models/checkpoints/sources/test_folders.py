"""Folders in the layouts that diffusers and the Hub's cache write, and links that lead out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.checkpoints import diffusers_format
from models.checkpoints.bad_checkpoint import BadCheckpoint
from models.checkpoints.layout import CONFIG, SCHEDULER, WEIGHTS
from models.checkpoints.sources.opening import open_source
from models.checkpoints.sources.source import Source


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    made = tmp_path / "scratch"
    made.mkdir()
    return made


def loads_the_same(source: Source, state: dict[str, Tensor]) -> bool:
    loaded = diffusers_format.load(source.folder).net.state_dict()
    return all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def rewrite(folder: Path, name: str, change=lambda tensors: tensors) -> None:
    weights = folder / "unet" / WEIGHTS
    tensors = change(load_file(weights))
    weights.unlink()
    if name.endswith(".bin"):
        torch.save(tensors, weights.with_name(name))
    else:
        save_file(tensors, weights.with_name(name))


def test_a_plain_folder_is_read_where_it_lies(folder, small_net, scratch):
    source = open_source(str(folder), scratch)
    assert source.folder == folder
    assert source.notes == ()
    assert list(scratch.iterdir()) == []
    assert loads_the_same(source, small_net.state_dict())


@pytest.mark.parametrize(
    "name",
    [
        "diffusion_pytorch_model.fp16.safetensors",
        "model.safetensors",
        "diffusion_pytorch_model.non_ema.safetensors",
        "diffusion_pytorch_model.bin",
        "diffusion_pytorch_model.fp16.bin",
    ],
)
def test_weights_of_another_name_are_taken_and_named(folder, small_net, scratch, name):
    rewrite(folder, name)
    source = open_source(str(folder), scratch)
    assert source.notes[0] == f"the weights are {name}"
    assert loads_the_same(source, small_net.state_dict())


def test_full_precision_is_taken_where_a_half_lies_beside_it(folder, scratch):
    weights = folder / "unet" / WEIGHTS
    shutil.copy(weights, weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    source = open_source(str(folder), scratch)
    assert (source.folder, source.notes) == (folder, ())
    assert source.ignored == ("diffusion_pytorch_model.fp16.safetensors",)


def shard(folder: Path, kind: str = "safetensors") -> Path:
    tensors = load_file(folder / "unet" / WEIGHTS)
    names = sorted(tensors)
    parts = {1: names[: len(names) // 2], 2: names[len(names) // 2 :]}
    stem = "diffusion_pytorch_model"
    where = {}
    for number, part in parts.items():
        name = f"{stem}-{number:05}-of-00002.{kind}"
        held = {key: tensors[key] for key in part}
        if kind == "bin":
            torch.save(held, folder / "unet" / name)
        else:
            save_file(held, folder / "unet" / name)
        where |= dict.fromkeys(part, name)
    (folder / "unet" / WEIGHTS).unlink()
    index = folder / "unet" / f"{stem}.{kind}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return index


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_are_merged(folder, small_net, scratch, kind):
    shard(folder, kind)
    source = open_source(str(folder), scratch)
    assert "merged from 2 shards" in " ".join(source.notes)
    assert loads_the_same(source, small_net.state_dict())


def test_a_shard_that_is_missing_is_named(folder, scratch):
    shard(folder)
    (folder / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(BadCheckpoint, match=r"00002-of-00002\.safetensors cannot be read"):
        open_source(str(folder), scratch)


@pytest.mark.parametrize("name", ["../../secret.safetensors", "/etc/passwd", ".hidden", 7])
def test_an_index_that_names_files_elsewhere_is_refused(folder, scratch, name):
    index = shard(folder)
    content = json.loads(index.read_text())
    content["weight_map"] = dict.fromkeys(content["weight_map"], name)
    index.write_text(json.dumps(content))
    with pytest.raises(BadCheckpoint, match="which is no file beside it"):
        open_source(str(folder), scratch)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_taken_off_and_reported(folder, small_net, scratch, prefix):
    rewrite(folder, WEIGHTS, lambda tensors: {prefix + k: v for k, v in tensors.items()})
    source = open_source(str(folder), scratch)
    assert "was taken off" in source.notes[-1]
    assert loads_the_same(source, small_net.state_dict())


def test_a_checkpoint_of_a_run_has_the_process_of_the_run(folder, small_net, scratch, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(folder, run / "checkpoint-500")
    (run / "checkpoint-500" / "scheduler").rename(run / "scheduler")
    (run / "checkpoint-500" / "optimizer.bin").write_bytes(b"a pickle")
    source = open_source(str(run / "checkpoint-500"), scratch)
    assert f"the process is taken from the run's {run / 'scheduler' / SCHEDULER}" in source.notes
    assert source.ignored == ("optimizer.bin",)
    assert loads_the_same(source, small_net.state_dict())


def cache(folder: Path, root: Path) -> Path:
    """Lay a model out as the Hub's cache does: links from snapshots to blobs."""
    repository = root / "models--owner--name"
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123")
    for number, path in enumerate(p for p in sorted(folder.rglob("*")) if p.is_file()):
        link = repository / "snapshots" / "abc123" / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        blob = repository / "blobs" / str(number)
        shutil.copy(path, blob)
        link.symlink_to(blob)
    return repository


@pytest.mark.parametrize("given", [".", "snapshots/abc123"])
def test_a_snapshot_in_the_hubs_cache_is_read_with_its_links(
    folder, small_net, scratch, tmp_path, given
):
    repository = cache(folder, tmp_path / "hub")
    source = open_source(str(repository / given), scratch)
    assert loads_the_same(source, small_net.state_dict())


@pytest.mark.parametrize(
    "name", [f"unet/{WEIGHTS}", f"unet/{CONFIG}", f"scheduler/{SCHEDULER}", "model_index.json"]
)
@pytest.mark.parametrize("cached", [False, True])
def test_a_link_out_of_the_folder_is_refused(folder, scratch, tmp_path, name, cached):
    secret = tmp_path / "secret"
    shutil.copy(folder / name, secret)
    model = cache(folder, tmp_path / "hub") / "snapshots" / "abc123" if cached else folder
    (model / name).unlink()
    (model / name).symlink_to(secret)
    with pytest.raises(BadCheckpoint, match=r"is a link to .*secret, outside the model's folder"):
        open_source(str(model), scratch)
    assert list(scratch.iterdir()) == []


def test_a_link_to_nothing_is_named(folder, scratch):
    (folder / "unet" / WEIGHTS).unlink()
    (folder / "unet" / WEIGHTS).symlink_to("nowhere")
    with pytest.raises(BadCheckpoint, match="cannot be read"):
        open_source(str(folder), scratch)


def test_a_pointer_of_git_lfs_is_called_one(folder, scratch):
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n"
    (folder / "unet" / WEIGHTS).write_text(pointer)
    with pytest.raises(BadCheckpoint, match="is a pointer of Git LFS, not the file"):
        open_source(str(folder), scratch)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ((10**12).to_bytes(8, "little") + b"{" + b" " * 20, "claims 1000000000000 bytes"),
        (b"", "is empty"),
        (b"<html>not found</html>", "is not a safetensors file"),
    ],
)
def test_a_header_that_lies_is_refused_by_its_reason(folder, scratch, content, says):
    (folder / "unet" / WEIGHTS).write_bytes(content)
    with pytest.raises(BadCheckpoint, match=says):
        open_source(str(folder), scratch)


def test_a_configuration_of_gigabytes_is_not_read(folder, scratch):
    with (folder / "unet" / CONFIG).open("r+b") as file:
        file.truncate(4 << 30)
    with pytest.raises(BadCheckpoint, match="no model's configuration is so large"):
        open_source(str(folder), scratch)
