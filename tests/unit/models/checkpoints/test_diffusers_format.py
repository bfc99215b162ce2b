"""Model folders in diffusers' format: written, read back, exchanged with diffusers, refused."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.checkpoints import diffusers_format, layout, scheduler_config
from models.checkpoints.bad_checkpoint import BadCheckpoint
from models.checkpoints.catalog import ScheduleCard
from models.checkpoints.scheduler_config import Stated
from models.diffusion.plans import compile_plan
from models.diffusion.sampling import sample
from models.diffusion.schedule import Schedule
from models.networks.unet import UNet

OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def weights_of(folder: Path) -> Path:
    return folder / "unet" / layout.WEIGHTS


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder: Path, change) -> None:
    tensors = load_file(weights_of(folder))
    change(tensors)
    save_file(tensors, weights_of(folder))


def output(net) -> Tensor:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    out = net(x, torch.tensor([3, 987]))
    return out if isinstance(out, Tensor) else out.sample


@pytest.fixture
def theirs(small_config, randomise) -> UNet2DModel:
    return randomise(UNet2DModel(**small_config.to_diffusers())).eval().requires_grad_(False)


def test_a_folder_survives_being_saved_and_loaded(folder, small_net):
    loaded = diffusers_format.load(folder)
    saved = small_net.state_dict()
    assert all(torch.equal(v, saved[k]) for k, v in loaded.net.state_dict().items())
    assert not loaded.net.training
    assert torch.equal(loaded.schedule.beta, Schedule.linear().beta)
    assert loaded.prediction == "epsilon"


def test_the_weights_may_be_read_by_the_same_users_as_the_other_files(folder):
    assert len({path.stat().st_mode for path in folder.rglob("*.*") if path.is_file()}) == 1


def test_a_file_that_this_user_may_not_read_is_named(folder, monkeypatch):
    def refuse(path: Path) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    # The tests may run as root, who may read any file.
    monkeypatch.setattr(diffusers_format, "sha256_of", refuse)
    text = rf"{layout.WEIGHTS} cannot be read \(Permission denied\); give the user"
    with pytest.raises(BadCheckpoint, match=text):
        diffusers_format.load(folder)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(
    "card",
    [
        ScheduleCard(kind="cosine", T=500),
        ScheduleCard(kind="linear", T=100, beta_start=1e-3, beta_end=0.2),
        ScheduleCard(kind="scaled_linear", T=100, beta_start=1e-3, beta_end=0.2),
        ScheduleCard(kind="sigmoid", T=100, beta_start=1e-3, beta_end=0.2),
        ScheduleCard(kind="laplace", T=100),
    ],
)
def test_the_process_survives_being_saved_and_loaded(tmp_path, small_net, card, prediction):
    state = small_net.state_dict()
    sha256 = diffusers_format.save(tmp_path / "m", small_net.cfg, state, card, prediction)
    loaded = diffusers_format.load(tmp_path / "m", sha256)
    published = diffusers_format.describe(tmp_path / "m").published
    assert (published.card, published.process.prediction) == (card, prediction)
    torch.testing.assert_close(loaded.schedule.beta, scheduler_config.schedule_of(card).beta)
    theirs = DDPMScheduler.from_pretrained(tmp_path / "m", subfolder="scheduler")
    torch.testing.assert_close(theirs.betas.double(), loaded.schedule.beta, rtol=1e-5, atol=1e-8)
    assert theirs.config.prediction_type == prediction


@pytest.mark.parametrize("form", ["pipeline", "flat"])
def test_a_folder_that_diffusers_saved_is_loaded(tmp_path, theirs, form):
    scheduler = DDPMScheduler(variance_type="fixed_large")
    if form == "pipeline":
        DDPMPipeline(theirs, scheduler).save_pretrained(tmp_path)
    else:
        theirs.save_pretrained(tmp_path)
        scheduler.save_pretrained(tmp_path)
    loaded = diffusers_format.load(tmp_path)
    torch.testing.assert_close(output(loaded.net), output(theirs), rtol=0, atol=1e-5)
    assert diffusers_format.describe(tmp_path).published.variance == "fixed_large"


def test_a_network_without_a_scheduler_is_refused_until_its_process_is_stated(tmp_path, theirs):
    """A run's checkpoints have none, and a guess of linear and epsilon would draw noise."""
    theirs.save_pretrained(tmp_path)
    for stated in (Stated(), Stated(schedule="cosine"), Stated(prediction="sample")):
        with pytest.raises(
            BadCheckpoint, match=r"no scheduler/.*takes --schedule and --prediction"
        ):
            diffusers_format.load(tmp_path, stated=stated)
    loaded = diffusers_format.load(tmp_path, stated=Stated("cosine", 500, "sample"))
    assert torch.equal(loaded.schedule.beta, Schedule.cosine(500).beta)
    assert loaded.prediction == "sample"


