"""`ddpm models add` and the table of `ddpm models`."""

from __future__ import annotations

import errno
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from cli.commands.first_look import Draft, draft_of
from cli.main import app
from models.checkpoints import diffusers_format
from models.checkpoints.added.kept import kept_models
from models.checkpoints.card import make_card
from models.checkpoints.catalog import (
    Catalog,
    ClassesCard,
    DataCard,
    Defaults,
    ScheduleCard,
    Timesteps,
    sha256_of,
    write_card,
)
from models.checkpoints.diffusers_format import WEIGHTS
from models.checkpoints.residual_variance import FILE, ResidualVariance
from models.networks.unet import UNet
from tests.support.cards import card_of
from tests.support.networks import TINY, without_zeros
from tests.support.trainers.denoising_diffusion_pytorch import (
    GaussianDiffusion,
    Unet,
    trainers_file,
)
from worker.settings import WorkerSettings


@pytest.fixture(autouse=True)
def models_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DDPM_MODELS_DIR", str(tmp_path / "added"))
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path / "added"


def ddpm(*words: object) -> Result:
    """Run the command. What is added is not drawn unless a test says `--draw`."""
    said = list(map(str, words))
    if said[:2] == ["models", "add"] and "--draw" not in said:
        said.append("--no-draw")
    return CliRunner().invoke(app, [word for word in said if word != "--draw"])


def test_an_added_model_is_listed_and_complete(tiny_model: Path, models_dir: Path) -> None:
    (tiny_model / "state.safetensors").write_bytes(b"what training left behind")
    weights = sha256_of(tiny_model / "unet" / WEIGHTS)
    estimate = ResidualVariance(
        weights=weights, data="noise", images=1, seed=0, values=(0.5,) * 20
    ).write(tiny_model)
    options = "--name tiny --licence MIT --data-name noise --default"
    added = ddpm("models", "add", tiny_model, *options.split())
    assert added.exit_code == 0, added.stderr
    catalog = Catalog.read(models_dir)
    card = catalog.default
    assert (card.name, card.data.name, card.licence) == ("tiny", "noise", "MIT")
    assert not (catalog.folder("tiny") / "state.safetensors").exists()
    assert sha256_of(catalog.folder("tiny") / FILE) == catalog["tiny"].residual_variance == estimate
    assert "1x8x8" in ddpm("models").stdout
    assert [path.name for path in models_dir.iterdir()] == ["tiny"]


def test_an_added_default_model_is_the_only_default(tiny_model: Path, models_dir: Path) -> None:
    """Check all cards, because the last default in the alphabet would win."""
    ddpm("models", "add", tiny_model, "--name", "z", "--default")
    ddpm("models", "add", tiny_model, "--name", "b")
    assert Catalog.read(models_dir).default.name == "z"
    added = ddpm("models", "add", tiny_model, "--name", "a", "--default")
    assert f"added a to {models_dir} as the default instead of z; running" in added.stdout
    assert [(card.name, card.default) for card in Catalog.read(models_dir).values()] == [
        ("a", True),
        ("b", False),
        ("z", False),
    ]


def test_a_card_that_cannot_be_read_is_named_before_another_becomes_the_default(
    tiny_model: Path, models_dir: Path
) -> None:
    (models_dir / "broken").mkdir(parents=True)
    (models_dir / "broken" / "card.json").write_text("{")
    added = ddpm("models", "add", tiny_model, "--name", "tiny", "--default")
    assert (added.exit_code, str(models_dir / "broken" / "card.json") in added.stderr) == (1, True)
    assert [path.name for path in models_dir.iterdir()] == ["broken"]


def test_a_name_that_is_taken_is_refused(tiny_model: Path) -> None:
    ddpm("models", "add", tiny_model, "--name", "tiny")
    again = ddpm("models", "add", tiny_model, "--name", "tiny")
    assert (again.exit_code, "choose another --name" in again.stderr) == (1, True)


