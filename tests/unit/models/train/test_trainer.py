"""Training runs: resumed to the bit, read by a clock, ended by a divergence or a full disk."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image

from models.train.data.folder import FolderOptions
from models.train.data.images import BadData
from models.train.data.source import open_images
from models.train.output import BadOutput
from models.train.state import FILE, BadState, read_names
from models.train.trainer import LOG_EVERY, READ_S, Diverged, Trainer
from tests.support.clock import SimulatedClock

CPU = torch.device("cpu")


def assert_equal_runs(one: Trainer, other: Trainer) -> None:
    """Compare weights, averages, moments and counters, to the bit."""
    weights, others = one.net.state_dict(), other.net.state_dict()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    averages, others = one.ema.averages, other.ema.averages
    assert all(torch.equal(averages[name], others[name]) for name in averages)
    moments, others = (t.optimizer.state_dict()["state"] for t in (one, other))
    assert moments.keys() == others.keys()
    for i in moments:
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(moments[i][key], others[i][key])
    assert one.counters.update == other.counters.update


def test_training_lowers_the_loss_and_its_average_follows(tmp_path, make_recipe, train):
    trainer = train(make_recipe(updates=3 * LOG_EVERY), tmp_path / "out")
    losses = [loss for _, loss in trainer.counters.losses]
    assert [update for update, _ in trainer.counters.losses] == [LOG_EVERY * i for i in range(1, 4)]
    # a network that returns zeros has a loss of 1
    assert losses[-1] < 0.6 * losses[0] < 0.6
    matrices = {name: p for name, p in trainer.parameters.items() if p.ndim > 1}
    averages = trainer.ema.averages
    close = [(averages[name] - p).norm() / p.norm() for name, p in matrices.items()]
    assert 0 < max(close) < 0.5


@pytest.mark.parametrize("first", [1, 5, 11])
def test_a_run_in_two_parts_is_the_run_in_one_to_the_bit(tmp_path, make_recipe, train, first):
    recipe = make_recipe()
    straight = train(recipe, tmp_path / "straight")
    train(recipe, tmp_path / "parts", only=first)
    # What else the process draws must not matter.
    torch.manual_seed(999)
    resumed = train(recipe, tmp_path / "parts")
    assert resumed.counters.update == 12
    assert_equal_runs(straight, resumed)


def test_a_killed_run_goes_on_from_its_last_state_to_the_same_bits(
    tmp_path, make_recipe, train, recipe_text, images
):
    """It is killed in the middle of an update, in another process, after a state was saved."""
    (tmp_path / "r.toml").write_text(recipe_text.replace("updates = 12", "updates = 100000"))
    torch.save(images.pixels, tmp_path / "pixels.pt")
    code = f"""
import torch
from pathlib import Path
from models.train.data.images import ArrayImages
from models.train.recipe import TrainingRecipe
from models.train.trainer import Trainer
torch.set_num_threads(1)
recipe = TrainingRecipe.read(Path({str(tmp_path / "r.toml")!r}))
images = ArrayImages(torch.load({str(tmp_path / "pixels.pt")!r}))
trainer = Trainer(recipe, images, Path({str(tmp_path / "killed")!r}), torch.device("cpu"))
def stop():
    if trainer.counters.update == 7:
        trainer.save_state()
    if trainer.counters.update == 9:
        print("now", flush=True)
for _ in trainer.run(stop):
    pass