def test_averaged_weights_are_taken_where_both_lie(tmp_path, theirs, randomise):
    """train_unconditional.py writes them to unet_ema/, with what the average has beside."""
    DDPMPipeline(theirs, DDPMScheduler()).save_pretrained(tmp_path)
    averaged = randomise(UNet2DModel.from_config(theirs.config), seed=1).eval()
    averaged.register_to_config(decay=0.9999, power=0.75, use_ema_warmup=True, optimization_step=9)
    averaged.save_pretrained(tmp_path / "unet_ema")
    described = diffusers_format.describe(tmp_path)
    assert described.weights.parent.name == "unet_ema"
    assert "unet_ema is used" in described.notes[0]
    assert "decay, optimization_step, power, use_ema_warmup" in described.notes[1]
    with torch.inference_mode():
        expected = output(averaged)
    torch.testing.assert_close(
        output(diffusers_format.load(tmp_path).net), expected, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"vqvae": ["diffusers", "VQModel"]}, "vqvae=.* its network makes latents"),
        ({"vae": ["diffusers", "AutoencoderKL"]}, "vae=.* its network makes latents"),
        ({"mel": ["diffusers", "Mel"]}, "mel=.* spectrograms"),
        ({"text_encoder": ["transformers", "CLIPTextModel"]}, "follows a text"),
        ({"novelty": ["x", "Y"]}, "novelty=.* only a unet and a scheduler are"),
        ({"unet": ["diffusers", "UNet2DConditionModel"]}, "only a UNet2DModel is"),
        ({"_class_name": "LDMPipeline"}, "_class_name='LDMPipeline': its network makes latents"),
        ({"_class_name": "LDMSuperResolutionPipeline"}, "enlarges a picture"),
        ({"_class_name": "ConsistencyModelPipeline"}, "consistency model"),
        ({"_class_name": "ScoreSdeVePipeline"}, "variance grow without bound"),
    ],
)
def test_a_pipeline_of_another_kind_is_refused_by_the_file_that_says_so(folder, changes, says):
    edit(folder / "model_index.json", **changes)
    with pytest.raises(BadCheckpoint, match=f"model_index.json: .*{says}"):
        diffusers_format.load(folder)


def test_a_network_beside_what_decodes_it_is_refused_without_an_index_too(folder):
    (folder / "model_index.json").unlink()
    (folder / "vqvae").mkdir()
    with pytest.raises(BadCheckpoint, match="vqvae is not served: its network makes latents"):
        diffusers_format.load(folder)


def test_a_network_inside_a_pipeline_is_led_to_the_scheduler_above(folder):
    with pytest.raises(BadCheckpoint, match=r"scheduler_config.json may: give the folder above\."):
        diffusers_format.load(folder / "unet")


def test_four_channels_are_taken_for_alpha_and_that_is_said(tmp_path, small_config):
    cfg = replace(small_config, in_channels=4, out_channels=4)
    card = ScheduleCard(kind="cosine", T=20)
    diffusers_format.save(tmp_path / "m", cfg, UNet(cfg).state_dict(), card, "epsilon")
    assert (
        "in_channels=4: taken for RGB with alpha" in diffusers_format.describe(tmp_path / "m").notes
    )


def test_a_part_that_a_pipeline_lacks_is_none(folder):
    edit(folder / "model_index.json", vae=[None, None])
    diffusers_format.load(folder)


def test_a_learned_variance_is_named_by_the_scheduler_and_returned_by_the_network(
    tmp_path, small_config
):
    cfg = replace(small_config, out_channels=6)
    state = UNet(cfg).state_dict()
    card = ScheduleCard(kind="cosine", T=20)
    diffusers_format.save(tmp_path / "m", cfg, state, card, "epsilon")
    process = tmp_path / "m" / "scheduler" / "scheduler_config.json"
    with pytest.raises(BadCheckpoint, match=r"out_channels=6 are twice in_channels.*learned_range"):
        diffusers_format.load(tmp_path / "m")
    edit(process, variance_type="learned_range")
    assert diffusers_format.load(tmp_path / "m").process.learned_variance == "learned_range"
    edit(tmp_path / "m" / "unet" / "config.json", out_channels=3)
    with pytest.raises(BadCheckpoint, match="no room for the scheduler's variance_type='learned_r"):
        diffusers_format.load(tmp_path / "m")


