"""The export of a training run: a folder that is whole, honest and read by diffusers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, UNet2DModel

from models.checkpoints import diffusers_format, layout
from models.checkpoints.atomic_files import flush
from models.checkpoints.catalog import Catalog, Defaults, sha256_of
from models.checkpoints.residual_variance import FILE, ResidualVariance
from models.train import export as module
from models.train.export import export
from models.train.output import BadOutput


@pytest.fixture
def trainer(tmp_path, make_recipe, train):
    return train(make_recipe(), tmp_path / "out")


def test_the_exported_folder_holds_the_averaged_weights_and_an_honest_card(trainer):
    folder = export(trainer)
    assert folder == trainer.out / "blobs-8"
    card = Catalog.read(trainer.out)["blobs-8"]
    loaded = diffusers_format.load(folder, card.sha256)
    assert all(torch.equal(v, trainer.ema.averages[k]) for k, v in loaded.net.state_dict().items())
    assert not torch.equal(loaded.net.conv_in.weight, trainer.net.conv_in.weight)
    assert (card.schedule.T, card.licence) == (100, "MIT")
    assert (card.defaults.sampler, card.defaults.steps) == ("ddim", 20)
    assert (card.data.name, card.data.images) == ("blobs", 20)
    for fact in (
        "12 updates of batch 6 (72 images)",
        "on cpu in fp32",
        "Adam 0.002",
        "seed 3",
        "averaged weights (EMA)",
        "loss",
    ):
        assert fact in card.provenance
    torch.testing.assert_close(loaded.schedule.beta, trainer_schedule())


def trainer_schedule() -> torch.Tensor:
    return torch.linspace(1e-3, 0.2, 100, dtype=torch.float64)


def test_diffusers_opens_the_exported_folder(trainer):
    pipeline = DDPMPipeline.from_pretrained(export(trainer), local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    assert isinstance(pipeline.unet, UNet2DModel)
    images = pipeline(batch_size=2, num_inference_steps=3, output_type="pt").images
    assert images.shape == (2, 1, 8, 8)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_the_exported_scheduler_has_the_reverse_variance_of_the_card(
    tmp_path, make_recipe, train, variance
):
    recipe = make_recipe("card", defaults=Defaults(steps=20, variance=variance))
    folder = export(train(recipe, tmp_path / "out", only=1))
    assert diffusers_format.describe(folder).published.variance == variance
    pipeline = DDPMPipeline.from_pretrained(folder, local_files_only=True)
    assert pipeline.scheduler.config.variance_type == variance


def test_a_second_export_replaces_the_first(trainer):
    folder = export(trainer)
    first = Catalog.read(trainer.out)["blobs-8"].sha256
    with torch.no_grad():
        trainer.ema.averages["conv_in.bias"].add_(1)
    export(trainer)
    second = Catalog.read(trainer.out)["blobs-8"].sha256
    assert first != second == sha256_of(folder / "unet" / layout.WEIGHTS)
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


def test_a_folder_that_is_no_models_is_not_replaced(trainer):
    flowers = trainer.out / "blobs-8"
    flowers.mkdir()
    (flowers / "rose.png").write_bytes(b"a rose")
    text = r"blobs-8 is where the model goes, and holds no card\.json"
    with pytest.raises(BadOutput, match=text):
        export(trainer)
    assert (flowers / "rose.png").read_bytes() == b"a rose"


def test_an_estimate_stays_with_its_weights_and_goes_with_them(trainer):
    folder = export(trainer)
    weights = Catalog.read(trainer.out)["blobs-8"].sha256
    about = {"weights": weights, "data": "blobs", "images": 1, "seed": 0}
    sha256 = ResidualVariance(**about, values=(0.5,) * 100).write(folder)
    export(trainer)
    card = Catalog.read(trainer.out)["blobs-8"]
    assert card.residual_variance == sha256 == sha256_of(folder / FILE)
    trainer.ema.averages["conv_in.bias"].add_(1)
    export(trainer)
    assert Catalog.read(trainer.out)["blobs-8"].residual_variance is None
    assert not (folder / FILE).exists()


def test_a_run_without_an_update_leaves_its_model_unless_the_card_is_reworded(
    trainer, train, make_recipe
):
    folder = export(trainer)
    before = folder.stat().st_ino
    again = train(make_recipe(), trainer.out)
    again.counters.seconds += 3600
    export(again)
    assert folder.stat().st_ino == before
    export(train(make_recipe("card", licence="CC0-1.0"), trainer.out))
    assert Catalog.read(trainer.out)["blobs-8"].licence == "CC0-1.0"


@pytest.mark.parametrize(
    "path",
    [f"unet/{layout.WEIGHTS}", "unet/config.json", "scheduler/scheduler_config.json"],
)
@pytest.mark.parametrize(
    "damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-9])]
)
def test_a_finished_run_that_is_run_again_mends_its_damaged_model(
    trainer, train, make_recipe, path, damage
):
    folder = export(trainer)
    whole = (folder / path).read_bytes()
    damage(folder / path)
    export(train(make_recipe(), trainer.out))
    assert (folder / path).read_bytes() == whole


def test_a_model_is_on_the_disk_before_it_is_put_in_place(trainer, monkeypatch):
    flushed: list[Path] = []

    def flush_and_note(path: Path) -> None:
        flushed.append(path.relative_to(trainer.out / ".export"))
        flush(path)

    monkeypatch.setattr(module, "flush", flush_and_note)
    folder = export(trainer)
    files = [path.relative_to(trainer.out) for path in folder.rglob("*") if path.is_file()]
    assert sorted(flushed) == sorted(files)


def test_a_full_disk_leaves_the_finished_folder_and_nothing_half_written(trainer, full_disk):
    folder = export(trainer)
    before = Catalog.read(trainer.out)["blobs-8"]
    trainer.ema.averages["conv_in.bias"].add_(1)
    text = r"blobs-8 cannot be written .*; make room, and run the same command again"
    with full_disk(), pytest.raises(BadOutput, match=text):
        export(trainer)
    assert diffusers_format.load(folder, before.sha256)
    assert sorted(p.name for p in trainer.out.iterdir()) == ["blobs-8", "state.safetensors"]


def test_a_model_that_cannot_be_put_in_place_leaves_the_one_before(trainer, monkeypatch):
    folder = export(trainer)
    before = Catalog.read(trainer.out)["blobs-8"]
    rename = Path.rename

    def fail(source: Path, target: Path) -> Path:
        if (source.parent.name, target) == (".export", folder) and source.name == folder.name:
            raise OSError("no")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", fail)
    trainer.ema.averages["conv_in.bias"].add_(1)
    with pytest.raises(BadOutput):
        export(trainer)
    assert diffusers_format.load(folder, before.sha256)


def test_the_card_names_every_learning_rate(tmp_path, make_recipe, train):
    train(make_recipe(), tmp_path / "out", only=2)
    export(train(make_recipe(learning_rate=1e-3), tmp_path / "out"))
    assert "Adam 0.002, then 0.001, seed 3" in Catalog.read(tmp_path / "out")["blobs-8"].provenance
