"""Algorithm 1, resumable, on the CPU to the bit: every update draws its batch, timesteps and noise from (seed, update) alone."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from models.checkpoints import diffusers_format
from models.diffusion.sampling import from_bytes
from models.networks.unet import UNet
from models.train.data import BadData, Images
from models.train.ema import EMA
from models.train.loss import Diffusion, simple_loss
from models.train.output import make_output
from models.train.precision import autocast, faster_precision
from models.train.recipe import TrainingRecipe
from models.train.state import Counters, load_state, save_state

LOG_EVERY = 50  # updates between two readings of the loss, each of which waits for the device
READ_S = 30.0  # and no longer than this, where updates are slow: on a CPU one of the paper's network takes 13 s


class Diverged(RuntimeError):
    """The loss or a weight is no longer a finite number."""


@dataclass(frozen=True, slots=True)
class TrainingProgress:
    """A reading: `update` of `updates` done, mean loss since the last reading, images per second since then."""

    update: int
    updates: int
    loss: float
    images_per_s: float


@dataclass(slots=True)
class _Stretch:
    """The updates since the last reading. `loss`: the sum of theirs, still on the device."""

    loss: Tensor
    updates: int = 0
    began: float = field(default_factory=time.perf_counter)

    def add(self, loss: Tensor) -> None:
        self.loss += loss
        self.updates += 1

    @property
    def is_over(self) -> bool:
        return self.updates == LOG_EVERY or time.perf_counter() - self.began >= READ_S


class Trainer:
    """Owns the weights, their average and the optimizer. `run` yields a Progress for every LOG_EVERY updates or READ_S."""

    def __init__(
        self, recipe: TrainingRecipe, images: Images, out: Path, device: torch.device
    ) -> None:
        self.recipe, self.images, self.out, self.device = recipe, images, out, device
        options = recipe.training
        make_output(out)
        torch.manual_seed(options.seed)
        self.net = UNet(recipe.network).to(device)
        if (
            device.type == "cuda"
        ):  # on the CPU the plain layout trains faster: 223 against 190 images/s
            self.net = self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stub
        self.parameters = dict(self.net.named_parameters())
        self.ema = EMA(self.parameters, options.ema_decay)
        self.optimizer = torch.optim.Adam(
            self.parameters.values(), options.learning_rate, fused=True
        )
        self.diffusion = Diffusion(diffusers_format.schedule_of(recipe.schedule), device)
        fingerprint = hashlib.sha256(_identity(recipe).encode()).hexdigest()
        saved = load_state(out, fingerprint, images.identity, self.net, self.ema, self.optimizer)
        self.counters = saved or Counters(
            fingerprint, self._choose_precision(), data=images.identity
        )
        self._first = self.counters.update
        self.forward = torch.compile(self.net) if device.type == "cuda" else self.net

    def run(self, stop: Callable[[], bool] = lambda: False) -> Iterator[TrainingProgress]:
        """Train until the recipe's last update, or until `stop` says so; then the state is saved.

        Raises BadData for a picture that cannot be read, with all updates before it saved.
        """
        updates, counters = self.recipe.training.updates, self.counters
        self.net.train()
        self._note_learning_rate()
        stretch = self._stretch()
        while counters.update < updates and not stop():
            try:
                stretch.add(self._update(counters.update))
            except BadData:  # nothing has changed since the update before
                if stretch.updates:
                    self._read(stretch)
                if self.made:
                    self.save_state()
                raise
            counters.update += 1
            if stretch.is_over:
                yield self._read(stretch)
                stretch = self._stretch()
        if stretch.updates:
            yield self._read(stretch)
        self.save_state()

    @property
    def made(self) -> int:
        """Updates since the run was begun or resumed."""
        return self.counters.update - self._first

    @property
    def recent_loss(self) -> float | None:
        """Mean of the last 20 readings; None before the first."""
        recent = [loss for _, loss in self.counters.losses[-20:]]
        return sum(recent) / len(recent) if recent else None

    def save_state(self) -> None:
        """Raises Diverged rather than replace a good state by numbers that are none."""
        moments = [tensor for of_one in self.optimizer.state.values() for tensor in of_one.values()]
        if not _all_finite([*self.parameters.values(), *self.ema.averages.values(), *moments]):
            raise self._diverged("a weight is not finite")
        save_state(self.out, self.counters, self.net, self.ema, self.optimizer)

    def _stretch(self) -> _Stretch:
        return _Stretch(torch.zeros((), device=self.device))

    def _read(self, stretch: _Stretch) -> TrainingProgress:
        """Its loss and seconds, counted; the stretch has one update or more. Raises Diverged."""
        loss = float(stretch.loss) / stretch.updates
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {'infinite' if math.isinf(loss) else 'NaN'}")
        seconds = time.perf_counter() - stretch.began
        self.counters.losses.append((self.counters.update, loss))
        self.counters.seconds += seconds
        images = stretch.updates * self.recipe.training.batch_size
        return TrainingProgress(
            self.counters.update, self.recipe.training.updates, loss, images / seconds
        )

    def _diverged(self, fact: str) -> Diverged:
        remedy = "lower learning_rate or gradient_clip in the recipe and run the same command: it resumes the last state"
        return Diverged(f"{fact} at update {self.counters.update}; {remedy}")

    def _note_learning_rate(self) -> None:
        rates, rate = self.counters.learning_rates, self.recipe.training.learning_rate
        if self.counters.update < self.recipe.training.updates and rates[-1:] != [rate]:
            rates.append(rate)

    def _update(self, n: int) -> Tensor:
        """One pass of the loop of Algorithm 1; the loss, still on the device."""
        options = self.recipe.training
        torch.manual_seed(_mix(options.seed, n))
        x_0 = self._batch(n)
        with autocast(self.counters.precision, self.device):
            loss = simple_loss(self.forward, self.diffusion, x_0, self.recipe.prediction)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), options.gradient_clip)
        rate = options.learning_rate * min(1.0, (n + 1) / max(1, options.warmup_updates))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.ema.update(self.parameters, n)
        return loss.detach()

    def _batch(self, n: int) -> Tensor:
        """Batch of update n: without replacement within an epoch, in [-1, 1], half of it mirrored. (B, C, H, W)."""
        size = self.recipe.training.batch_size
        first = n * size
        epochs = range(first // len(self.images), (first + size - 1) // len(self.images) + 1)
        order = torch.cat([self._order(epoch) for epoch in epochs])
        offset = first - epochs[0] * len(self.images)
        pixels = self.images.batch(order[offset : offset + size])
        if self.device.type == "cuda":
            pixels = (
                pixels.pin_memory()
                .to(self.device, non_blocking=True)
                .to(memory_format=torch.channels_last)
            )
        x_0 = from_bytes(pixels)
        if not self.recipe.data.horizontal_flip:
            return x_0
        mirrored = torch.rand(len(x_0), device=self.device) < 0.5
        return torch.where(mirrored[:, None, None, None], x_0.flip(3), x_0)

    def _order(self, epoch: int) -> Tensor:
        if getattr(self, "_epoch", None) != epoch:
            generator = torch.Generator().manual_seed(_mix(self.recipe.training.seed, -1 - epoch))
            self._epoch, self._permutation = (
                epoch,
                torch.randperm(len(self.images), generator=generator),
            )
        return self._permutation

    def _choose_precision(self) -> str:
        asked = self.recipe.training.precision
        if asked != "auto":
            return asked
        x_0 = self._batch(0)

        def step(precision: str) -> None:
            with autocast(precision, self.device):
                simple_loss(self.net, self.diffusion, x_0, self.recipe.prediction).backward()
            self.net.zero_grad(set_to_none=True)

        return faster_precision(step, self.device)


def _identity(recipe: TrainingRecipe) -> str:
    """What must not change between the parts of one run: all but where it ends, how often it saves, what its card says, and
    what a run that diverged is resumed with."""
    free = {
        "updates",
        "save_every_s",
        "sample_every_s",
        "sample_steps",
        "learning_rate",
        "gradient_clip",
    }
    return recipe.model_dump_json(
        exclude={"card": True, "data": {"path", "name", "licence"}, "training": free}
    )


def _all_finite(tensors: list[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _mix(seed: int, n: int) -> int:
    """A 63-bit generator seed from two integers."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{n}".encode(), digest_size=8).digest()) >> 1
