"""The process that a scheduler's file of diffusers describes.

Keys of the process are read, and keys of a solver are passed over by name, as our samplers replace
it. Any other key is refused: it could change the process.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast, get_args

import torch
from pydantic import ValidationError

from models.checkpoints.bad_checkpoint import BadCheckpoint
from models.checkpoints.catalog import BETA_ENDS, ScheduleCard, ScheduleKind
from models.checkpoints.layout import SCHEDULER, read_json, scheduler_file
from models.diffusion.options import (
    Clipping,
    LearnedVariance,
    Prediction,
    PublishedVariance,
    Spacing,
)
from models.diffusion.process import Process
from models.diffusion.schedule import LINEAR_END, LINEAR_START, LINEAR_T, Schedule
from models.networks.network_config import shown

Value = TypeVar("Value")


class _Class(NamedTuple):
    """What a class of schedulers does where its file says nothing."""

    beta_start: float = LINEAR_START
    beta_end: float = LINEAR_END
    clips: bool = False
    spacing: Spacing = "linspace"


_PLAIN = _Class()
_CLIPS = _Class(clips=True, spacing="leading")
_LEADS = _Class(spacing="leading")
_LATENTS = _Class(0.00085, 0.012)
# The schedulers of diffusers whose process is the paper's, which keeps the variance of x_t.
SCHEDULERS = {
    "DDPMScheduler": _CLIPS,
    "DDPMParallelScheduler": _CLIPS,
    "DDIMScheduler": _CLIPS,
    "DDIMInverseScheduler": _CLIPS,
    "DDIMParallelScheduler": _CLIPS,
    "DEISMultistepScheduler": _PLAIN,
    "DPMSolverMultistepScheduler": _PLAIN,
    "DPMSolverMultistepInverseScheduler": _PLAIN,
    "DPMSolverSinglestepScheduler": _PLAIN,
    "DPMSolverSDEScheduler": _LATENTS,
    "EulerDiscreteScheduler": _PLAIN,
    "EulerAncestralDiscreteScheduler": _PLAIN,
    "HeunDiscreteScheduler": _LATENTS,
    "KDPM2DiscreteScheduler": _LATENTS,
    "KDPM2AncestralDiscreteScheduler": _LATENTS,
    "LMSDiscreteScheduler": _PLAIN,
    "PNDMScheduler": _LEADS,
    "SASolverScheduler": _PLAIN,
    "UniPCMultistepScheduler": _PLAIN,
}
_KINDS: dict[str, ScheduleKind] = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "cosine",
    "sigmoid": "sigmoid",
    "laplace": "laplace",
}
_NAMES = {kind: name for name, kind in _KINDS.items()}
_VARIANCES: dict[str | None, PublishedVariance] = {
    None: "fixed_small",
    "fixed_small": "fixed_small",
    "fixed_small_log": "fixed_small",
    "fixed_large": "fixed_large",
    "fixed_large_log": "fixed_large",
    "learned": "learned",
    "learned_range": "learned",
}
_PROCESS_KEYS = frozenset(
    {
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "trained_betas",
        "rescale_betas_zero_snr",
        "prediction_type",
        "predict_epsilon",
        "clip_sample",
        "clip_sample_range",
        "thresholding",
        "dynamic_thresholding_ratio",
        "sample_max_value",
        "variance_type",
        "timestep_spacing",
        "steps_offset",
    }
)
# Keys that would change the process, with the only value that our plans have.
_FIXED_KEYS: dict[str, Any] = {
    "timestep_type": "discrete",
    "use_flow_sigmas": False,
    "use_dynamic_shifting": False,
    "shift": 1.0,
    "shift_terminal": None,
    "sigma_data": None,
    "sigma_min": None,
    "sigma_max": None,
}
# What sets a scheduler of several processes to flow matching.
_FLOWS: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
_LARGEST_NUMBER = 1e9
_OTHER_PROCESS = "is of another process than DDPMScheduler's; only that one is sampled"
# Keys that say how diffusers steps, which leave the process as it is.
_SOLVER_KEYS = frozenset(
    {
        "algorithm_type",
        "corrector_order",
        "disable_corrector",
        "euler_at_final",
        "final_sigmas_type",
        # of flow models alone
        "flow_shift",
        "interpolation_type",
        "lambda_min_clipped",
        "lower_order_final",
        "noise_sampler_seed",
        "predict_x0",
        "predictor_order",
        "set_alpha_to_one",
        "set_alpha_to_zero",
        "skip_prk_steps",
        "solver_order",
        "solver_p",
        "solver_type",
        "tau_func",
        # the library of arrays, before diffusers 0.3
        "tensor_format",
        "time_shift_type",
        "use_beta_sigmas",
        "use_exponential_sigmas",
        "use_karras_sigmas",
        "use_lu_lambdas",
    }
)


@dataclass(frozen=True, slots=True)
class Stated:
    """What somebody states of a process, because the folder does not, or does not rightly.

    Attributes:
        schedule: The kind of schedule.
        timesteps: T.
        prediction: What the network's output estimates.
        clip: The bound of every x_0_hat; infinity: none.
    """

    schedule: ScheduleKind | None = None
    timesteps: int | None = None
    prediction: Prediction | None = None
    clip: float | None = None

    def __bool__(self) -> bool:
        return self != _NOTHING

    @property
    def is_enough(self) -> bool:
        """True if a folder without a scheduler can do with it."""
        return self.schedule is not None and self.prediction is not None

    def over(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Lay what is stated over the content of a scheduler's file."""
        changed = dict(config) or {"_class_name": "DDPMScheduler"}
        if self.schedule is not None:
            changed |= {"beta_schedule": _NAMES[self.schedule], "trained_betas": None}
        if self.timesteps is not None:
            changed["num_train_timesteps"] = self.timesteps
        if self.prediction is not None:
            changed.pop("predict_epsilon", None)
            changed["prediction_type"] = self.prediction
        if self.clip is not None:
            clips = math.isfinite(self.clip)
            changed |= {"clip_sample": clips, "thresholding": False}
            changed |= {"clip_sample_range": self.clip} if clips else {}
        return changed


