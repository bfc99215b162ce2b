"""Algorithm 1, resumable: on the CPU, a run in parts has the bits of a run in one.

Every update draws its batch, timesteps and noise from (seed, update) alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

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

# Updates between two readings of the loss. Each reading waits for the device.
LOG_EVERY = 50
# The longest time between two readings: an update of the paper's network takes 13 s on a CPU.
READ_S = 30.0


class Diverged(RuntimeError):
    """The loss or a weight is no longer a finite number."""


@dataclass(frozen=True, slots=True)
class TrainingProgress:
    """A reading of a run.

    Attributes:
        update: Updates done.
        updates: Updates that the recipe asks for.
        loss: The mean loss since the last reading.
        images_per_s: Images per second since then.
    """

    update: int
    updates: int
    loss: float
    images_per_s: float


@dataclass(slots=True)
class _Stretch:
    """The updates since the last reading. `loss` is the sum of theirs, still on the device."""

    loss: Tensor
    began_s: float
    updates: int = 0

    def add(self, loss: Tensor) -> None:
        self.loss += loss
        self.updates += 1

    def is_over(self, now_s: float) -> bool:
        return self.updates == LOG_EVERY or now_s - self.began_s >= READ_S


class Trainer:
    """Trains a network: owns its weights, their average and the optimizer."""

    def __init__(
        self,
        recipe: TrainingRecipe,
        images: Images,
        out: Path,
        device: torch.device,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        """Begin a run, or resume the one that is saved in `out`.

        Args:
            recipe: What to train, and how.
            images: What to train on.
            out: The run's folder, which is made if it is missing.
            device: Where to train.
            clock: Tells the time, in seconds.

        Raises:
            BadOutput: The folder cannot be made.
            BadState: The folder's state is damaged, or is of another run.
            BadData: An image cannot be read.
        """
        self.recipe = recipe
        self.images = images
        self.out = out
        self.device = device
        self._clock = clock
        options = recipe.training
        make_output(out)
        torch.manual_seed(options.seed)
        self.net = UNet(recipe.network).to(device)
        # On the CPU the plain layout trains faster: 223 against 190 images/s.
        if device.type == "cuda":
            # torch's stub lacks this overload
            self.net = self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.parameters = dict(self.net.named_parameters())
        self.ema = EMA(self.parameters, options.ema_decay)
        weights = self.parameters.values()
        self.optimizer = torch.optim.Adam(weights, options.learning_rate, fused=True)
        self.diffusion = Diffusion(diffusers_format.schedule_of(recipe.schedule), device)
        self._epoch: int | None = None
        self._permutation = torch.empty(0, dtype=torch.int64)
        fingerprint = hashlib.sha256(_identity(recipe).encode()).hexdigest()
        data = images.identity
        saved = load_state(out, fingerprint, data, self.net, self.ema, self.optimizer)
        self.counters = saved or Counters(fingerprint, self._choose_precision(), data=data)
        self._first = self.counters.update
        self.forward = torch.compile(self.net) if device.type == "cuda" else self.net

    def run(self, stop: Callable[[], bool] = lambda: False) -> Iterator[TrainingProgress]:
        """Train until the recipe's last update, or until `stop` returns True; then save the state.

        Yields:
            A reading after every LOG_EVERY updates, or after READ_S seconds.

        Raises:
            BadData: An image cannot be read. All updates before it are saved.
            BadOutput: The state cannot be written.
            Diverged: The loss or a weight is not a finite number.
        """
        updates = self.recipe.training.updates
        counters = self.counters
        self.net.train()
        self._note_learning_rate()
        stretch = self._stretch()
        while counters.update < updates and not stop():
            try:
                stretch.add(self.update(counters.update))
            # Nothing has changed since the update before.
            except BadData:
                if stretch.updates:
                    self._read(stretch)
                if self.made:
                    self.save_state()
                raise
            counters.update += 1
            if stretch.is_over(self._clock()):
                yield self._read(stretch)
                stretch = self._stretch()
        if stretch.updates:
            yield self._read(stretch)
        self.save_state()

    @property
    def made(self) -> int:
        """Number of updates since the run was begun or resumed."""
        return self.counters.update - self._first

    @property
    def recent_loss(self) -> float | None:
        """Mean of the last 20 readings; None before the first."""
        recent = [loss for _, loss in self.counters.losses[-20:]]
        return sum(recent) / len(recent) if recent else None

    def save_state(self) -> None:
        """Save the state.

        Raises:
            Diverged: A weight is not a finite number. The state that was saved before stays.
            BadOutput: The state cannot be written.
        """
        states = self.optimizer.state.values()
        moments = [tensor for state in states for tensor in state.values()]
        if not _all_finite([*self.parameters.values(), *self.ema.averages.values(), *moments]):
            raise self._diverged("a weight is not finite")
        save_state(self.out, self.counters, self.net, self.ema, self.optimizer)

    def _stretch(self) -> _Stretch:
        return _Stretch(torch.zeros((), device=self.device), self._clock())

    def _read(self, stretch: _Stretch) -> TrainingProgress:
        """Count the loss and the seconds of a stretch of one update or more. Raises Diverged."""
        loss = float(stretch.loss) / stretch.updates
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {'infinite' if math.isinf(loss) else 'NaN'}")
        seconds = self._clock() - stretch.began_s
        self.counters.losses.append((self.counters.update, loss))
        self.counters.seconds += seconds
        options = self.recipe.training
        images_per_s = stretch.updates * options.batch_size / seconds
        return TrainingProgress(self.counters.update, options.updates, loss, images_per_s)

    def _diverged(self, fact: str) -> Diverged:
        remedy = (
            "lower learning_rate or gradient_clip in the recipe and run the same command:"
            " it resumes the last state"
        )
        return Diverged(f"{fact} at update {self.counters.update}; {remedy}")

    def _note_learning_rate(self) -> None:
        rates = self.counters.learning_rates
        rate = self.recipe.training.learning_rate
        if self.counters.update < self.recipe.training.updates and rates[-1:] != [rate]:
            rates.append(rate)

    def update(self, n: int) -> Tensor:
        """Take update n, one pass of Algorithm 1's loop, and return its loss, still on the device.

        Raises:
            BadData: An image cannot be read.
        """
        options = self.recipe.training
        torch.manual_seed(_mix(options.seed, n))
        x_0 = self.batch(n)
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

    def batch(self, n: int) -> Tensor:
        """Draw the batch of update n, float32 (B, C, H, W) in [-1, 1].

        It is drawn without replacement within an epoch. Half of it is mirrored, if the recipe says
        so.

        Raises:
            BadData: An image cannot be read.
        """
        size = self.recipe.training.batch_size
        first = n * size
        epochs = range(first // len(self.images), (first + size - 1) // len(self.images) + 1)
        order = torch.cat([self._order(epoch) for epoch in epochs])
        offset = first - epochs[0] * len(self.images)
        pixels = self.images.batch(order[offset : offset + size])
        if self.device.type == "cuda":
            pixels = pixels.pin_memory().to(self.device, non_blocking=True)
            pixels = pixels.to(memory_format=torch.channels_last)
        x_0 = from_bytes(pixels)
        if not self.recipe.data.horizontal_flip:
            return x_0
        mirrored = torch.rand(len(x_0), device=self.device) < 0.5
        return torch.where(mirrored[:, None, None, None], x_0.flip(3), x_0)

    def _order(self, epoch: int) -> Tensor:
        """Shuffle the images' indices for an epoch, (N,)."""
        if self._epoch != epoch:
            generator = torch.Generator().manual_seed(_mix(self.recipe.training.seed, -1 - epoch))
            self._permutation = torch.randperm(len(self.images), generator=generator)
            self._epoch = epoch
        return self._permutation

    def _choose_precision(self) -> str:
        asked = self.recipe.training.precision
        if asked != "auto":
            return asked
        x_0 = self.batch(0)

        def step(precision: str) -> None:
            with autocast(precision, self.device):
                simple_loss(self.net, self.diffusion, x_0, self.recipe.prediction).backward()
            self.net.zero_grad(set_to_none=True)

        return faster_precision(step, self.device, self._clock)


def _identity(recipe: TrainingRecipe) -> str:
    """Serialise what must not change between the parts of one run.

    These may change: where the run ends, how often it saves, what its card says, and the options
    that a run that diverged is resumed with.
    """
    free = {"updates", "save_every_s", "sample_every_s", "sample_steps"}
    free |= {"learning_rate", "gradient_clip"}
    return recipe.model_dump_json(
        exclude={"card": True, "data": {"path", "name", "licence"}, "training": free}
    )


def _all_finite(tensors: list[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _mix(seed: int, n: int) -> int:
    """Make a 63-bit generator seed from two integers."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{n}".encode(), digest_size=8).digest()) >> 1
