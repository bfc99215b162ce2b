"""The flags with which improved-diffusion and guided-diffusion were trained.

Their files hold weights alone. Heads, schedule and output stand in the command of the training,
which their pages and papers print.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from models.checkpoints.bad_checkpoint import BadCheckpoint
from models.checkpoints.sources.trainers.flags import Flags

# T of which rescaling leaves timesteps as they are
_PLAIN_T = 1000
# what the weights themselves say, or what concerns training alone
_SEEN = frozenset(
    {
        "attention_resolutions",
        "batch_size",
        "channel_mult",
        "class_cond",
        "dropout",
        "ema_rate",
        "learn_sigma",
        "lr",
        "microbatch",
        "num_channels",
        "num_heads_upsample",
        "num_res_blocks",
        "num_samples",
        "resblock_updown",
        "rescale_learned_sigmas",
        "timestep_respacing",
        "use_checkpoint",
        "use_fp16",
        "use_kl",
        "use_scale_shift_norm",
        "weight_decay",
    }
)
_NEEDED = ("image_size", "diffusion_steps", "noise_schedule")


@dataclass(frozen=True, slots=True)
class TrainerFlags:
    """Flags that weights do not show.

    Attributes:
        image_size: Pixels a side.
        diffusion_steps: T.
        noise_schedule: `linear` or `cosine`.
        num_heads: Heads of each attention. None: `num_head_channels` says it.
        num_head_channels: Channels of each head. None: `num_heads` says it.
        use_new_attention_order: Whether queries, keys and values are split before the heads.
        predict_xstart: Whether the network estimates x_0, not eps.
        rescale_timesteps: Whether the network sees t * 1000 / T.
        sigma_small: Whether the variance is the posterior's, where it is not learned.
        notes: What was assumed or is not needed, a sentence each.
    """

    image_size: int
    diffusion_steps: int
    noise_schedule: str
    num_heads: int | None
    num_head_channels: int | None
    use_new_attention_order: bool
    predict_xstart: bool
    rescale_timesteps: bool
    sigma_small: bool
    notes: tuple[str, ...]


def read_flags(text: str | None) -> TrainerFlags:
    """Read flags as they stand in a command, such as `--image_size 64 --num_heads 4`.

    Raises:
        BadCheckpoint: One is missing that weights do not show, or is unknown or wrong.
    """
    if text is None:
        raise BadCheckpoint(
            "the file is of improved-diffusion or guided-diffusion, which say nothing of heads,"
            " schedule and output; give the flags of its training, such as --flags '--image_size"
            " 64 --num_head_channels 64 --diffusion_steps 1000 --noise_schedule cosine'"
        )
    known = {f.name for f in fields(TrainerFlags)} - {"notes"} | _SEEN
    read = Flags.parse(text, known, "the two trainers")
    given = read.given
    for name in _NEEDED:
        if name not in given:
            raise BadCheckpoint(f"--flags lack --{name}, which the weights do not show")
    heads = read.number("num_heads")
    channels = read.number("num_head_channels")
    if heads is None and channels is None:
        raise BadCheckpoint("--flags lack --num_heads or --num_head_channels")
    if given.get("num_heads_upsample", "-1") not in ("-1", str(heads)):
        raise BadCheckpoint("--num_heads_upsample is another than --num_heads; it is not served")
    T = read.number("diffusion_steps")
    size = read.number("image_size")
    if T is None or size is None:
        raise BadCheckpoint("--image_size and --diffusion_steps are 1 or more")
    schedule = given["noise_schedule"]
    if schedule not in ("linear", "cosine"):
        raise BadCheckpoint(f"--noise_schedule {schedule} is not supported; use linear or cosine")
    if T != _PLAIN_T and "rescale_timesteps" not in given:
        raise BadCheckpoint(
            f"--flags lack --rescale_timesteps, which matters where --diffusion_steps is {T};"
            " it is True by default in improved-diffusion, and False in guided-diffusion"
        )
    flags = {
        name: read.truth(name)
        for name in (
            "use_new_attention_order",
            "predict_xstart",
            "rescale_timesteps",
            "sigma_small",
        )
    }
    assumed = [
        f"{name}=False, as --flags leave it out"
        for name, is_set in flags.items()
        if name not in given and not is_set and name != "rescale_timesteps"
    ]
    unused = sorted(given.keys() & _SEEN)
    notes = [*assumed, *([f"of --flags, not needed: {', '.join(unused)}"] if unused else [])]
    return TrainerFlags(
        image_size=size,
        diffusion_steps=T,
        noise_schedule=schedule,
        num_heads=None if channels is not None else heads,
        num_head_channels=channels,
        rescale_timesteps=flags["rescale_timesteps"] and T != _PLAIN_T,
        use_new_attention_order=flags["use_new_attention_order"],
        predict_xstart=flags["predict_xstart"],
        sigma_small=flags["sigma_small"],
        notes=tuple(notes),
    )