def test_a_name_that_could_leave_the_folder_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    result = ddpm("models", "add", tiny_model, "--name", "../tiny")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert not (tmp_path / "tiny").exists()


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    result = ddpm("models", "add", tmp_path, "--name", "tiny")
    assert (result.exit_code, str(tmp_path) in result.stderr) == (1, True)


@pytest.fixture
def trained(tiny_model: Path) -> Path:
    """A folder with a card, as `ddpm train` leaves it."""
    card = make_card(
        tiny_model,
        "run-7",
        data=DataCard(name="noise", licence="CC0-1.0", images=9),
        licence="MIT",
        provenance="trained here",
        defaults=Defaults(sampler="ddim", steps=5, eta=0.5),
    )
    write_card(tiny_model, card)
    return tiny_model


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], DataCard(name="noise", licence="CC0-1.0", images=9)),
        (["--data-licence", "MIT"], DataCard(name="noise", licence="MIT", images=9)),
        (["--data-name", "other"], DataCard(name="other", licence="unknown")),
    ],
    ids=["none", "data-licence", "data-name"],
)
def test_the_card_of_a_trained_model_holds_where_no_option_says_otherwise(
    trained: Path, models_dir: Path, options: list[str], expected: DataCard
) -> None:
    added = ddpm("models", "add", trained, "--name", "tiny", "--licence", "Apache-2.0", *options)
    assert (added.exit_code, added.stderr) == (0, "")
    card = Catalog.read(models_dir)["tiny"]
    assert (card.name, card.licence, card.provenance) == ("tiny", "Apache-2.0", "trained here")
    assert card.defaults == Defaults(sampler="ddim", steps=5, eta=0.5)
    assert card.data == expected


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"sha256": "0" * 64}, "card.json is of other weights"), ({"mystery": 1}, "mystery")],
)
def test_a_card_that_does_not_fit_is_reported_and_not_used(
    trained: Path, models_dir: Path, changes: dict[str, object], reason: str
) -> None:
    (trained / "card.json").write_text(
        json.dumps(json.loads((trained / "card.json").read_text()) | changes)
    )
    added = ddpm("models", "add", trained, "--name", "tiny")
    assert added.exit_code == 0
    assert added.stderr.startswith("not taken: ")
    assert reason in added.stderr
    card = Catalog.read(models_dir)["tiny"]
    assert (card.licence, card.data.name, card.defaults.steps) == ("unknown", "unknown", 20)


