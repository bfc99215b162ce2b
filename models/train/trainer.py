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
from torch.func import functional_call

from models.checkpoints import scheduler_config
from models.diffusion.sampling import Network, from_bytes
from models.networks.unet import UNet
from models.networks.unet_config import OUR_OPTIONS
from models.train.classes import check_classes, choose_classes, network_of, rows_of
from models.train.data.images import BadData, Images
from models.train.ema import EMA
from models.train.loss import Diffusion, simple_loss
from models.train.output import make_output
from models.train.precision import autocast, faster_precision
from models.train.recipe import TrainingRecipe
from models.train.start import Pretrained
from models.train.state import (
    OLD_WARMUP_UPDATES,
    BadState,
    Counters,
    load_state,
    read_classes,
    save_state,
)

# Updates between two readings of the loss. Each reading waits for the device.
LOG_EVERY = 50
# The longest time between two readings: an update of the paper's network takes 13 s on a CPU.
READ_S = 30.0
# Held-out images that a validation loss is measured on, at most.
VALIDATED_IMAGES = 256
# Draws of these have seeds that no update and no epoch has.
_VALIDATION = -(2**62)
_SPLIT = _VALIDATION + 1


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
        *,
        compiled: bool = True,
        pretrained: Pretrained | None = None,
    ) -> None:
        """Begin a run, or resume the one that is saved in `out`.

        Args:
            recipe: What to train, and how.
            images: What to train on.
            out: The run's folder, which is made if it is missing.
            device: Where to train.
            clock: Tells the time, in seconds.
            compiled: Whether `torch.compile` makes the network faster on CUDA.
            pretrained: The model that a new run goes on from. None: random weights.

        Raises:
            BadOutput: The folder cannot be made.
            BadState: The folder's state is damaged, or is of another run.
            BadData: An image cannot be read, or has no class where the recipe has classes.
            BadRecipe: The recipe is not of the network that the run goes on from, or does not fit
                the classes.
        """
        known = pretrained.classes if pretrained else choose_classes(recipe, images)
        self.classes = read_classes(out) or known
        check_classes(recipe, self.classes)
        if pretrained:
            pretrained.check(recipe, network_of(recipe, self.classes))
        self.recipe = recipe
        self.images = images
        self.out = out
        self.device = device
        self._clock = clock
        options = recipe.training
        make_output(out)
        torch.manual_seed(options.seed)
        self.net = UNet(network_of(recipe, self.classes)).to(device)
        if pretrained:
            self.net.load_state_dict(pretrained.checkpoint.net.state_dict())
        # On the CPU the plain layout trains faster: 223 against 190 images/s.
        if device.type == "cuda":
            # torch's stub lacks this overload
            self.net = self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.parameters = dict(self.net.named_parameters())
        self.ema = EMA(self.parameters, options.ema_decay)
        weights = self.parameters.values()
        self.optimizer = torch.optim.Adam(weights, options.learning_rate, fused=True)
        self.diffusion = Diffusion(scheduler_config.schedule_of(recipe.schedule), device)
        self._rows: Tensor | None = None
        if self.classes and images.labels:
            self._rows = rows_of(images.labels, self.classes)
        self._trained, self._held_out = _split(len(images), recipe.data.held_out, options.seed)
        self._epoch: int | None = None
        self._permutation = torch.empty(0, dtype=torch.int64)
        fingerprint = hashlib.sha256(_identity(recipe).encode()).hexdigest()
        saved = load_state(out, fingerprint, images, self.net, self.ema, self.optimizer)
        self.counters = saved or self._begin(fingerprint, pretrained)
        if pretrained and self.counters.began_from != pretrained.checkpoint.sha256:
            raise BadState(
                f"{out} has a run that did not begin from {pretrained.name};"
                " use another --out, or leave out --from"
            )
        self._is_saved = saved is not None
        self._first = self.counters.update
        # The order of sums depends on their number.
        if device.type == "cpu" and self.counters.threads:
            torch.set_num_threads(self.counters.threads)
        self.forward = torch.compile(self.net) if compiled and device.type == "cuda" else self.net

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
    def warmup_updates(self) -> int:
        """Updates in which the learning rate rises. A run that is prolonged keeps its own."""
        given = self.recipe.training.warmup_updates
        return self.counters.warmup_updates if given is None else given

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
        parts = self.net, self.ema, self.optimizer
        save_state(self.out, self.counters, self.images.names, *parts)
        self._is_saved = True

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
        then = "resumes the last state" if self._is_saved else "begins anew, as no state was saved"
        remedy = (
            "lower learning_rate or gradient_clip in the recipe and run the same command:"
            f" it {then}"
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
        net = self._with_classes(self.forward, self.classes_of(n))
        with autocast(self.counters.precision, self.device):
            loss = simple_loss(net, self.diffusion, x_0, self.recipe.prediction)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), options.gradient_clip)
        rate = options.learning_rate * min(1.0, (n + 1) / max(1, self.warmup_updates))
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
        x_0 = self._x_0(self.drawn(n))
        if not self.recipe.data.horizontal_flip:
            return x_0
        mirrored = torch.rand(len(x_0), device=self.device) < 0.5
        return torch.where(mirrored[:, None, None, None], x_0.flip(3), x_0)

    def classes_of(self, n: int) -> Tensor | None:
        """Return the embedding's rows of the batch of update n, int64 (B,) on the device.

        A share of them, `label_dropout`, are the null class (Ho and Salimans, 2022). Which, is
        drawn from torch's generator. None where the network takes no classes.
        """
        if self._rows is None or self.classes is None:
            return None
        rows = self._rows[self.drawn(n)].to(self.device)
        if self.classes.null is None:
            return rows
        dropped = torch.rand(len(rows), device=self.device) < self.recipe.label_dropout
        return rows.masked_fill(dropped, self.classes.null)

    def drawn(self, n: int) -> Tensor:
        """Return the indices of the images of update n, (B,)."""
        size = self.recipe.training.batch_size
        first = n * size
        count = len(self._trained)
        epochs = range(first // count, (first + size - 1) // count + 1)
        order = torch.cat([self._order(epoch) for epoch in epochs])
        offset = first - epochs[0] * count
        return order[offset : offset + size]

    @staticmethod
    def _with_classes(net: Callable[..., Tensor], rows: Tensor | None) -> Network:
        """Give the network its classes, int64 (B,)."""
        return net if rows is None else lambda x, t: net(x, t, rows)

    def _x_0(self, indices: Tensor) -> Tensor:
        """Read images, float32 (B, C, H, W) in [-1, 1] on the device. Raises BadData."""
        pixels = self.images.batch(indices)
        if self.device.type == "cuda":
            pixels = pixels.pin_memory().to(self.device, non_blocking=True)
            pixels = pixels.to(memory_format=torch.channels_last)
        return from_bytes(pixels)

    @torch.no_grad()
    def validate(self) -> float | None:
        """Measure the loss of the averaged weights on held-out images, and note it.

        Each time these are the same images, timesteps and noise. Each image has its own class.

        Returns:
            The mean loss; None where the recipe holds nothing out, or it was measured already.

        Raises:
            BadData: An image cannot be read.
        """
        indices = self._held_out[:VALIDATED_IMAGES]
        measured = self.counters.validation
        if not len(indices) or (measured and measured[-1][0] == self.counters.update):
            return None
        torch.manual_seed(_mix(self.recipe.training.seed, _VALIDATION))
        self.net.eval()
        total = 0.0
        for part in indices.split(self.recipe.training.batch_size):
            rows = None if self._rows is None else self._rows[part].to(self.device)
            net = self._with_classes(self.averaged, rows)
            with autocast(self.counters.precision, self.device):
                loss = simple_loss(net, self.diffusion, self._x_0(part), self.recipe.prediction)
            total += float(loss) * len(part)
        self.net.train()
        found = total / len(indices)
        measured.append((self.counters.update, found))
        return found

    def averaged(self, x: Tensor, t: Tensor, rows: Tensor | None = None) -> Tensor:
        """Run the network with the averaged weights: x (B, C, H, W), t and rows int64 (B,)."""
        out: Tensor = functional_call(self.net, self.ema.averages, (x, t, rows))
        return out

    def _order(self, epoch: int) -> Tensor:
        """Shuffle the images' indices for an epoch, (N,)."""
        if self._epoch != epoch:
            generator = torch.Generator().manual_seed(_mix(self.recipe.training.seed, -1 - epoch))
            shuffled = torch.randperm(len(self._trained), generator=generator)
            self._permutation = self._trained[shuffled]
            self._epoch = epoch
        return self._permutation

    def _begin(self, fingerprint: str, pretrained: Pretrained | None) -> Counters:
        threads = torch.get_num_threads() if self.device.type == "cpu" else 0
        data = self.images.identity
        warmup = self.recipe.training.warmup_as_it_begins
        precision = self._choose_precision()
        counters = Counters(fingerprint, precision, data=data, threads=threads)
        counters.warmup_updates = warmup
        counters.classes = self.classes.model_dump() if self.classes else None
        if pretrained:
            counters.began_from = pretrained.checkpoint.sha256
            counters.began_from_name = pretrained.name
        return counters

    def _choose_precision(self) -> str:
        asked = self.recipe.training.precision
        if asked != "auto":
            return asked
        x_0 = self.batch(0)
        net = self._with_classes(self.net, self.classes_of(0))

        def step(precision: str) -> None:
            with autocast(precision, self.device):
                simple_loss(net, self.diffusion, x_0, self.recipe.prediction).backward()
            self.net.zero_grad(set_to_none=True)

        return faster_precision(step, self.device, self._clock)


def _identity(recipe: TrainingRecipe) -> str:
    """Serialise what must not change between the parts of one run.

    These may change: where the run ends, how often it saves, what its card says, and the options
    that a run that diverged is resumed with.
    """
    free = {"updates", "save_every_s", "sample_every_s", "sample_steps"}
    free |= {"learning_rate", "gradient_clip", "tensorboard"}
    about = {"path", "name", "licence"}
    # Nothing is held out of runs of older versions.
    if not recipe.data.held_out:
        about.add("held_out")
    if not recipe.data.classes:
        about.add("classes")
        free.add("label_dropout")
    # options of networks that older versions did not have
    # A run that began before the network had these does not name them.
    newer = {name for name in OUR_OPTIONS if getattr(recipe.network, name) is None}
    training = recipe.training
    if training.warmup_updates is None:
        training = training.model_copy(update={"warmup_updates": OLD_WARMUP_UPDATES})
    return recipe.model_copy(update={"training": training}).model_dump_json(
        exclude={"card": True, "data": about, "network": newer, "training": free}
    )


def _split(images: int, held_out: float, seed: int) -> tuple[Tensor, Tensor]:
    """Part the indices into those that are trained on and those that are held out.

    Raises:
        BadData: There is only one image, and a part of it is to be held out.
    """
    if not held_out:
        return torch.arange(images), torch.arange(0)
    if images < 2:
        raise BadData("data.held_out takes a part of the images, and there is only one; remove it")
    generator = torch.Generator().manual_seed(_mix(seed, _SPLIT))
    shuffled = torch.randperm(images, generator=generator)
    count = min(images - 1, max(1, round(images * held_out)))
    return shuffled[count:].sort().values, shuffled[:count].sort().values


def _all_finite(tensors: list[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _mix(seed: int, n: int) -> int:
    """Make a 63-bit generator seed from two integers."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{n}".encode(), digest_size=8).digest()) >> 1