"""
    command = [sys.executable, "-c", code]
    root = Path(__file__).parents[4]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "now\n"
        os.kill(process.pid, signal.SIGKILL)
    straight = train(make_recipe(), tmp_path / "straight")
    assert_equal_runs(straight, train(make_recipe(), tmp_path / "killed"))


def test_every_epoch_shows_every_image_once_in_another_order(tmp_path, make_recipe, images):
    trainer = Trainer(make_recipe(), images, tmp_path, CPU)
    seen: list[int] = []
    original = images.batch
    images.batch = lambda indices: (seen.extend(indices.tolist()), original(indices))[1]
    # 60 images: three epochs of 20, in batches of 6 that straddle them
    for n in range(10):
        assert trainer.batch(n).shape == (6, 1, 8, 8)
    epochs = [seen[start : start + 20] for start in (0, 20, 40)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != list(range(20))


def test_a_batch_larger_than_the_set_holds_whole_epochs(tmp_path, make_recipe, images):
    trainer = Trainer(make_recipe(batch_size=40), images, tmp_path, CPU)
    seen: list[int] = []
    original = images.batch
    images.batch = lambda indices: (seen.extend(indices.tolist()), original(indices))[1]
    trainer.batch(1)
    assert sorted(seen) == sorted([*range(20), *range(20)])


def test_pixels_become_minus_one_to_one_without_noise(tmp_path, make_recipe, images):
    levels = torch.tensor([0, 255], dtype=torch.uint8)
    images.pixels = levels[:, None, None, None].expand(2, 1, 8, 8)
    x_0 = Trainer(make_recipe(), images, tmp_path, CPU).batch(0)
    assert set(x_0.unique().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("flip", [True, False])
def test_half_of_the_images_are_mirrored_if_the_recipe_says_so(tmp_path, make_recipe, images, flip):
    trainer = Trainer(make_recipe("data", horizontal_flip=flip), images, tmp_path, CPU)
    torch.manual_seed(0)
    batches = torch.cat([trainer.batch(n) for n in range(50)])
    # the bright half is the left one
    left, right = batches[..., :4].mean((1, 2, 3)), batches[..., 4:].mean((1, 2, 3))
    mirrored = right > left
    share = mirrored.float().mean().item()
    assert share == pytest.approx(0.5 if flip else 0, abs=0.12 if flip else 0)


def test_the_learning_rate_warms_up_to_the_recipes(tmp_path, make_recipe, images):
    trainer = Trainer(make_recipe(), images, tmp_path, CPU)
    rates = []
    for n in range(7):
        trainer.update(n)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([2e-3 * r for r in (0.2, 0.4, 0.6, 0.8, 1, 1, 1)])


def test_a_state_of_another_recipe_is_refused(tmp_path, make_recipe, train):
    train(make_recipe(updates=1), tmp_path / "out")
    text = rf"{FILE} belongs to a run with another recipe; use another --out"
    with pytest.raises(BadState, match=text):
        train(make_recipe(batch_size=5), tmp_path / "out")


def test_a_run_may_be_prolonged_and_its_card_reworded(tmp_path, make_recipe, train):
    train(make_recipe(updates=2), tmp_path / "out")
    card = make_recipe("card", licence="CC0-1.0").card
    longer = make_recipe(updates=4, save_every_s=1.0).model_copy(update={"card": card})
    assert train(longer, tmp_path / "out").counters.update == 4
    assert train(longer, tmp_path / "out").counters.update == 4


@pytest.mark.parametrize(("number", "word"), [(math.nan, "NaN"), (math.inf, "infinite")])
def test_a_loss_that_is_no_number_ends_the_run_and_spares_the_last_state(
    tmp_path, make_recipe, train, images, monkeypatch, number, word
):
    train(make_recipe(updates=2), tmp_path / "out")
    before = (tmp_path / "out" / FILE).read_bytes()
    bad = Trainer(make_recipe(updates=4), images, tmp_path / "out", CPU)
    monkeypatch.setattr(bad, "update", lambda _: torch.tensor(number))
    text = f"the loss is {word} at update 4; lower learning_rate or gradient_clip"
    with pytest.raises(Diverged, match=text):
        list(bad.run())
    assert (tmp_path / "out" / FILE).read_bytes() == before


@pytest.mark.parametrize("spoil", ["loss", "weight", "average", "moment"])
def test_a_stop_saves_nothing_that_is_no_number(tmp_path, make_recipe, train, images, spoil):
    train(make_recipe(updates=2), tmp_path / "out")
    before = (tmp_path / "out" / FILE).read_bytes()
    bad = Trainer(make_recipe(), images, tmp_path / "out", CPU)
    spoilt = {
        "weight": bad.parameters["conv_in.weight"],
        "average": bad.ema.averages["conv_in.weight"],
        "moment": bad.optimizer.state[bad.parameters["conv_in.weight"]]["exp_avg_sq"],
    }
    if spoil == "loss":
        bad.update = lambda _: torch.tensor(math.nan)
    else:
        spoilt[spoil].data[0].fill_(math.inf)
    last = 3 if spoil == "loss" else 2
    with pytest.raises(Diverged, match="run the same command: it resumes the last state"):
        list(bad.run(lambda: bad.counters.update == last))
    assert (tmp_path / "out" / FILE).read_bytes() == before


def test_a_recipe_is_known_by_the_hash_that_older_versions_saved(tmp_path, make_recipe, images):
    trainer = Trainer(make_recipe(), images, tmp_path / "out", torch.device("cpu"))
    assert trainer.counters.fingerprint == (
        "358b03c90472e2d8b6cf6e955201709634b4850fa5855ec7ecaecdbdf6715f6e"
    )


def test_a_run_that_diverged_is_resumed_with_what_the_remedy_names(tmp_path, make_recipe, train):
    train(make_recipe(updates=2), tmp_path / "out")
    resumed = train(make_recipe(updates=3, learning_rate=1e-4, gradient_clip=0.5), tmp_path / "out")
    assert resumed.counters.update == 3
    assert resumed.optimizer.param_groups[0]["lr"] == pytest.approx(1e-4 * 3 / 5)


def test_a_state_of_a_run_on_other_pictures_is_refused(tmp_path, make_recipe, train, images):
    train(make_recipe(updates=1), tmp_path / "out")
    images.pixels = images.pixels.flip(0)
    text = rf"{FILE} belongs to a run on other pictures than data\.path has now; put those back"
    with pytest.raises(BadState, match=text):
        train(make_recipe(), tmp_path / "out")


@pytest.mark.parametrize(
    "spoil", [lambda raw: raw[:-1], lambda raw: b"", lambda raw: b"\x02" + b"\0" * 7 + b"{}"]
)
def test_a_damaged_state_is_named(tmp_path, make_recipe, train, spoil):
    train(make_recipe(updates=1), tmp_path / "out")
    path = tmp_path / "out" / FILE
    path.write_bytes(spoil(path.read_bytes()))
    text = rf"{FILE} cannot be read as the state of a run .*; restore it, or remove it"
    with pytest.raises(BadState, match=text):
        train(make_recipe(), tmp_path / "out")


def test_a_full_disk_leaves_the_last_state(tmp_path, make_recipe, train, full_disk):
    trainer = train(make_recipe(updates=2), tmp_path / "out")
    before = (tmp_path / "out" / FILE).read_bytes()
    text = rf"{FILE} cannot be written .*; make room, and run the same command again"
    with full_disk(), pytest.raises(BadOutput, match=text):
        trainer.save_state()
    assert [(p.name, p.read_bytes()) for p in (tmp_path / "out").iterdir()] == [(FILE, before)]


def test_a_run_goes_on_when_an_unreadable_image_is_replaced(tmp_path, make_recipe):
    """All updates before that image are saved, and the new file has its name."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for level in range(12):
        Image.new("L", (8, 8), 20 * level).save(folder / f"{level:02}.png")
    recipe = make_recipe(batch_size=4)
    out = tmp_path / "out"
    whole = (folder / "07.png").read_bytes()

    def begin(out: Path) -> Trainer:
        return Trainer(recipe, open_images(folder, 8, 1), out, CPU)

    def spoil() -> bool:
        if broken.counters.update == 3:
            (folder / "07.png").write_bytes(b"broken")
        return False

    straight = begin(tmp_path / "straight")
    list(straight.run())
    broken = begin(out)
    text = (
        r"07\.png cannot be read as an image .*; put an 8-bit PNG or JPEG in its place, under the"
    )
    with pytest.raises(BadData, match=text):
        list(broken.run(spoil))
    with pytest.raises(BadData, match=r"07\.png cannot be read as an image .*--skip-broken"):
        begin(out)
    # A file's format is found by its content, not by its name.
    Image.open(BytesIO(whole)).save(folder / "07.png", "TIFF")
    saved = begin(out)
    assert saved.counters.update == saved.counters.losses[-1][0] == broken.counters.update >= 3
    assert_equal_runs(saved, broken)
    list(saved.run())
    assert_equal_runs(saved, straight)


