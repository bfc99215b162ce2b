"""The process that a scheduler of diffusers describes."""

from __future__ import annotations

import inspect
import json

import diffusers
import pytest
import torch
from diffusers import HeunDiscreteScheduler, PNDMScheduler

from models.checkpoints import diffusers_format
from models.checkpoints.diffusers_format import BadCheckpoint


@pytest.mark.parametrize("scheduler", [HeunDiscreteScheduler, PNDMScheduler])
def test_absent_keys_mean_the_schedulers_defaults(tmp_path, scheduler):
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"_class_name": scheduler.__name__}))
    card, prediction = diffusers_format.read_scheduler(tmp_path)
    names = ("num_train_timesteps", "beta_start", "beta_end", "prediction_type")
    theirs = inspect.signature(scheduler).parameters
    defaults = tuple(theirs[name].default for name in names)
    assert (card.T, card.beta_start, card.beta_end, prediction) == defaults


# diffusers warns with NumPy 2
@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
@pytest.mark.parametrize("name", diffusers_format.SCHEDULERS)
def test_the_file_that_each_scheduler_saves_is_read(tmp_path, name):
    try:
        theirs = getattr(diffusers, name)()
    except ImportError as error:
        pytest.skip(f"diffusers needs more for it: {str(error).strip()}")
    theirs.save_pretrained(tmp_path)
    card, prediction = diffusers_format.read_scheduler(tmp_path)
    ours = diffusers_format.schedule_of(card).beta
    torch.testing.assert_close(theirs.betas.double(), ours, rtol=1e-5, atol=1e-8)
    assert prediction == theirs.config.prediction_type


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            "_class_name='FlowMatchEulerDiscreteScheduler' is of another process",
        ),
        ({"_class_name": ["DDPMScheduler"]}, r"_class_name=\['DDPMScheduler'\]"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas=True is not supported; only False is"),
        ({"sigma_data": 0.5}, "sigma_data=0.5 is not supported"),
        ({"sigma_max": 1348.0}, "sigma_max=1348.0 is not supported"),
        ({"clip_sample": False}, "clip_sample=False is not supported; only True is"),
        (
            {"_class_name": "DDIMScheduler", "clip_sample": False},
            "clip_sample=False is not supported",
        ),
        ({"shift": 3.0}, "shift=3.0 is not supported; only 1.0 is"),
        (
            {"beta_schedule": ["linear"]},
            r"beta_schedule=\['linear'\] is not supported; use linear or squaredcos_cap_v2",
        ),
        (
            {"num_train_timesteps": 100_000},
            r"alpha_bar goes from 0\.9999 to 1.* and cannot be reversed; correct num_train",
        ),
        ({"beta_end": 0.999}, r"alpha_bar goes from 0\.9999 to 0 and cannot be reversed"),
        ({"beta_start": 1e-17}, "alpha_bar goes from 1 to .* and cannot be reversed"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_a_process_that_cannot_be_sampled_is_refused_by_key_and_value(tmp_path, changes, says):
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps(changes))
    with pytest.raises(BadCheckpoint, match=f"{path}: {says}"):
        diffusers_format.read_scheduler(tmp_path)