def test_the_old_names_of_attention_are_read_too(folder, small_net):
    def rename(tensors: dict[str, Tensor]) -> None:
        for name in [n for n in tensors if ".attentions." in n]:
            old = name
            for new_part, old_part in OLD_NAMES.items():
                old = old.replace(f".{new_part}.", f".{old_part}.")
            tensors[old] = tensors.pop(name)

    change_weights(folder, rename)
    assert any("query" in name for name in load_file(weights_of(folder)))
    loaded = diffusers_format.load(folder).net
    torch.testing.assert_close(output(loaded), output(small_net), rtol=0, atol=0)


def test_half_precision_weights_are_loaded_as_float32(folder, small_net):
    def halve(tensors: dict[str, Tensor]) -> None:
        tensors.update({k: v.half() for k, v in tensors.items()})

    change_weights(folder, halve)
    loaded = diffusers_format.load(folder).net
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    torch.testing.assert_close(output(loaded), output(small_net), rtol=0, atol=0.05)


@pytest.mark.parametrize("K", [10, 107])
def test_our_folder_samples_in_diffusers_pipeline_as_it_does_here(folder, noise_of, monkeypatch, K):
    """K = 107 is one of the numbers of steps with a timestep halfway between two integers."""
    noise = torch.randn(K + 1, 2, 3, 8, 8)
    noise_of(lambda draw: noise[draw])
    loaded = diffusers_format.load(folder)
    ours = sample(loaded.net, compile_plan(loaded.schedule, K), 0, [0, 1], (3, 8, 8))

    draws = iter(noise)
    for module in ("pipelines.ddpm.pipeline_ddpm", "schedulers.scheduling_ddpm"):
        monkeypatch.setattr(f"diffusers.{module}.randn_tensor", lambda *_, **__: next(draws))
    pipeline = DDPMPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(batch_size=2, num_inference_steps=K, output_type="pt").images
    torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), theirs, rtol=0, atol=1e-3)
    assert ours.std() > 0.1


def fault(folder: Path, kind: str) -> None:
    config = folder / "unet" / "config.json"
    scheduler = folder / "scheduler" / "scheduler_config.json"
    name = "mid_block.attentions.0.to_q.weight"
    match kind:
        case "no folder":
            shutil.rmtree(folder)
        case "pickle only":
            weights_of(folder).rename(folder / "unet" / "diffusion_pytorch_model.bin")
        case "missing key":
            change_weights(folder, lambda t: t.pop(name))
        case "extra key":
            change_weights(folder, lambda t: t.update(surplus=torch.zeros(1)))
        case "wrong shape":
            change_weights(folder, lambda t: t.update({name: torch.zeros(3, 5)}))
        case "NaN":
            change_weights(folder, lambda t: t[name].view(-1)[7:8].fill_(float("nan")))
        case "infinite in float32":
            change_weights(folder, lambda t: t.update({name: t[name].double() * 1e300}))
        case "fp8":
            change_weights(folder, lambda t: t.update({name: t[name].to(torch.float8_e4m3fn)}))
        case "complex":
            change_weights(folder, lambda t: t.update({name: t[name].to(torch.complex64)}))
        case "two names":
            other = name.replace("to_q", "query")
            change_weights(folder, lambda t: t.update({other: t[name].clone()}))
        case "too large for any memory":
            edit(config, block_out_channels=[4096, 8192])
        case "truncated":
            weights_of(folder).write_bytes(weights_of(folder).read_bytes()[:-100])
        case "empty":
            weights_of(folder).write_bytes(b"")
        case "not safetensors":
            weights_of(folder).write_bytes(b"\x80\x04" * 500)
        case "config is garbage":
            config.write_text('{"sample_size": 8,')
        case "config is binary":
            config.write_bytes(b"\xff\xfe\x00")
        case "config is a list":
            config.write_text("[1, 2]")
        case "config nests too deeply":
            config.write_text("[" * 100_000)
        case "config has an endless number":
            config.write_text('{"sample_size": ' + "8" * 5000 + "}")
        case "unknown key":
            edit(config, mystery=3)
        case "not halved":
            edit(config, sample_size=[8, 9])
        case "wrong type":
            edit(config, layers_per_block="many")
        case "scheduler is garbage":
            scheduler.write_text("nope")
        case "trained betas":
            edit(scheduler, trained_betas=[0.1, 0.2])
        case "unknown schedule":
            edit(scheduler, beta_schedule="exp")
        case "unknown prediction":
            edit(scheduler, prediction_type="velocity")
        case "wide clip":
            edit(scheduler, clip_sample_range=-2.0)
        case "zero snr":
            edit(scheduler, rescale_betas_zero_snr=True)
        case "T is text":
            edit(scheduler, num_train_timesteps="thousand")
        case "beta beyond 1":
            edit(scheduler, beta_end=1.5)