@pytest.mark.parametrize("below", [".", "deeper"])
def test_a_models_dir_that_cannot_be_made_is_named_with_the_variable(
    tiny_model: Path, models_dir: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    models_dir.write_text("a file")
    monkeypatch.setenv("DDPM_MODELS_DIR", str(models_dir / below))
    added = ddpm("models", "add", tiny_model, "--name", "tiny")
    assert (added.exit_code, added.stderr.count("\n")) == (1, 1)
    assert f"cannot be added to {models_dir}" in added.stderr
    assert "DDPM_MODELS_DIR" in added.stderr


def test_a_full_disk_leaves_no_partial_model(
    tiny_model: Path, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("cli.commands.models.write_card", refuse)
    added = ddpm("models", "add", tiny_model, "--name", "tiny")
    assert (added.exit_code, added.stderr.count("\n")) == (1, 1)
    assert "(No space left on device); correct that" in added.stderr
    assert not models_dir.exists()


@pytest.fixture
def bare_model(tiny_model: Path) -> Path:
    """A run's checkpoint: raw and averaged weights, and no scheduler."""
    shutil.copytree(tiny_model / "unet", tiny_model / "unet_ema")
    config = tiny_model / "unet_ema" / "config.json"
    ema = {"decay": 0.9999, "power": 0.75, "sample_size": None}
    config.write_text(json.dumps(json.loads(config.read_text()) | ema))
    shutil.rmtree(tiny_model / "scheduler")
    return tiny_model


def test_a_checkpoint_of_a_run_is_added_once_its_process_and_size_are_stated(
    bare_model: Path, models_dir: Path
) -> None:
    add = ("models", "add", bare_model, "--name", "bare")
    assert "sample_size=None; give" in ddpm(*add).stderr
    assert "holds no scheduler/scheduler_config.json" in ddpm(*add, "--size", "8").stderr
    stated = ("--schedule", "cosine", "--prediction", "sample", "--timesteps", "50")
    added = ddpm(*add, *stated, "--size", "8x8")
    assert added.exit_code == 0, added.stderr
    assert "unet_ema is used, and unet is not" in added.stdout
    assert "of no effect in config.json: decay, power" in added.stdout
    card = Catalog.read(models_dir)["bare"]
    assert (card.schedule.kind, card.schedule.T, card.prediction) == ("cosine", 50, "sample")
    loaded = diffusers_format.load(models_dir / "bare", card.sha256)
    assert (loaded.schedule.T, loaded.prediction) == (50, "sample")
    assert loaded.net.cfg.sample_size == 8


def test_the_published_timesteps_are_taken_when_asked_for(
    tiny_model: Path, models_dir: Path
) -> None:
    scheduler = tiny_model / "scheduler" / "scheduler_config.json"
    changes = {"timestep_spacing": "leading", "steps_offset": 1, "variance_type": "fixed_large"}
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | changes))
    ddpm("models", "add", tiny_model, "--name", "as-usual")
    ddpm("models", "add", tiny_model, "--name", "published", "--published-timesteps")
    catalog = Catalog.read(models_dir)
    assert catalog["as-usual"].timesteps == Timesteps()
    card = catalog["published"]
    assert card.timesteps == Timesteps(spacing="leading", offset=1)
    assert (card.defaults.steps, card.defaults.variance) == (19, "fixed_large")


@pytest.mark.parametrize("size", ["x", "8x", "0x8", "8x8x8", "-8", "9999999999"])
def test_a_size_that_is_none_is_refused(bare_model: Path, size: str) -> None:
    stated = ("--schedule", "cosine", "--prediction", "sample")
    result = ddpm("models", "add", bare_model, "--name", "bare", *stated, f"--size={size}")
    assert result.exit_code == 1
    assert "size" in result.stderr


@pytest.fixture
def conditional_model(tiny_model: Path) -> Path:
    """A model of ten classes and a row that means none, which no file says."""
    config = replace(TINY, num_class_embeds=11)
    linear = ScheduleCard(kind="linear", T=20)
    diffusers_format.save(tiny_model, config, UNet(config).state_dict(), linear, "epsilon")
    return tiny_model


def test_every_row_is_a_class_unless_one_is_said_to_mean_none(
    conditional_model: Path, models_dir: Path
) -> None:
    added = ddpm("models", "add", conditional_model, "--name", "all")
    assert Catalog.read(models_dir)["all"].classes == ClassesCard(count=11)
    assert "perhaps the last one does, and --null-class 10 says so" in added.stdout
    added = ddpm("models", "add", conditional_model, "--name", "guided", "--null-class", "10")
    assert Catalog.read(models_dir)["guided"].classes == ClassesCard(count=10, null=10)
    assert "row 10 means no class" in added.stdout


@pytest.mark.parametrize("as_file", [True, False])
def test_labels_are_named_by_a_file_or_by_the_option(
    conditional_model: Path, models_dir: Path, tmp_path: Path, as_file: bool
) -> None:
    names = tuple(f"class {i}" for i in range(10))
    given = ", ".join(names)
    if as_file:
        (tmp_path / "names.txt").write_text("\n".join(names) + "\n")
        given = str(tmp_path / "names.txt")
    options = ("--label-names", given, "--null-class", "10")
    added = ddpm("models", "add", conditional_model, "--name", "named", *options)
    assert added.exit_code == 0, added.stderr
    expected = ClassesCard(count=10, names=names, null=10)
    assert Catalog.read(models_dir)["named"].classes == expected
    assert "10 classes named class 0, class 1," in added.stdout
    ddpm("models", "add", models_dir / "named", "--name", "again")
    assert Catalog.read(models_dir)["again"].classes == expected


