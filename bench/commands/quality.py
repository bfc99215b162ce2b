"""The cost of few steps: how far each sampler's images are from Fashion-MNIST's.

`python -m bench.commands.quality` measures the Fréchet distance between two Gaussians, as in FID.
But they are fitted to features of a small classifier that is trained here first, because
Inception's weights are no part of this project. So compare figures within a table, and with no
other FID. The distance has no unit.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor, nn
from torch.nn import functional as F

from bench.lib.machine import default_device
from bench.lib.model import DEFAULT, load
from bench.lib.report import OUT, Out, Report
from bench.lib.work import Images, draw
from models.diffusion.plans import Plan
from models.diffusion.sampling import from_bytes
from models.train.data.source import open_images
from worker.engine.chain import ChainRequest
from worker.process.loaded_model import LoadedModel

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
SAMPLERS = {
    "ddpm, fixed_small": ("ddpm", "fixed_small"),
    "ddpm, fixed_large": ("ddpm", "fixed_large"),
    "ddpm, analytic": ("ddpm", "analytic"),
    "ddim": ("ddim", "fixed_small"),
    "dpmpp_2m": ("dpmpp_2m", "fixed_small"),
}
_FEATURES = 64
_EPOCHS = 2
_BATCH = 256


@dataclass(frozen=True, slots=True)
class Gaussian:
    """A normal distribution of D features.

    Attributes:
        mean: Float64 (D,).
        covariance: Float64 (D, D).
    """

    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def fitted_to(cls, features: Tensor) -> Gaussian:
        """Return the Gaussian with the mean and covariance of `features`, float (N, D)."""
        values = features.double().numpy()
        return cls(values.mean(0), np.cov(values, rowvar=False))

    def distance(self, other: Gaussian) -> float:
        """Return |mean - mean'|^2 + tr(C + C' - 2 (C C')^1/2) (Dowson and Landau, 1982)."""
        values, vectors = np.linalg.eigh(self.covariance)
        root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
        shared = np.sqrt(np.linalg.eigvalsh(root @ other.covariance @ root).clip(0)).sum()
        apart = np.square(self.mean - other.mean).sum()
        return float(apart + np.trace(self.covariance) + np.trace(other.covariance) - 2 * shared)


class Classifier(nn.Module):
    """A classifier of 28x28 grey images into ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(64 * 7 * 7, _FEATURES), nn.ReLU()),
        )
        self.last = nn.Linear(_FEATURES, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, 10) of images (B, 1, 28, 28) in [-1, 1]."""
        logits: Tensor = self.last(self.body(x))
        return logits

    @torch.inference_mode()
    def features(self, pixels: Tensor) -> Tensor:
        """Return what the last layer reads, (N, D), for uint8 images (N, 1, 28, 28)."""
        return torch.cat([self.body(from_bytes(part)) for part in pixels.split(_BATCH)])


def read_labels(path: Path) -> Tensor:
    """Read the labels, uint8 (N,), from a gzipped IDX file of bytes with one dimension."""
    content = gzip.decompress(path.read_bytes())
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=8).copy())


def train_classifier(pixels: Tensor, labels: Tensor, epochs: int = _EPOCHS) -> Classifier:
    """Train a classifier with Adam, from a fixed seed.

    Args:
        pixels: Uint8 images (N, 1, 28, 28).
        labels: Their classes, uint8 (N,).
        epochs: Passes over them.
    """
    torch.manual_seed(0)
    net = Classifier()
    adam = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(pixels)).split(_BATCH):
            adam.zero_grad()
            F.cross_entropy(net(from_bytes(pixels[batch])), labels[batch].long()).backward()
            adam.step()
    return net.eval()


def main(
    images: Annotated[
        int, typer.Option(min=_FEATURES + 1, help="Pictures of each sampler and number of steps")
    ] = 512,
    steps: Annotated[
        list[int] | None, typer.Option(help="Again for more of them; default: 10, 25 and 50")
    ] = None,
    data: Annotated[
        Path, typer.Option(help="Folder of Fashion-MNIST's four files")
    ] = FASHION_MNIST,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1")] = default_device(),
    out: Out = OUT,
) -> None:
    """Measure the distances of the shipped model's images from the test images."""
    steps = steps or [10, 25, 50]
    train, test = (
        open_images(data / f"{part}-images-idx3-ubyte.gz", 28, 1) for part in ("train", "t10k")
    )
    if images > len(train):
        fault = (
            f"{images} is more than the {len(train)} training pictures to compare with; "
            f"give {len(train)} or fewer"
        )
        raise typer.BadParameter(fault, param_hint="--images")
    report = Report(out, "quality", device)
    every = torch.arange(len(train))
    net = train_classifier(train.batch(every), read_labels(data / "train-labels-idx1-ubyte.gz"))
    real = Gaussian.fitted_to(net.features(test.batch(torch.arange(len(test)))))
    some = train.batch(every[:: len(train) // images][:images])
    floor = Gaussian.fitted_to(net.features(some)).distance(real)
    report.say(f"{images} pictures each, of seed 0; as many of the training set: {floor:.2f}.\n")
    model = load(DEFAULT, device, images)
    distances = {
        name: [
            Gaussian.fitted_to(net.features(drawn)).distance(real)
            for drawn in draw_images(model, name, steps, images)
        ]
        for name in SAMPLERS
    }
    report.table(
        ["", *(f"{K} steps" for K in steps)],
        [[name, *(f"{distance:.2f}" for distance in row)] for name, row in distances.items()],
    )
    with report.plot() as axes:
        for name, row in distances.items():
            axes.plot(steps, row, "o-", label=name)
        axes.axhline(floor, color="grey", linestyle=":", label="training pictures")
        axes.set(xlabel="steps", ylabel="Fréchet distance", xscale="log", yscale="log")
        axes.legend()


def draw_images(model: LoadedModel, name: str, steps: list[int], images: int) -> Iterator[Tensor]:
    """Yield uint8 images (N, C, H, W) for each number of steps.

    As many are drawn at once as the model has room for.

    Args:
        model: The model to sample from.
        name: Key of SAMPLERS.
        steps: Numbers of steps.
        images: N.
    """
    sampler, variance = SAMPLERS[name]
    for K in steps:
        plan: Plan = model.plan(sampler, K, variance, 0.0)
        requests = [ChainRequest(index, "quality", plan, 0, index) for index in range(images)]
        drawn: Images = {}
        for first in range(0, images, model.capacity):
            drawn |= draw(model.engine, requests[first : first + model.capacity])
        yield torch.stack([drawn[index] for index in range(images)])


if __name__ == "__main__":
    typer.run(main)