_NOTHING = Stated()


@dataclass(frozen=True, slots=True)
class Published:
    """A process as it was published.

    Attributes:
        card: Its schedule, as a card has it.
        process: The process. Its timesteps are spread by linspace, whatever is published.
        variance: The reverse variance that the file names.
        spacing: How the publisher chooses timesteps.
        offset: The first timestep of the spacing `leading`.
        ignored: The keys of the file that were passed over, which are the solver's.
        config: The content of the file, with what was stated.
    """

    card: ScheduleCard
    process: Process
    variance: PublishedVariance
    spacing: Spacing
    offset: int
    ignored: tuple[str, ...]
    config: Mapping[str, Any]


def read_scheduler(folder: Path, stated: Stated = _NOTHING) -> Published:
    """Read the process that a checkpoint was trained on.

    Args:
        folder: The model folder.
        stated: What is stated instead of the file.

    Raises:
        BadCheckpoint: The file is missing or damaged, or its process is not supported.
    """
    path = scheduler_file(folder)
    if path is None and not stated.is_enough:
        above = scheduler_file(folder.resolve().parent)
        raise BadCheckpoint(
            f"{folder} holds no scheduler/{SCHEDULER}, which says what the network was trained on;"
            + (f" {above} may: give the folder above." if above else " copy it from the pipeline.")
            + " Or state it: `ddpm models add` takes --schedule and --prediction"
        )
    config = stated.over(read_json(path) if path else {})
    return _Reader(path or folder / "scheduler" / SCHEDULER, config).published()