def test_a_run_goes_on_without_pictures_that_are_skipped(tmp_path, make_recipe):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for level in range(6):
        Image.new("L", (8, 8), 40 * level).save(folder / f"{level}.png")
    recipe, out = make_recipe(), tmp_path / "out"
    first = Trainer(recipe, open_images(folder, 8, 1), out, CPU)
    list(first.run(lambda: first.counters.update == 5))
    (folder / "2.png").write_bytes(b"broken")
    Image.new("L", (8, 8)).save(folder / "new.png")
    assert read_names(out) == [f"{level}.png" for level in range(6)]
    options = FolderOptions(began_with=read_names(out), skip_broken=True)
    second = Trainer(recipe, open_images(folder, 8, 1, options), out, CPU)
    assert second.counters.update == 5
    list(second.run(lambda: second.counters.update == 7))
    assert read_names(out) == ["0.png", "1.png", "3.png", "4.png", "5.png"]
    # The choice is kept: without the option the run still has five pictures.
    options = FolderOptions(began_with=read_names(out))
    third = Trainer(recipe, open_images(folder, 8, 1, options), out, CPU)
    list(third.run())
    assert third.counters.update == 12


def test_a_run_goes_on_with_its_number_of_threads(tmp_path, make_recipe, train):
    """Another number adds in another order, so the bits would be others."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        train(make_recipe(), tmp_path / "parts", only=5)
        torch.set_num_threads(3)
        resumed = train(make_recipe(), tmp_path / "parts")
        assert torch.get_num_threads() == resumed.counters.threads == 1
    finally:
        torch.set_num_threads(before)


def test_a_run_that_diverges_before_its_first_save_begins_anew(tmp_path, make_recipe, images):
    bad = Trainer(make_recipe(), images, tmp_path / "out", CPU)
    bad.update = lambda _: torch.tensor(math.nan)
    with pytest.raises(Diverged, match="it begins anew, as no state was saved"):
        list(bad.run())


def test_progress_counts_to_the_last_update(tmp_path, make_recipe, images):
    trainer = Trainer(make_recipe(updates=LOG_EVERY + 3), images, tmp_path, CPU)
    readings = list(trainer.run())
    assert [r.update for r in readings] == [LOG_EVERY, LOG_EVERY + 3]
    for reading in readings:
        assert reading.updates == LOG_EVERY + 3
        assert reading.images_per_s > 0
        assert 0 < reading.loss < 3
    assert trainer.counters.seconds > 0


def test_slow_updates_are_read_by_the_clock(tmp_path, make_recipe, images):
    clock = SimulatedClock(tick_s=READ_S)
    trainer = Trainer(make_recipe(updates=3), images, tmp_path, CPU, clock)
    assert [reading.update for reading in trainer.run()] == [1, 2, 3]


def test_a_run_in_short_parts_has_the_losses_and_seconds_of_each(tmp_path, make_recipe, train):
    recipe = make_recipe()
    seconds = 0.0
    for end in (5, 10, 12):
        trainer = train(recipe, tmp_path / "out", only=5)
        assert trainer.counters.losses[-1][0] == trainer.counters.update == end
        assert trainer.counters.seconds > seconds
        seconds = trainer.counters.seconds
    assert [update for update, _ in trainer.counters.losses] == [5, 10, 12]
    whole = train(recipe, tmp_path / "whole")
    parts = [loss for _, loss in trainer.counters.losses]
    assert (5 * parts[0] + 5 * parts[1] + 2 * parts[2]) / 12 == pytest.approx(
        whole.counters.losses[-1][1]
    )


@pytest.mark.parametrize("precision", ["bf16", "auto"])
def test_weights_and_averages_stay_float32_in_any_precision(
    tmp_path, make_recipe, train, precision
):
    trainer = train(make_recipe(precision=precision, updates=2), tmp_path / "out")
    assert trainer.counters.precision in ("fp32", "bf16")
    tensors = (*trainer.parameters.values(), *trainer.ema.averages.values())
    assert {tensor.dtype for tensor in tensors} == {torch.float32}


def test_the_choice_of_a_precision_changes_no_weight(tmp_path, make_recipe, images):
    """The choice is a measurement, so it must drop its gradients, and leave the weights alone."""
    auto = Trainer(make_recipe(precision="auto"), images, tmp_path / "auto", CPU)
    fp32 = Trainer(make_recipe(precision="fp32"), images, tmp_path / "fp32", CPU)
    for name, weights in fp32.parameters.items():
        assert torch.equal(auto.parameters[name], weights)
        assert auto.parameters[name].grad is None


def test_held_out_pictures_are_never_trained_on(tmp_path, make_recipe, images):
    recipe = make_recipe("data", held_out=0.25)
    trainer = Trainer(recipe, images, tmp_path / "out", CPU)
    seen: list[int] = []
    original = images.batch
    images.batch = lambda indices: (seen.extend(indices.tolist()), original(indices))[1]
    for n in range(10):
        trainer.batch(n)
    assert len(set(seen)) == 15
    trained = set(seen)
    seen.clear()
    first = trainer.validate()
    assert set(seen) == set(range(20)) - trained
    assert trainer.validate() is None
    trainer.counters.validation.clear()
    assert trainer.validate() == first


def test_a_validation_changes_no_bit_of_the_run(tmp_path, make_recipe, images):
    recipe = make_recipe("data", held_out=0.25)
    runs = [Trainer(recipe, images, tmp_path / name, CPU) for name in ("plain", "validated")]
    list(runs[0].run())
    list(runs[1].run(lambda: bool(runs[1].validate()) and False))
    assert len(runs[1].counters.validation) == 12
    assert_equal_runs(*runs)


def test_a_run_that_is_prolonged_keeps_its_warm_up(tmp_path, make_recipe, train):
    train(make_recipe(updates=20, warmup_updates=None), tmp_path / "out", only=3)
    longer = train(make_recipe(updates=40, warmup_updates=None), tmp_path / "out")
    assert longer.warmup_updates == 2


def test_a_run_without_classes_goes_on_from_states_of_older_versions(tmp_path, make_recipe, images):
    """They are known by the same hash."""
    trainer = Trainer(make_recipe(), images, tmp_path / "out", CPU)
    assert (
        trainer.counters.fingerprint
        == "358b03c90472e2d8b6cf6e955201709634b4850fa5855ec7ecaecdbdf6715f6e"
    )