@pytest.mark.parametrize(
    ("kind", "file", "says"),
    [
        ("no folder", "model", "holds no unet/config.json.*give a folder"),
        (
            "pickle only",
            "unet",
            "holds no diffusion_pytorch_model.safetensors; `ddpm models add` reads other",
        ),
        (
            "missing key",
            layout.WEIGHTS,
            r"mid_block\.attentions\.0\.to_q\.weight is missing; config.json",
        ),
        ("extra key", layout.WEIGHTS, "surplus belongs to no layer"),
        (
            "wrong shape",
            layout.WEIGHTS,
            r"to_q\.weight has shape \[3, 5\], config.json asks for \[32, 32\]",
        ),
        (
            "NaN",
            layout.WEIGHTS,
            r"to_q\.weight holds NaN or infinity in float32; the training diverged",
        ),
        (
            "infinite in float32",
            layout.WEIGHTS,
            r"to_q\.weight holds NaN or infinity in float32",
        ),
        (
            "fp8",
            layout.WEIGHTS,
            r"to_q\.weight is of type F8_E4M3; convert it to one of F64, F32, F16, BF16",
        ),
        ("complex", layout.WEIGHTS, r"to_q\.weight is of type C64; convert it"),
        (
            "two names",
            layout.WEIGHTS,
            r"0\.(query|to_q)\.weight and .*0\.(query|to_q)\.weight are names of one layer; remove",
        ),
        ("too large for any memory", layout.WEIGHTS, "has shape .* config.json asks for"),
        (
            "truncated",
            layout.WEIGHTS,
            "is not a safetensors file.*download or save it again",
        ),
        ("empty", layout.WEIGHTS, "is not a safetensors file"),
        ("not safetensors", layout.WEIGHTS, "is not a safetensors file"),
        ("config is garbage", "unet/config.json", "is not JSON"),
        ("config is binary", "unet/config.json", "is not JSON"),
        ("config is a list", "unet/config.json", "holds a list, not an object"),
        ("config nests too deeply", "unet/config.json", "is not JSON that can be read .*recursion"),
        (
            "config has an endless number",
            "unet/config.json",
            "is not JSON that can be read .*5000 digits",
        ),
        ("unknown key", "unet/config.json", "unknown key mystery=3; remove it or convert"),
        ("not halved", "unet/config.json", r"sample_size=\(8, 9\) cannot be halved 1 times"),
        ("wrong type", "unet/config.json", "layers_per_block='many'"),
        ("scheduler is garbage", "scheduler/scheduler_config.json", "is not JSON"),
        (
            "trained betas",
            "scheduler/scheduler_config.json",
            r"trained_betas=\[0\.1, 0\.2\] holds 2 numbers where num_train_timesteps is 1000",
        ),
        (
            "unknown schedule",
            "scheduler/scheduler_config.json",
            "beta_schedule='exp'.*use linear, scaled_linear, squaredcos_cap_v2, sigmoid, laplace",
        ),
        (
            "unknown prediction",
            "scheduler/scheduler_config.json",
            "prediction_type='velocity'.*use epsilon",
        ),
        (
            "wide clip",
            "scheduler/scheduler_config.json",
            r"clip_sample_range=-2\.0 is not from 1e-06",
        ),
        (
            "zero snr",
            "scheduler/scheduler_config.json",
            "rescale_betas_zero_snr=True leaves nothing but noise.*epsilon says nothing",
        ),
        ("T is text", "scheduler/scheduler_config.json", "num_train_timesteps='thousand'"),
        ("beta beyond 1", "scheduler/scheduler_config.json", r"beta_end=1\.5"),
    ],
)
def test_a_bad_folder_is_refused_with_file_key_and_remedy(folder, kind, file, says):
    fault(folder, kind)
    with pytest.raises(BadCheckpoint, match=says) as error:
        diffusers_format.load(folder)
    assert file in str(error.value)


def test_weights_that_are_not_the_cards_are_refused(folder):
    text = rf"{layout.WEIGHTS} has sha256 [0-9a-f]{{64}}, its card says {'0' * 64}; rest"
    with pytest.raises(BadCheckpoint, match=text):
        diffusers_format.load(folder, "0" * 64)