def test_a_conditional_model_is_checked_with_a_label(
    conditional_model: Path, models_dir: Path
) -> None:
    ddpm("models", "add", conditional_model, "--name", "tiny", "--null-class", "10")
    assert ddpm("models", "check", "tiny").stdout == "tiny: can be served\n"
    assert '"null": 10' in ddpm("models", "show", "tiny").stdout


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--label-names", "a,b"], "11 classes have 2 names; give as many"),
        (["--label-names", "a,b,c,d,e,f,g,h,i,j"], "perhaps a row means no class.*--null-class 10"),
        (["--null-class", "11"], "--null-class 11 is none of the 11 rows.*give 0 to 10"),
        (["--label-names", "a,b,c,d,e,f,g,h,i,j,a"], "'a' stands twice"),
        (["--label-names", "a,b,c,d,e,f,g,h,i,j,"], r"names\.10=''"),
    ],
)
def test_classes_that_do_not_fit_the_network_are_refused(
    conditional_model: Path, models_dir: Path, options: list[str], reason: str
) -> None:
    result = ddpm("models", "add", conditional_model, "--name", "tiny", *options)
    assert result.exit_code == 1
    assert re.search(reason, " ".join(result.stderr.split())), result.stderr
    assert not (models_dir / "tiny").exists()


def test_labels_of_an_unconditional_model_are_refused(tiny_model: Path) -> None:
    result = ddpm("models", "add", tiny_model, "--name", "tiny", "--null-class", "0")
    assert result.exit_code == 1
    assert "takes no class labels" in result.stderr


def test_a_file_of_names_that_is_no_text_is_refused(conditional_model: Path) -> None:
    weights = conditional_model / "unet" / "diffusion_pytorch_model.safetensors"
    result = ddpm("models", "add", conditional_model, "--name", "x", "--label-names", weights)
    assert result.exit_code == 1
    assert "give a text file of one name a line" in " ".join(result.stderr.split())


def scheduler_of(folder: Path, **changes: object) -> None:
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "sampler", "steps"),
    [
        ({"_class_name": "DDIMScheduler", "num_train_timesteps": 1000}, "ddim", 50),
        ({"_class_name": "DPMSolverMultistepScheduler"}, "dpmpp_2m", 20),
        ({"num_train_timesteps": 100_000, "beta_end": 2e-4}, "ddpm", 1000),
    ],
)
def test_jobs_sample_as_it_was_published_within_reason(
    tiny_model: Path, models_dir: Path, changes: dict[str, object], sampler: str, steps: int
) -> None:
    scheduler_of(tiny_model, **changes)
    added = ddpm("models", "add", tiny_model, "--name", "tiny")
    assert added.exit_code == 0, added.stderr
    defaults = Catalog.read(models_dir)["tiny"].defaults
    assert (defaults.sampler, defaults.steps) == (sampler, steps)
    assert f"assumed: steps={steps} of T=" in added.stdout


def test_defaults_that_are_asked_for_are_those_of_jobs(tiny_model: Path, models_dir: Path) -> None:
    asked = "--sampler ddim --steps 7 --eta 0.5 --variance fixed_large --clip none"
    ddpm("models", "add", tiny_model, "--name", "tiny", *asked.split())
    expected = Defaults(sampler="ddim", steps=7, eta=0.5, variance="fixed_large")
    assert Catalog.read(models_dir)["tiny"].defaults == expected
    assert not diffusers_format.load(models_dir / "tiny").process.clipping.limits


@pytest.mark.parametrize("words", [["--steps", "21"], ["--clip", "nan"], ["--variance", "learned"]])
def test_defaults_that_no_job_could_have_are_refused(
    tiny_model: Path, models_dir: Path, words: list[str]
) -> None:
    refused = ddpm("models", "add", tiny_model, "--name", "tiny", *words)
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert not models_dir.exists()


