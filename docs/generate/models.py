"""The table of networks and processes, each compared with diffusers or refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from diffusers.utils import logging

from docs.generate.comparison import CLOSE, EQUAL, compare_network, compare_process
from docs.generate.configurations import (
    OPTIONS,
    PLAIN,
    PROCESSES,
    PUBLISHED,
    Options,
    drawn,
    drawn_processes,
)
from docs.generate.markdown import NOTICE, page, table

_ABOUT = """# Networks and processes

You can serve every DDPM on pixels that diffusers' `UNet2DModel` and its schedulers describe.
This page compares {count} of them with diffusers, on random weights none of which is zero.

- *equal*: the outputs differ by at most {close:g} of their standard deviation or largest value.
- *refused*: `ddpm models add` refuses the model with this reason.

{equal} are equal and {refused} are refused.
The networks have few channels, so that the comparison takes seconds.

Networks of denoising-diffusion-pytorch are a family of their own, which diffusers lacks.
[Add a model](../how-to/add-a-model.md) lists the trainers whose files are converted.

A network that is equal can still be refused for its process.
Class-conditional networks are compared with labels."""
_NETWORKS = """## Published networks"""
_OPTIONS = """## Options of a network

Each row changes some options of one network: {plain}."""
_DRAWN = """## Networks drawn at random

Only what differs from diffusers' defaults is shown."""
_PROCESSES = """## Processes

Each row has the keys of a scheduler's file, and the steps of the job if it is not 20.
The step of the engine is compared with that of diffusers on the same noise.
diffusers' scheduler gets the betas in float64, because its own tables lose digits.

Four things differ from diffusers on purpose:

- The last row has no noise, even if its timestep is not 0.
- `fixed_large_log` means `fixed_large`; diffusers takes the square root of a logarithm.
- DDIM derives eps from the clipped x_0, as diffusers does with `use_clipped_model_output`.
- `dpmpp_2m` ends at timestep 0, as our other samplers do; diffusers' solver ends before it.

Whole chains are compared too.
A test adds a model of each of ten families with `ddpm models add`, and posts jobs of 50 steps.
Their PNGs are those of diffusers' pipelines on the same noise, to 1e-3 of [-1, 1] and rounding."""
_DRAWN_PROCESSES = "## Processes drawn at random"
_DEFAULTS: Options = {
    "center_input_sample": False,
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "mid_block_type": "UNetMidBlock2D",
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "act_fn": "silu",
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
}
_MOST_BETAS = 3
_NETWORKS_DRAWN = 40
_PROCESSES_DRAWN = 40

Rows = list[tuple[str, str]]


def models_page() -> str:
    """Return docs/reference/models.md, after all comparisons.

    Raises:
        AssertionError: A network or a process differs from diffusers'. The text has its options.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _page()
        finally:
            torch.set_num_threads(threads)


def _page() -> str:
    networks = [(name, compare_network(options)) for name, options in PUBLISHED.items()]
    options = _compared(OPTIONS, lambda changes: compare_network(PLAIN | changes))
    random_networks = _compared(drawn(_NETWORKS_DRAWN), compare_network)
    processes = _compared(PROCESSES, compare_process)
    random_processes = _compared(drawn_processes(_PROCESSES_DRAWN), compare_process)
    parts: Sequence[tuple[str, Rows]] = (
        (_NETWORKS, networks),
        (_OPTIONS.format(plain=_text(PLAIN)), options),
        (_DRAWN, random_networks),
        (_PROCESSES, processes),
        (_DRAWN_PROCESSES, random_processes),
    )
    results = [result for _, rows in parts for _, result in rows]
    equal = results.count(EQUAL)
    about = _ABOUT.format(
        count=len(results),
        close=CLOSE,
        equal=equal,
        refused=len(results) - equal,
    )
    blocks = [NOTICE, about]
    for text, rows in parts:
        blocks += [text, table(("options", "result"), rows)]
    return page(blocks)


def _compared(many: Iterable[Options], compare: Callable[[Options], str]) -> Rows:
    """Compare options after options, and name those that differ in the error."""
    rows = []
    for options in many:
        try:
            result = compare(options)
        except AssertionError as error:
            raise AssertionError(f"{options}: {error}") from None
        rows.append((_text(options), result))
    return rows


def _text(options: Options) -> str:
    """Write options as `key=value`, without diffusers' defaults if there are many."""
    shown = options
    if len(options) > len(_DEFAULTS):
        shown = {k: v for k, v in options.items() if k not in _DEFAULTS or v != _DEFAULTS[k]}
    return ", ".join(f"`{key}={_value(value)}`" for key, value in shown.items()) or "(defaults)"


def _value(value: Any) -> str:
    if isinstance(value, list) and len(value) > _MOST_BETAS and isinstance(value[0], float):
        return f"[{value[0]:g}, ..., {value[-1]:g}]"
    return "null" if value is None else str(value).replace("'", "")
