from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, UNet2DModel

from models import checkpoint
from models.catalog import Catalog, sha256_of
from models.train import export as module
from models.train.export import export


@pytest.fixture
def trainer(tmp_path, make_recipe, train):
    return train(make_recipe(), tmp_path / "out")


def test_the_exported_folder_holds_the_averaged_weights_and_an_honest_card(trainer):
    folder = export(trainer)
    assert folder == trainer.out / "blobs-8"
    card = Catalog.read(trainer.out)["blobs-8"]
    loaded = checkpoint.load(folder, card.sha256)
    assert all(torch.equal(v, trainer.ema.averages[k]) for k, v in loaded.net.state_dict().items())
    assert not torch.equal(loaded.net.conv_in.weight, trainer.net.conv_in.weight)
    assert (card.schedule.T, card.defaults.sampler, card.defaults.steps, card.licence) == (100, "ddim", 20, "MIT")
    assert (card.data.name, card.data.images) == ("blobs", 20)
    for fact in ("12 updates of batch 6 (72 images)", "on cpu in fp32", "Adam 0.002", "seed 3", "averaged weights (EMA)", "loss"):
        assert fact in card.provenance
    torch.testing.assert_close(loaded.schedule.beta, trainer_schedule())


def trainer_schedule() -> torch.Tensor:
    return torch.linspace(1e-3, 0.2, 100, dtype=torch.float64)


def test_diffusers_opens_the_exported_folder(trainer):
    pipeline = DDPMPipeline.from_pretrained(export(trainer), local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    assert isinstance(pipeline.unet, UNet2DModel)
    assert pipeline(batch_size=2, num_inference_steps=3, output_type="pt").images.shape == (2, 1, 8, 8)


def test_a_second_export_replaces_the_first(trainer):
    folder = export(trainer)
    first = Catalog.read(trainer.out)["blobs-8"].sha256
    with torch.no_grad():
        trainer.ema.averages["conv_in.bias"].add_(1)
    export(trainer)
    second = Catalog.read(trainer.out)["blobs-8"].sha256
    assert first != second == sha256_of(folder / "unet" / checkpoint.WEIGHTS)
    assert sorted(p.name for p in trainer.out.iterdir()) == ["blobs-8", "state.safetensors"]


def test_an_export_that_dies_leaves_the_finished_folder_whole(trainer, monkeypatch):
    folder = export(trainer)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    for step in ("make_card", "write_card"):
        trainer.ema.averages["conv_in.bias"].add_(1)
        with monkeypatch.context() as patch:
            patch.setattr(module, step, lambda *_, **__: die())
            with pytest.raises(KeyboardInterrupt):
                export(trainer)
        assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
        assert list(Catalog.read(trainer.out)) == ["blobs-8"]
    export(trainer)
    assert not (Path(trainer.out) / ".export").exists()