def test_the_report_says_what_was_found_assumed_and_ignored(tiny_model: Path) -> None:
    path = tiny_model / "scheduler" / "scheduler_config.json"
    content = json.loads(path.read_text())
    del content["prediction_type"]
    path.write_text(json.dumps(content | {"solver_order": 2}))
    (tiny_model / "optimizer.bin").write_bytes(b"x")
    said = ddpm("models", "add", tiny_model).stdout
    assert said.startswith("added elsewhere to ")
    assert "found: schedule linear, T=20, the network predicts epsilon" in said
    assert "GFLOP" in said
    assert "assumed: prediction_type=epsilon, as the scheduler's file leaves it out" in said
    assert "of the solver alone in scheduler_config.json: solver_order" in said
    assert "ignored: optimizer.bin" in said


def test_a_fault_of_a_converted_file_names_the_file_that_was_given(tiny_model: Path) -> None:
    weights = tiny_model / "unet" / WEIGHTS
    weights.rename(weights.with_name("model.safetensors"))
    config = tiny_model / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"layers_per_block": 2}))
    refused = ddpm("models", "add", tiny_model, "--name", "tiny")
    assert str(tiny_model / "unet" / "model.safetensors") in refused.stderr
    assert ".adding-" not in refused.stderr


def test_a_model_is_shown_checked_and_removed(tiny_model: Path, models_dir: Path) -> None:
    ddpm("models", "add", tiny_model, "--name", "tiny")
    assert json.loads(ddpm("models", "show", "tiny").stdout)["name"] == "tiny"
    assert ddpm("models", "check", "tiny").stdout == "tiny: can be served\n"
    assert ddpm("models", "remove", "tiny", "--force").exit_code == 0
    assert list(models_dir.iterdir()) == []
    assert "there is no model 'tiny'" in ddpm("models", "remove", "tiny").stderr


def test_a_damaged_model_is_found_by_a_check(tiny_model: Path, models_dir: Path) -> None:
    ddpm("models", "add", tiny_model, "--name", "tiny")
    weights = models_dir / "tiny" / "unet" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    checked = ddpm("models", "check", "tiny")
    assert (checked.exit_code, "its card says" in checked.stdout) == (1, True)


def test_the_shipped_and_the_default_model_stay(tiny_model: Path) -> None:
    ddpm("models", "add", tiny_model, "--name", "tiny", "--default")
    assert "tiny is the default" in ddpm("models", "remove", "tiny").stderr
    assert "shipped with the package" in ddpm("models", "remove", "fashion-mnist-28").stderr


def test_a_removed_model_is_kept_for_the_jobs_that_need_it(
    tiny_model: Path, models_dir: Path
) -> None:
    ddpm("models", "add", tiny_model, "--name", "tiny")
    removed = ddpm("models", "remove", "tiny")
    assert "accepted jobs of it end first" in removed.stdout
    assert [card.name for card in kept_models([models_dir]).values()] == ["tiny"]
    assert "tiny" not in ddpm("models").stdout


def test_a_model_is_replaced_only_when_that_is_said(tiny_model: Path, models_dir: Path) -> None:
    ddpm("models", "add", tiny_model, "--name", "tiny", "--default", "--licence", "MIT")
    again = ("models", "add", tiny_model, "--name", "tiny", "--licence", "CC0-1.0")
    assert "say --replace" in ddpm(*again).stderr
    replaced = ddpm(*again, "--replace")
    assert (replaced.exit_code, replaced.stderr) == (0, "")
    assert "accepted before keep the weights" in replaced.stdout
    card = Catalog.read(models_dir)["tiny"]
    assert (card.licence, card.default) == ("CC0-1.0", True)
    (kept,) = kept_models([models_dir]).values()
    assert kept.licence == "MIT"