class _Reader:
    """Reads one file; its faults name the file and the key."""

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self._path = path
        self._config = config
        name = config.get("_class_name", "DDPMScheduler")
        if name not in list(SCHEDULERS):
            raise self._fault("_class_name", _OTHER_PROCESS)
        for key, value in _FLOWS.items():
            if config.get(key) == value:
                raise self._fault(key, _OTHER_PROCESS)
        self._class = SCHEDULERS[name]

    def published(self) -> Published:
        ignored = self._ignored()
        card, schedule = self._schedule()
        prediction = self._prediction()
        if schedule.has_zero_terminal_snr and prediction == "epsilon":
            raise self._fault(
                "rescale_betas_zero_snr" if card.zero_snr else "trained_betas",
                "leaves nothing but noise at the last timestep, where epsilon says nothing of the"
                " image; such a model predicts v_prediction or sample",
            )
        variance = self._one_of("variance_type", _VARIANCES)
        learned = cast("LearnedVariance | None", self._config.get("variance_type"))
        process = Process(
            schedule,
            prediction,
            self._clipping(),
            learned if variance == "learned" else None,
        )
        spacing = self._one_of(
            "timestep_spacing", {name: name for name in get_args(Spacing)}, self._class.spacing
        )
        offset = self._number("steps_offset", 0, 0, card.T - 1)
        if offset != int(offset):
            raise self._fault("steps_offset", "is no whole number")
        return Published(card, process, variance, spacing, int(offset), ignored, dict(self._config))

    def _fault(self, key: str, text: str) -> BadCheckpoint:
        return BadCheckpoint(f"{self._path}: {key}={shown(self._config.get(key))} {text}")

    def _ignored(self) -> tuple[str, ...]:
        """List the solver's keys, and refuse those that nobody knows."""
        for key, value in self._config.items():
            if key in _FIXED_KEYS and value != _FIXED_KEYS[key]:
                raise self._fault(key, f"is not supported; only {_FIXED_KEYS[key]!r} is")
            known = key in _PROCESS_KEYS or key in _FIXED_KEYS or key in _SOLVER_KEYS
            if not known and not key.startswith("_"):
                raise self._fault(
                    key,
                    "is no key of a scheduler that is known here; remove it if it changes nothing",
                )
        return tuple(sorted(self._config.keys() & _SOLVER_KEYS))

    def _schedule(self) -> tuple[ScheduleCard, Schedule]:
        name = self._config.get("beta_schedule", "linear")
        wanted: dict[str, Any] = {
            "T": self._config.get("num_train_timesteps", LINEAR_T),
            "zero_snr": self._flag("rescale_betas_zero_snr", False),
        }
        betas = self._config.get("trained_betas")
        if betas is not None:
            wanted["kind"] = "trained"
        elif name not in list(_KINDS):
            raise self._fault("beta_schedule", f"is not supported; use {', '.join(_KINDS)}")
        else:
            wanted["kind"] = _KINDS[name]
        if wanted["kind"] in BETA_ENDS:
            wanted["beta_start"] = self._config.get("beta_start", self._class.beta_start)
            wanted["beta_end"] = self._config.get("beta_end", self._class.beta_end)
        try:
            card = ScheduleCard.model_validate(wanted)
        except ValidationError as error:
            fault = error.errors()[0]
            key = {"T": "num_train_timesteps", "zero_snr": "rescale_betas_zero_snr"}
            where = str(fault["loc"][0]) if fault["loc"] else "beta_start"
            raise BadCheckpoint(
                f"{self._path}: {key.get(where, where)}={shown(fault['input'])}: {fault['msg']};"
                " correct it"
            ) from None
        try:
            schedule = schedule_of(card, None if betas is None else self._betas(betas, card.T))
        except ValueError as error:
            raise BadCheckpoint(f"{self._path}: {error}") from None
        if not schedule.can_be_reversed:
            ends = f"{schedule.alpha_bar[0]:g} to {schedule.alpha_bar[-1]:g}"
            raise BadCheckpoint(
                f"{self._path}: alpha_bar goes from {ends} and cannot be reversed;"
                " correct num_train_timesteps, beta_start and beta_end"
            )
        return card, schedule

    def _betas(self, betas: Any, T: int) -> list[float]:
        if not isinstance(betas, list) or not all(_is_number(beta) for beta in betas):
            raise self._fault("trained_betas", "is no list of numbers")
        if len(betas) != T:
            raise self._fault(
                "trained_betas", f"holds {len(betas)} numbers where num_train_timesteps is {T}"
            )
        return [float(beta) for beta in betas]

    def _prediction(self) -> Prediction:
        predictions: dict[str, Prediction] = {name: name for name in get_args(Prediction)}
        old = self._config.get("predict_epsilon")
        if old is None:
            return self._one_of("prediction_type", predictions, "epsilon")
        means: Prediction = "epsilon" if self._flag("predict_epsilon", True) else "sample"
        said: Prediction = self._one_of("prediction_type", predictions, means)
        if said != means:
            raise self._fault("predict_epsilon", f"contradicts prediction_type={said!r}")
        return said

    def _clipping(self) -> Clipping:
        if self._flag("thresholding", False):
            ratio = self._number("dynamic_thresholding_ratio", 0.995, 1e-6, 1)
            return Clipping(math.inf, ratio, self._number("sample_max_value", 1.0, 1e-6, 1e6))
        bound = self._number("clip_sample_range", 1.0, 1e-6, 1e6)
        return Clipping(bound if self._flag("clip_sample", self._class.clips) else math.inf)

    def _flag(self, key: str, absent: bool) -> bool:
        value = self._config.get(key, absent)
        if not isinstance(value, bool):
            raise self._fault(key, "is neither true nor false")
        return value

    def _number(self, key: str, absent: float, least: float, most: float) -> float:
        value = self._config.get(key, absent)
        if not _is_number(value) or not least <= value <= most:
            raise self._fault(key, f"is not from {least:g} to {most:g}")
        return float(value)

    def _one_of(self, key: str, values: Mapping[Any, Value], absent: Value | None = None) -> Value:
        value = self._config.get(key, absent)
        if value not in list(values):
            names = ", ".join(str(name) for name in values if name is not None)
            raise self._fault(key, f"is not supported; use {names}")
        return values[value]


