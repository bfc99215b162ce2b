"""What jobs of an added model use by default: as its publisher samples, within reason."""

from __future__ import annotations

from dataclasses import dataclass

from models.checkpoints.catalog import Defaults, Timesteps
from models.checkpoints.scheduler_config import Published
from models.diffusion.options import PublishedVariance, Sampler

# Nobody waits for more without having asked for them.
MOST_STEPS = 1000
_DDIM_STEPS = 50
_SOLVER_STEPS = 25
# the solvers of diffusers that are of DPM-Solver's kind
_LIKE_DPM = ("DPMSolver", "DEIS", "UniPC", "SASolver")


@dataclass(frozen=True, slots=True)
class Asked:
    """Defaults that somebody asks for; None where nothing is asked."""

    sampler: Sampler | None = None
    steps: int | None = None
    variance: PublishedVariance | None = None
    eta: float | None = None


def choose_defaults(
    published: Published,
    timesteps: Timesteps,
    asked: Asked,
    known: Defaults | None = None,
) -> tuple[Defaults, tuple[str, ...]]:
    """Choose the defaults of jobs.

    A DDIM pipeline gets ddim, and a faster solver's pipeline dpmpp_2m, both with the usual number
    of steps. Any other gets ddpm with T steps, 1000 at most.

    Args:
        published: The process.
        timesteps: How timesteps are chosen.
        asked: What was asked for.
        known: The defaults of the model's own card.

    Returns:
        The defaults, and what was assumed, a sentence each.

    Raises:
        ValueError: A plan of these does not exist. The text says why.
    """
    sampler = asked.sampler or (known.sampler if known else _sampler(published))
    same = known is not None and known.sampler == sampler
    steps = asked.steps or (
        known.steps if known and same else _steps(published, timesteps, sampler)
    )
    chosen = Defaults(
        sampler=sampler,
        steps=steps,
        variance=asked.variance or (known.variance if known else published.variance),
        eta=asked.eta if asked.eta is not None else (known.eta if known else 0.0),
    )
    notes = []
    if known is None and asked.sampler is None:
        name = published.config.get("_class_name", "DDPMScheduler")
        notes.append(f"sampler={sampler}, as {name} is nearest to it")
    if asked.steps is None and not (known and same):
        notes.append(f"steps={steps} of T={published.card.T}")
    return chosen, tuple(notes)


def _sampler(published: Published) -> Sampler:
    name = str(published.config.get("_class_name", "DDPMScheduler"))
    if name.startswith("DDPM"):
        return "ddpm"
    return "dpmpp_2m" if name.startswith(_LIKE_DPM) else "ddim"


def _steps(published: Published, timesteps: Timesteps, sampler: Sampler) -> int:
    T = published.card.T
    most = max(1, T - timesteps.offset) if timesteps.spacing == "leading" else T
    usual = {"ddim": _DDIM_STEPS, "dpmpp_2m": _SOLVER_STEPS}
    return min(most, usual.get(sampler, MOST_STEPS))