def test_scratch_folders_of_a_killed_add_go_with_the_next(
    tiny_model: Path, models_dir: Path
) -> None:
    (models_dir / ".adding-abc" / "tiny").mkdir(parents=True)
    ddpm("models", "add", tiny_model, "--name", "tiny")
    assert [path.name for path in models_dir.iterdir()] == ["tiny"]


def test_an_added_model_is_measured_and_drawn(
    tiny_model: Path, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DDPM_CACHE_DIR", str(WorkerSettings().cache_dir))
    monkeypatch.setenv("DDPM_DEVICE", "cpu")
    added = ddpm(
        "models", "add", tiny_model, "--name", "tiny", "--draw", "--steps", "2", "--sampler", "ddim"
    )
    assert (added.exit_code, added.stderr) == (0, "")
    assert re.search(
        r"measured: an image-step takes \S+ s alone and \S+ s in a batch", added.stdout
    )
    assert "drawn: 16 images by ddim in 2 steps" in added.stdout
    with Image.open(models_dir / "tiny" / "samples.png") as sheet:
        assert sheet.size == (32, 32)
    assert str(models_dir / "tiny" / "samples.png") in ddpm("models", "show", "tiny").stderr


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (torch.OutOfMemoryError("out of memory"), "not drawn: out of memory"),
        (KeyboardInterrupt(), "not drawn: interrupted"),
    ],
)
def test_a_draw_that_fails_leaves_the_model_added(
    tiny_model: Path, models_dir: Path, monkeypatch: pytest.MonkeyPatch, error, says: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("cli.commands.first_look.tune", fail)
    added = ddpm("models", "add", tiny_model, "--name", "tiny", "--draw")
    assert (added.exit_code, says in added.stdout) == (0, True)
    assert "tiny" in Catalog.read(models_dir)


@pytest.mark.parametrize(
    ("seconds", "draft"),
    [
        ({1: 0.001, 16: 0.01}, Draft(16, "ddpm", 1000)),
        ({1: 0.01, 16: 0.05}, Draft(16, "ddpm", 300)),
        ({1: 0.5, 16: 6.0}, Draft(1, "ddim", 50)),
        ({1: 4.0}, None),
    ],
)
def test_the_sheet_is_what_half_a_minute_allows(seconds: dict[int, float], draft) -> None:
    steps = 300 if draft and draft.steps == 300 else 1000
    assert draft_of(card_of("m", defaults=Defaults(steps=steps)), seconds) == draft


def test_the_file_of_another_trainer_becomes_a_model_like_any_other(
    tmp_path: Path, models_dir: Path
) -> None:
    torch.manual_seed(1)
    diffusion = GaussianDiffusion(without_zeros(Unet(16, dim_mults=(1, 2))), timesteps=25)
    torch.save(trainers_file(diffusion, diffusion), tmp_path / "model-20.pt")
    unsized = ddpm("models", "add", tmp_path / "model-20.pt", "--name", "lucid")
    assert "model-20.pt: sample_size=None; give the image's side" in unsized.stderr
    assert "takes --size" in unsized.stderr
    added = ddpm("models", "add", tmp_path / "model-20.pt", "--name", "lucid", "--size", "8")
    assert added.exit_code == 0, added.stderr
    assert "found: by its loss_weight the network predicts v_prediction" in added.stdout
    assert "assumed: auto_normalize=True" in added.stdout
    card = Catalog.read(models_dir)["lucid"]
    assert (card.shape.height, card.schedule.T, card.prediction) == (8, 25, "v_prediction")
    assert card.gflop_per_image_step > 0
    checked = ddpm("models", "check", "lucid")
    assert checked.exit_code == 0, checked.stderr
    training = ddpm("train", "--from", "lucid", "--data", tmp_path, "--out", tmp_path / "run")
    assert (
        "lucid cannot be trained on: its network is of the family LinearAttentionUNet, and a"
        " recipe's [network] describes a UNet2DModel; name another model"
    ) in training.stderr
    assert not (tmp_path / "run").exists()