def _is_number(value: Any) -> bool:
    # No number of a process is larger. A float cannot hold every whole number of a file.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and -_LARGEST_NUMBER <= value <= _LARGEST_NUMBER


def schedule_of(card: ScheduleCard, betas: list[float] | None = None) -> Schedule:
    """Compute the schedule that a card describes.

    Args:
        card: The card.
        betas: The betas of a schedule that is `trained`, which stand in the scheduler's file.

    Raises:
        ValueError: The betas are missing, or are no variances.
    """
    start = LINEAR_START if card.beta_start is None else card.beta_start
    end = LINEAR_END if card.beta_end is None else card.beta_end
    if card.kind == "trained":
        if betas is None:
            raise ValueError("kind=trained names no betas; use another kind of schedule")
        schedule = Schedule(torch.tensor(betas, dtype=torch.float64))
    elif card.kind == "cosine":
        schedule = Schedule.cosine(card.T)
    elif card.kind == "laplace":
        schedule = Schedule.laplace(card.T)
    else:
        makers = {
            "linear": Schedule.linear,
            "scaled_linear": Schedule.scaled_linear,
            "sigmoid": Schedule.sigmoid,
        }
        schedule = makers[card.kind](card.T, start, end)
    return schedule.with_zero_terminal_snr() if card.zero_snr else schedule


def scheduler_config(
    schedule: ScheduleCard, prediction: Prediction, variance: PublishedVariance
) -> dict[str, Any]:
    """Make the content of the file from which diffusers reads the same process."""
    ends = {"beta_start": schedule.beta_start, "beta_end": schedule.beta_end}
    return {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": "0.35.0",
        "num_train_timesteps": schedule.T,
        "beta_schedule": _NAMES[schedule.kind],
        **{key: value for key, value in ends.items() if value is not None},
        **({"rescale_betas_zero_snr": True} if schedule.zero_snr else {}),
        "variance_type": variance,
        "clip_sample": True,
        "prediction_type": prediction,
        "timestep_spacing": "linspace",
    }
