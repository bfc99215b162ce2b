"""What people use today: diffusers' DDPMPipeline on the same weights, as it comes and tuned."""

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
TRIALS, TRIAL_STEPS = 3, 5


class Pipe(NamedTuple):
    """Of which weights, and where; can be sent to another process."""

    folder: Path
    device: str


@cache
def loaded(pipe: Pipe) -> Any:
    """Once in a process: in RQ's default worker, which forks for each job, that is once a job."""
    from diffusers import DDPMPipeline
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    pipeline = (
        cast("Any", DDPMPipeline)
        .from_pretrained(pipe.folder, low_cpu_mem_usage=False)
        .to(pipe.device)
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipe: Pipe, count: int, steps: int, seed: int) -> list[bytes]:
    """PNGs, `count` in one batch. The job that RQ's workers run."""
    return pngs(loaded(pipe), count, steps, seed)


def drawing(
    pipe: Pipe, prepare: Callable[[Pipe, int], Any], sizes: Sequence[int]
) -> tuple[str, Draw]:
    """How batches of these sizes are drawn, in words, and what draws them as PNGs."""
    ready = {size: prepare(pipe, size) for size in sizes}
    settings = [setting(pipeline, size) for size, pipeline in ready.items()]
    return "; ".join(dict.fromkeys(settings)), lambda count, steps, seed: pngs(
        ready[count], count, steps, seed
    )


def pngs(pipeline: Any, count: int, steps: int, seed: int) -> list[bytes]:
    generator = torch.Generator(pipeline.device).manual_seed(seed)
    files = [io.BytesIO() for _ in range(count)]
    for image, file in zip(pipeline(count, generator, steps).images, files, strict=True):
        image.save(file, "PNG")
    return [file.getvalue() for file in files]


@dataclass(frozen=True, slots=True)
class Setting:
    dtype: torch.dtype
    layout: torch.memory_format
    compiled: bool

    def __str__(self) -> str:
        names = [str(self.dtype), str(self.layout), "compiled" if self.compiled else "not compiled"]
        return ", ".join(name.removeprefix("torch.") for name in names)


class TunedPipeline(torch.nn.Module):
    """A UNet2DModel in a setting of its own; the pipeline around it keeps float32, as the scheduler needs it."""

    def __init__(self, unet: Any, setting: Setting) -> None:
        super().__init__()
        self.config, self.device, self.dtype, self.setting = (
            unet.config,
            unet.device,
            torch.float32,
            setting,
        )
        net = unet.to(setting.dtype).to(memory_format=setting.layout)
        self.net = torch.compile(net, dynamic=False) if setting.compiled else net

    def forward(self, x: Tensor, t: Tensor) -> SimpleNamespace:
        sample = self.net(x.to(self.setting.dtype, memory_format=self.setting.layout), t).sample
        return SimpleNamespace(sample=sample.float())


LAYOUTS = (torch.contiguous_format, torch.channels_last)
COMPILED = Setting(torch.bfloat16, torch.channels_last, True)
SETTINGS = [
    *(
        Setting(dtype, layout, False)
        for dtype, layout in product((torch.float32, torch.bfloat16), LAYOUTS)
    ),
    Setting(torch.float32, torch.channels_last, True),
    COMPILED,
]


def plain(pipe: Pipe, _: int) -> Any:
    """As most people run it, for batches of any size."""
    return loaded(pipe)


def setting(pipeline: Any, count: int) -> str:
    """How batches of `count` are run, in words."""
    if isinstance(pipeline.unet, TunedPipeline):
        return f"batches of {count} {pipeline.unet.setting}"
    return "DDPMPipeline as it comes"


def tuned(pipe: Pipe, count: int) -> Any:
    """The pipeline in the setting that is fastest for batches of `count`, found by trying all. Compiling takes minutes."""
    tried = {}
    for choice in SETTINGS:
        pipeline = _in_setting(pipe, choice)
        try:
            tried[_fastest_s(pipeline, count)] = pipeline
        except Exception as error:  # whatever a compiler may fail with: without one, or on a system that it does not know
            log.warning("diffusers, %s: left out, %s", choice, error)
    return tried[min(tried)]


def compiled(pipe: Pipe, count: int) -> Any:
    """The pipeline in the setting that was the fastest for 64 images wherever bf16 was tried, without trying the others."""
    pipeline = _in_setting(pipe, COMPILED)
    _trial_s(pipeline, count)
    return pipeline


def _in_setting(pipe: Pipe, choice: Setting) -> Any:
    pipeline = copy.deepcopy(loaded(pipe))
    pipeline.unet = TunedPipeline(pipeline.unet, choice)
    return pipeline


def _fastest_s(pipeline: Any, count: int) -> float:
    """Seconds of the fastest of a few trials, after one that compiles."""
    return min([_trial_s(pipeline, count) for _ in range(1 + TRIALS)][1:])


def _trial_s(pipeline: Any, count: int) -> float:
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's, of diffusers' code
        pngs(pipeline, count, TRIAL_STEPS, seed=0)
    return time.perf_counter() - start
