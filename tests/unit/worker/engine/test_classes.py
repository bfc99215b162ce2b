"""Chains of a class-conditional network: labels, guidance, batches, and resuming."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel

from models.checkpoints.catalog import Catalog, ClassesCard
from models.diffusion.sampling import sample, to_bytes
from tests.support.folders import write_model
from worker.engine.snapshot_codec import pack
from worker.jobs.domain import Recipe, Shard, shards_of
from worker.process.loaded_model import CannotRun, LoadedModel

CLASSES = ClassesCard(count=3, names=("cat", "dog", "frog"), null=1)
ROWS = [0, 2, 3]
SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_model(root, "named", classes=CLASSES)
    return root


@pytest.fixture(scope="module", params=["fp32"])
def model(folder: Path, request: pytest.FixtureRequest) -> Iterator[LoadedModel]:
    threads = torch.get_num_threads()
    device = torch.device("cpu")
    yield LoadedModel(Catalog.read(folder), "named", device, 64, request.param)
    torch.set_num_threads(threads)


_jobs = count()


def shard_of(
    model: LoadedModel, labels: str, guidance: float = 1.0, images: int = 1, start: int = 0
) -> Shard:
    recipe = Recipe(
        "named",
        model.card.sha256,
        "ddpm",
        12,
        "fixed_small",
        0.0,
        7,
        labels=labels,
        guidance=guidance,
    )
    [shard] = shards_of(f"{next(_jobs):032x}", recipe, start, images, "local", "interactive")
    return shard


def drawn(model: LoadedModel, *shards: Shard) -> list[torch.Tensor]:
    """Run shards together; return their images' pixels, in order."""
    for shard in shards:
        model.admit(shard, list(shard.indices), None)
    finished = {}
    while len(model.engine):
        for done in model.step():
            assert done.pixels is not None
            finished[done.request.chain] = done.pixels
    return [finished[shard.id, index] for shard in shards for index in shard.indices]


@torch.inference_mode()
def by_diffusers(folder: Path, model: LoadedModel, row: int, w: float, index: int) -> torch.Tensor:
    """Sample with diffusers' network by the plain loop."""
    net = UNet2DModel.from_pretrained(folder / "named" / "unet")

    def guided(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        conditional, null = (
            net(x, t, class_labels=torch.full_like(t, r)).sample for r in (row, CLASSES.null)
        )
        return null + w * (conditional - null)

    plan = model.plan("ddpm", 12, "fixed_small", 0.0)
    return to_bytes(sample(guided, plan, 7, [index], SHAPE))[0]


@pytest.mark.parametrize("guidance", [1.0, 0.0, 2.5])
@pytest.mark.parametrize("label", [0, 1, 2])
def test_a_guided_chain_of_a_class_is_that_of_diffusers(
    folder: Path, model: LoadedModel, label: int, guidance: float
):
    [ours] = drawn(model, shard_of(model, str(label), guidance, start=5))
    theirs = by_diffusers(folder, model, ROWS[label], guidance, 5)
    assert (ours.int() - theirs.int()).abs().max() <= 1


def test_labels_and_guidance_change_an_image(model: LoadedModel):
    pairs = [("0", 1.0), ("1", 1.0), ("2", 1.0), ("0", 3.0), ("0", 0.0)]
    images = [drawn(model, shard_of(model, label, w))[0] for label, w in pairs]
    assert len({image.numpy().tobytes() for image in images}) == len(pairs)


def test_an_image_does_not_depend_on_the_labels_and_guidance_beside_it(model: LoadedModel):
    wanted = [shard_of(model, "2,0", 2.5, images=2), shard_of(model, "1")]
    alone = list(chain.from_iterable(drawn(model, shard) for shard in wanted))
    others = [
        shard_of(model, "0,1,2,0,1", 1.0, images=5),
        shard_of(model, "2,2,1", 7.0, images=3),
        shard_of(model, "1", 0.0, images=4),
    ]
    together = drawn(model, others[0], wanted[0], others[1], wanted[1], others[2])
    assert torch.equal(torch.stack(together[5:7]), torch.stack(alone[:2]))
    assert torch.equal(together[10], alone[2])


def test_a_guided_step_counts_two_passes_and_another_one(model: LoadedModel):
    before = model.engine.image_steps
    drawn(model, shard_of(model, "0", 2.0, images=3), shard_of(model, "1", images=2))
    assert model.engine.image_steps - before == 12 * (2 * 3 + 2)


def test_saved_chains_go_on_with_their_labels(model: LoadedModel):
    shard = shard_of(model, "2,0,1", 2.5, images=3)
    uninterrupted = drawn(model, shard)
    model.admit(shard, list(shard.indices), None)
    for _ in range(5):
        model.step()
    names = [(shard.id, index) for index in shard.indices]
    saved = pack({shard.id: model.engine.snapshot(names)}, model.precision, model.fingerprint)
    model.engine.cancel(names)
    model.admit(shard, list(shard.indices), saved)
    assert model.engine.rows_done(names[0]) == 5
    finished = {}
    while len(model.engine):
        finished |= {done.request.index: done.pixels for done in model.step()}
    assert torch.equal(torch.stack([finished[i] for i in range(3)]), torch.stack(uninterrupted))


@pytest.mark.parametrize(("labels", "guidance"), [("3", 1.0), ("", 1.0)])
def test_labels_that_the_card_lacks_are_refused(model: LoadedModel, labels: str, guidance: float):
    with pytest.raises(CannotRun, match="3 classes with a null class") as refused:
        model.admit(shard_of(model, labels, guidance), [0], None)
    assert refused.value.code == "wrong_classes"
    assert not len(model.engine)
