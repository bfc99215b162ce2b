"""The process that a scheduler of diffusers describes."""

from __future__ import annotations

import inspect
import json
import math

import diffusers
import pytest
import torch
from diffusers import HeunDiscreteScheduler, PNDMScheduler

from models.checkpoints.bad_checkpoint import BadCheckpoint
from models.checkpoints.scheduler_config import SCHEDULERS, Published, Stated, read_scheduler
from models.diffusion.options import CLIPPED, UNCLIPPED, Clipping


@pytest.fixture
def read(tmp_path):
    def of(stated: Stated | None = None, **config: object) -> Published:
        (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
        return read_scheduler(tmp_path, stated or Stated())

    return of


@pytest.mark.parametrize("scheduler", [HeunDiscreteScheduler, PNDMScheduler])
def test_absent_keys_mean_the_schedulers_defaults(read, scheduler):
    published = read(_class_name=scheduler.__name__)
    card = published.card
    names = ("num_train_timesteps", "beta_start", "beta_end", "prediction_type")
    theirs = inspect.signature(scheduler).parameters
    defaults = tuple(theirs[name].default for name in names)
    found = (card.T, card.beta_start, card.beta_end, published.process.prediction)
    assert found == defaults


# diffusers warns with NumPy 2
@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_file_that_each_scheduler_saves_is_read(tmp_path, name):
    try:
        theirs = getattr(diffusers, name)()
    except ImportError as error:
        pytest.skip(f"diffusers needs more for it: {str(error).strip()}")
    theirs.save_pretrained(tmp_path)
    published = read_scheduler(tmp_path)
    ours = published.process.schedule.beta
    torch.testing.assert_close(theirs.betas.double(), ours, rtol=1e-5, atol=1e-8)
    assert published.process.prediction == theirs.config.prediction_type
    assert published.process.clipping.limits == theirs.config.get("clip_sample", False)
    spacing = theirs.config.get("timestep_spacing", published.spacing)
    assert (published.spacing, published.offset) == (spacing, theirs.config.get("steps_offset", 0))


@pytest.mark.parametrize("scheduler", ["DDPMScheduler", "PNDMScheduler", "UniPCMultistepScheduler"])
def test_clip_sample_means_the_same_for_every_scheduler(read, scheduler):
    for clips in (True, False):
        clipping = read(_class_name=scheduler, clip_sample=clips).process.clipping
        assert clipping == (CLIPPED if clips else UNCLIPPED)
    wide = read(_class_name=scheduler, clip_sample=True, clip_sample_range=2.5)
    assert wide.process.clipping == Clipping(2.5)


def test_thresholding_comes_before_clipping_as_in_diffusers(read):
    published = read(
        thresholding=True,
        clip_sample=True,
        dynamic_thresholding_ratio=0.9,
        sample_max_value=3.0,
    )
    assert published.process.clipping == Clipping(math.inf, 0.9, 3.0)


@pytest.mark.parametrize(
    ("named", "variance", "learned"),
    [
        ("fixed_small", "fixed_small", None),
        ("fixed_small_log", "fixed_small", None),
        ("fixed_large", "fixed_large", None),
        ("fixed_large_log", "fixed_large", None),
        ("learned", "learned", "learned"),
        ("learned_range", "learned", "learned_range"),
        (None, "fixed_small", None),
    ],
)
def test_every_variance_type_is_read(read, named, variance, learned):
    published = read(variance_type=named)
    assert (published.variance, published.process.learned_variance) == (variance, learned)


def test_old_files_say_by_predict_epsilon_what_is_predicted(read):
    assert read(predict_epsilon=True).process.prediction == "epsilon"
    assert read(predict_epsilon=False).process.prediction == "sample"
    with pytest.raises(BadCheckpoint, match=r"predict_epsilon=False contradicts .*'epsilon'"):
        read(predict_epsilon=False, prediction_type="epsilon")


def test_trained_betas_are_the_schedule(read):
    published = read(trained_betas=[0.1, 0.2, 0.4], num_train_timesteps=3, beta_schedule="linear")
    assert published.process.schedule.beta.tolist() == [0.1, 0.2, 0.4]
    assert (published.card.kind, published.card.beta_start) == ("trained", None)


def test_zero_terminal_snr_is_kept_for_what_can_be_sampled_with_it(read):
    published = read(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    assert published.card.zero_snr
    assert float(published.process.schedule.alpha_bar[-1]) == 0


def test_keys_of_the_solver_are_passed_over_by_name(read):
    published = read(_class_name="PNDMScheduler", skip_prk_steps=True, set_alpha_to_one=False)
    assert published.ignored == ("set_alpha_to_one", "skip_prk_steps")


def test_a_statement_replaces_what_the_file_says(read):
    published = read(Stated("cosine", 500, "sample"), predict_epsilon=True, beta_start=0.5)
    assert (published.card.kind, published.card.T) == ("cosine", 500)
    assert published.process.prediction == "sample"
    assert read(Stated(prediction="v_prediction")).card.kind == "linear"


@pytest.mark.parametrize("T", [1, 2, 100_000])
def test_a_process_has_1_to_100_000_timesteps(read, T):
    published = read(num_train_timesteps=T, beta_schedule="squaredcos_cap_v2")
    assert published.process.schedule.T == T


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            "_class_name='FlowMatchEulerDiscreteScheduler' is of another process",
        ),
        ({"_class_name": "CMStochasticIterativeScheduler"}, ".* is of another process"),
        ({"_class_name": ["DDPMScheduler"]}, r"_class_name=\['DDPMScheduler'\]"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas=True is of another process"),
        ({"use_flow_sigmas": "yes"}, "use_flow_sigmas='yes' is not supported; only False is"),
        ({"prediction_type": "flow_prediction"}, "prediction_type='flow_prediction' is of another"),
        ({"sigma_data": 0.5}, "sigma_data=0.5 is not supported"),
        ({"sigma_max": 1348.0}, "sigma_max=1348.0 is not supported"),
        ({"shift": 3.0}, "shift=3.0 is not supported; only 1.0 is"),
        ({"mystery": 3}, "mystery=3 is no key of a scheduler that is known here; remove it"),
        ({"beta_schedule": ["linear"]}, r"beta_schedule=\['linear'\] is not supported; use linear"),
        ({"variance_type": "guessed"}, "variance_type='guessed' is not supported; use fixed_small"),
        ({"variance_type": ["learned"]}, r"variance_type=\['learned'\] is not supported"),
        ({"timestep_spacing": "quad"}, "timestep_spacing='quad' is not supported; use linspace"),
        ({"steps_offset": 1000}, "steps_offset=1000 is not from 0 to 999"),
        ({"steps_offset": 1.5}, "steps_offset=1.5 is no whole number"),
        ({"steps_offset": 10**400}, r"steps_offset=10+\.\.\. is not from 0 to 999"),
        ({"clip_sample_range": 10**400}, r"clip_sample_range=10+\.\.\. is not from"),
        ({"clip_sample": "yes"}, "clip_sample='yes' is neither true nor false"),
        ({"clip_sample_range": None}, "clip_sample_range=None is not from"),
        (
            {"thresholding": True, "dynamic_thresholding_ratio": 1.5},
            "dynamic_thresholding_ratio=1.5 is not from",
        ),
        ({"thresholding": True, "sample_max_value": -1}, "sample_max_value=-1 is not from"),
        ({"predict_epsilon": "no"}, "predict_epsilon='no' is neither true nor false"),
        ({"trained_betas": "many"}, "trained_betas='many' is no list of numbers"),
        (
            {"trained_betas": [0.1] * 1000 + [1]},
            r"trained_betas=\[0.1, .*\.\.\. holds 1001 numbers",
        ),
        (
            {"trained_betas": [2.0, 0.1], "num_train_timesteps": 2},
            "beta reaches from 0.1 to 2; keep it inside",
        ),
        (
            {"rescale_betas_zero_snr": True},
            "rescale_betas_zero_snr=True leaves nothing but noise",
        ),
        (
            {"rescale_betas_zero_snr": True, "num_train_timesteps": 1},
            "one timestep cannot end at zero SNR",
        ),
        (
            {
                "rescale_betas_zero_snr": True,
                "prediction_type": "sample",
                "num_train_timesteps": 100_000,
                "beta_end": 0.3,
            },
            "alpha_bar goes from 0.9999 to .* and cannot be rescaled to zero SNR; use fewer",
        ),
        (
            {"rescale_betas_zero_snr": True, "prediction_type": "sample", "beta_schedule": "linear"}
            | {"trained_betas": [1e-18, 1e-18], "num_train_timesteps": 2},
            "alpha_bar goes from 1 to 1 and cannot be rescaled to zero SNR",
        ),
        ({"num_train_timesteps": 10**400}, r"num_train_timesteps=10+\.\.\.: "),
        ({"num_train_timesteps": 0}, "num_train_timesteps=0: "),
        ({"num_train_timesteps": 100_001}, "num_train_timesteps=100001: "),
        (
            {"num_train_timesteps": 100_000},
            r"alpha_bar goes from 0\.9999 to 1.* and cannot be reversed; correct num_train",
        ),
        ({"beta_end": 0.999}, r"alpha_bar goes from 0\.9999 to 0 and cannot be reversed"),
        ({"beta_start": 1e-17}, "alpha_bar goes from 1 to .* and cannot be reversed"),
        ({"beta_start": None, "beta_end": "x"}, "beta_end='x'"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_a_process_that_cannot_be_sampled_is_refused_by_key_and_value(
    tmp_path, read, changes, says
):
    with pytest.raises(BadCheckpoint, match=f"{tmp_path}/scheduler_config.json: {says}"):
        read(**changes)
