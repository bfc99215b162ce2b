"""The TensorBoard events of a training run, as TensorBoard reads them."""

from __future__ import annotations

import pytest

from models.train.report.events import FOLDER, LOSS, VALIDATION_LOSS, Events

event_accumulator = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason="the tensorboard extra"
)


def read(out, tag):
    """The readings under a tag: update and loss."""
    accumulator = event_accumulator.EventAccumulator(str(out / FOLDER))
    accumulator.Reload()
    if tag not in accumulator.Tags()["scalars"]:
        return []
    return [(event.step, pytest.approx(event.value)) for event in accumulator.Scalars(tag)]


def sheets(out):
    """The sheets of samples: update, width and height."""
    accumulator = event_accumulator.EventAccumulator(str(out / FOLDER))
    accumulator.Reload()
    return [(event.step, event.width, event.height) for event in accumulator.Images("samples")]


@pytest.fixture
def trainer(tmp_path, make_recipe, train):
    return train(make_recipe(), tmp_path / "out")


def test_tensorboard_reads_every_loss_and_every_sheet(trainer, tmp_path):
    from models.train.report.samples import draw_samples

    trainer.counters.losses[:] = [(5, 0.3), (10, 0.2)]
    trainer.counters.validation[:] = [(10, 0.25)]
    with Events(trainer) as events:
        trainer.counters.losses.append((12, 0.1))
        events.write_readings()
        events.write_sheet(draw_samples(trainer, images=4))
    assert read(trainer.out, LOSS) == [(5, 0.3), (10, 0.2), (12, 0.1)]
    assert read(trainer.out, VALIDATION_LOSS) == [(10, 0.25)]
    assert sheets(trainer.out) == [(12, 16, 16)]


def test_readings_after_the_last_save_of_a_killed_run_are_dropped(trainer):
    counters = trainer.counters
    counters.update, counters.losses = 10, [(10, 0.2)]
    # The kill leaves what was written behind, and nothing is closed.
    killed = Events(trainer)
    counters.losses.append((20, 9.0))
    killed.write_readings()
    counters.losses.pop()
    with Events(trainer) as resumed:
        counters.losses.append((15, 0.1))
        resumed.write_readings()
    assert read(trainer.out, LOSS) == [(10, 0.2), (15, 0.1)]


def test_a_run_that_begins_anew_keeps_no_readings_of_the_one_before(trainer):
    trainer.counters.losses[:] = [(12, 0.3)]
    with Events(trainer):
        pass
    (trainer.out / FOLDER / "notes.txt").write_text("the user's")
    trainer.counters.update, trainer.counters.losses = 0, []
    with Events(trainer) as events:
        trainer.counters.losses.append((5, 0.1))
        events.write_readings()
    assert read(trainer.out, LOSS) == [(5, 0.1)]
    assert (trainer.out / FOLDER / "notes.txt").exists()
