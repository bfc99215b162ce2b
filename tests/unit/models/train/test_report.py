"""Pictures of a training run: the loss curve and the sheet of samples."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from models.train.report.curves import draw_loss, write_losses
from models.train.report.samples import draw_samples, in_batches_that_fit


@pytest.fixture
def trainer(tmp_path, make_recipe, train):
    trainer = train(make_recipe(), tmp_path / "out")
    trainer.counters.losses += [(50, 0.3), (100, 0.2), (150, 0.1)]
    return trainer


# matplotlib's own imports warn
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_the_loss_curve_is_a_png(trainer):
    pytest.importorskip("matplotlib", reason="the train extra draws the loss curve")
    with Image.open(draw_loss(trainer)) as image:
        assert image.format == "PNG"
        assert image.width > 300
        assert len(image.convert("L").getcolors()) > 10
    assert (trainer.out / "loss.png").is_file()


def test_the_sample_sheet_is_named_by_its_update_and_shows_many_images(trainer):
    path = draw_samples(trainer, images=16)
    assert path.name == "samples-000012.png"
    with Image.open(path) as image:
        assert (image.size, image.mode) == ((32, 32), "L")
        assert len(image.getcolors()) > 10


def test_drawing_samples_changes_nothing_and_draws_the_same_again(trainer):
    weights = {n: p.clone() for n, p in trainer.parameters.items()}
    first = draw_samples(trainer, images=4).read_bytes()
    assert draw_samples(trainer, images=4).read_bytes() == first
    assert trainer.net.training
    assert all(torch.equal(weights[n], p) for n, p in trainer.parameters.items())


def test_samples_are_of_the_averaged_weights(trainer):
    first = draw_samples(trainer, images=4).read_bytes()
    with torch.no_grad():
        trainer.parameters["conv_out.bias"].add_(5)
    assert draw_samples(trainer, images=4).read_bytes() == first
    trainer.ema.averages["conv_out.bias"].add_(5)
    assert draw_samples(trainer, images=4).read_bytes() != first


def test_a_sheet_is_drawn_in_the_batches_that_fit():
    asked: list[range] = []

    def draw(indices: range) -> torch.Tensor:
        asked.append(indices)
        if len(indices) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.tensor(indices)[:, None]

    assert in_batches_that_fit(draw, 10, 8)[:, 0].tolist() == list(range(10))
    assert [len(indices) for indices in asked] == [8, 4, 2, 2, 2, 2, 2]


def test_a_sheet_of_which_no_image_fits_ends_with_the_error():
    def draw(_: range) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        in_batches_that_fit(draw, 10, 8)


def test_the_readings_are_a_csv(trainer):
    trainer.counters.validation.append((50, 0.25))
    lines = write_losses(trainer).read_text().splitlines()
    assert lines[0] == "update,loss,validation_loss"
    assert lines[-3:] == ["50,0.3,0.25", "100,0.2,", "150,0.1,"]
