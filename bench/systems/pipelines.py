"""The pipeline that people use today: diffusers' DDPMPipeline, as it comes and tuned.

It has the same weights as the service.
"""

from __future__ import annotations

import copy
import io
import logging
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from bench.systems.drawing import Draw

log = logging.getLogger(__name__)
# A setting is tried so often, with images of so many steps.
TRIALS = 3
TRIAL_STEPS = 5


class Pipe(NamedTuple):
    """The weights and the device of a pipeline, which can be sent to another process."""

    folder: Path
    device: str


@cache
def loaded(pipe: Pipe) -> Any:
    """Load the pipeline, once in a process.

    In RQ's default worker, which forks for each job, that is once a job.
    """
    from diffusers import DDPMPipeline
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    untyped = cast("Any", DDPMPipeline)
    pipeline = untyped.from_pretrained(pipe.folder, low_cpu_mem_usage=False).to(pipe.device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipe: Pipe, count: int, steps: int, seed: int) -> list[bytes]:
    """Draw `count` PNGs in one batch. It is the job that RQ's workers run."""
    return pngs(loaded(pipe), count, steps, seed)


def prepare(pipe: Pipe, make: Callable[[Pipe, int], Any], sizes: Sequence[int]) -> tuple[str, Draw]:
    """Make a pipeline for each batch size.

    Args:
        pipe: Weights and device.
        make: Makes the pipeline for a batch size: plain, tuned or compiled.
        sizes: Batch sizes that will be drawn.

    Returns:
        A description of how they draw, and what draws PNGs in batches of these sizes.
    """
    pipelines = {size: make(pipe, size) for size in sizes}
    settings = [describe(pipeline, size) for size, pipeline in pipelines.items()]

    def draw(count: int, steps: int, seed: int) -> list[bytes]:
        return pngs(pipelines[count], count, steps, seed)

    return "; ".join(dict.fromkeys(settings)), draw


def pngs(pipeline: Any, count: int, steps: int, seed: int) -> list[bytes]:
    """Draw `count` images in one batch, and return them as PNGs."""
    generator = torch.Generator(pipeline.device).manual_seed(seed)
    files = [io.BytesIO() for _ in range(count)]
    for image, file in zip(pipeline(count, generator, steps).images, files, strict=True):
        image.save(file, "PNG")
    return [file.getvalue() for file in files]


@dataclass(frozen=True, slots=True)
class Setting:
    """A way to run the network."""

    dtype: torch.dtype
    layout: torch.memory_format
    compiled: bool

    def __str__(self) -> str:
        names = [str(self.dtype), str(self.layout), "compiled" if self.compiled else "not compiled"]
        return ", ".join(name.removeprefix("torch.") for name in names)


class TunedPipeline(torch.nn.Module):
    """A UNet2DModel in a setting of its own.

    The pipeline around it keeps float32, which the scheduler needs.
    """

    def __init__(self, unet: Any, setting: Setting) -> None:
        super().__init__()
        self.config = unet.config
        self.device = unet.device
        self.dtype = torch.float32
        self.setting = setting
        net = unet.to(setting.dtype).to(memory_format=setting.layout)
        self.net = torch.compile(net, dynamic=False) if setting.compiled else net

    def forward(self, x: Tensor, t: Tensor) -> SimpleNamespace:
        """Return the output in float32 as `sample`, (B, C, H, W)."""
        sample = self.net(x.to(self.setting.dtype, memory_format=self.setting.layout), t).sample
        return SimpleNamespace(sample=sample.float())


LAYOUTS = (torch.contiguous_format, torch.channels_last)
COMPILED = Setting(torch.bfloat16, torch.channels_last, True)
DTYPES = (torch.float32, torch.bfloat16)
SETTINGS = [
    *(Setting(dtype, layout, False) for dtype, layout in product(DTYPES, LAYOUTS)),
    Setting(torch.float32, torch.channels_last, True),
    COMPILED,
]


def plain(pipe: Pipe, _: int) -> Any:
    """Return the pipeline as most people run it, for batches of any size."""
    return loaded(pipe)


def describe(pipeline: Any, count: int) -> str:
    """Describe how batches of `count` are run."""
    if isinstance(pipeline.unet, TunedPipeline):
        return f"batches of {count} {pipeline.unet.setting}"
    return "DDPMPipeline as it comes"


def tuned(pipe: Pipe, count: int) -> Any:
    """Return the pipeline in the setting that is fastest for batches of `count`.

    It tries all settings; compiling takes minutes.

    Raises:
        ValueError: Every setting failed.
    """
    tried = {}
    for choice in SETTINGS:
        pipeline = _in_setting(pipe, choice)
        try:
            tried[_fastest_s(pipeline, count)] = pipeline
        except Exception as error:
            # A compiler may fail with anything, if it is missing or does not know the system.
            log.warning("diffusers, %s: left out, %s", choice, error)
    return tried[min(tried)]


def compiled(pipe: Pipe, count: int) -> Any:
    """Return the pipeline in the setting COMPILED, without trying the others.

    It was the fastest for 64 images wherever bf16 was tried.
    """
    pipeline = _in_setting(pipe, COMPILED)
    _trial_s(pipeline, count)
    return pipeline


def _in_setting(pipe: Pipe, choice: Setting) -> Any:
    pipeline = copy.deepcopy(loaded(pipe))
    pipeline.unet = TunedPipeline(pipeline.unet, choice)
    return pipeline


def _fastest_s(pipeline: Any, count: int) -> float:
    """Return the seconds of the fastest of a few trials, after one that compiles."""
    return min([_trial_s(pipeline, count) for _ in range(1 + TRIALS)][1:])


def _trial_s(pipeline: Any, count: int) -> float:
    start = time.perf_counter()
    with warnings.catch_warnings():
        # The compiler warns of diffusers' code.
        warnings.simplefilter("ignore")
        pngs(pipeline, count, TRIAL_STEPS, seed=0)
    return time.perf_counter() - start
