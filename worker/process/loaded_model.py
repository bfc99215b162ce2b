"""A model in a worker: its engine, and the plans of the jobs that it runs."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from models.checkpoints import diffusers_format
from models.checkpoints.catalog import Card, Catalog
from models.checkpoints.residual_variance import ResidualVariance
from models.diffusion.options import Sampler, Variance
from models.diffusion.plans import Plan, compile_plan
from worker.calibration.adaptive_threads import AdaptiveThreads
from worker.calibration.cache import CalibrationCache
from worker.calibration.calibrate import compute_by
from worker.calibration.tune import tune
from worker.engine.batch_sizes import BatchSizes
from worker.engine.chain import ChainRequest, Finished, Snapshot
from worker.engine.engine import Engine
from worker.engine.plan_cache import PlanCache
from worker.engine.snapshot_codec import BadSnapshot, unpack
from worker.jobs.domain import Precision, Recipe, Shard
from worker.jobs.policy import HOLDS
from worker.jobs.worker_registry import ModelInfo

log = logging.getLogger(__name__)


class CannotRun(Exception):
    """This worker cannot make what the job asks for. The code and the text are for the client.

    Attributes:
        code: `wrong_weights`, `wrong_residual_variance` or `unknown_version`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class LoadedModel:
    """A network that is calibrated for this machine, in an engine that runs jobs with it.

    Attributes:
        card: what the catalog says of the model.
        schedule: the noise schedule that the network was trained with.
        prediction: what the network predicts.
        calibration: what a step of each batch size takes.
        precision: precision of the network's weights and activations.
        kernels: whose kernels compute it.
        capacity: images that the pool holds.
        engine: steps the chains.
        plan: compiles the plan of a sampler, steps, variance and eta, or finds it in its cache.
    """

    def __init__(
        self,
        catalog: Catalog,
        name: str,
        device: torch.device,
        capacity: int,
        precision: Precision | Literal["auto"] = "auto",
        cache: CalibrationCache | None = None,
    ) -> None:
        """Load and calibrate a model.

        Args:
            catalog: the models that there are.
            name: the model's name in the catalog.
            device: where the network runs.
            capacity: images that the pool is to hold, at most.
            precision: `auto` takes bf16 where it is enough faster.
            cache: earlier calibrations.

        Raises:
            BadCheckpoint: the model's folder cannot be served.
        """
        self.card: Card = catalog[name]
        loaded = diffusers_format.load(catalog.folder(name), self.card.sha256)
        self.schedule = loaded.schedule
        self.prediction = loaded.prediction
        self._residual_variance = self._read_residual_variance(catalog.folder(name))
        shape = (self.card.shape.channels, self.card.shape.height, self.card.shape.width)
        tuned = tune(loaded, self.card.sha256, shape, device, capacity, precision, cache)
        self.calibration = tuned.calibration
        self.precision = tuned.precision
        self.kernels = tuned.kernels
        self.capacity = tuned.pool.capacity
        self._threads = AdaptiveThreads(self.calibration.threads, self.calibration.fewer)
        self._batch_sizes = {
            n: BatchSizes(self.calibration.seconds_by(n))
            for n in (self.calibration.threads, self.calibration.fewer)
        }
        self.engine = Engine(tuned.pool, self.calibration.seconds)
        self.plan = PlanCache(self._plan)
        log.info(
            "%s on %s in %s by %s: %s", name, device, self.precision, self.kernels, self.calibration
        )

    @property
    def info(self) -> ModelInfo:
        """Precision, kernels, threads and speed of the model, as it runs now."""
        return ModelInfo(
            self.precision, self.kernels, self._threads.count, self.engine.batch_sizes.seconds
        )

    @property
    def low_water(self) -> int:
        """Bulk images at hand below which the worker takes more of them."""
        return HOLDS * self.engine.batch_sizes.largest

    @property
    def is_interactive(self) -> bool:
        """Tell whether interactive images are in the engine."""
        return self.engine.is_interactive

    @property
    def lone_s(self) -> float:
        """Seconds that a step of one chain takes, as calibration found."""
        return self.promised_s(1)

    def step(
        self, only: Sequence[Hashable] | None = None, within_s: float = math.inf
    ) -> list[Finished]:
        """Step the engine, with as many threads as serve it best now.

        Always call this from the same thread.

        Args:
            only: the chains that may step; all may if None.
            within_s: upper bound on the step's duration; larger batches are not considered.

        Returns:
            The images that have left the engine.
        """
        compute_by(self._threads.count)
        self.engine.batch_sizes = self._batch_sizes[self._threads.count]
        began = time.monotonic()
        done_before = self.engine.image_steps
        finished = self.engine.step(only, within_s)
        if chains := self.engine.image_steps - done_before:
            size = self.engine.batch_sizes.size_for(chains)
            self._threads.note(time.monotonic() - began, self.calibration.seconds[size])
        return finished

    def moved(self) -> set[str]:
        """Return the ids of the shards of which a chain has stepped since the last call."""
        return {cast("tuple[str, int]", chain)[0] for chain in self.engine.moved()}

    def promised_s(self, chains: int) -> float:
        """Return the seconds that calibration found for a step of so many chains.

        They are for as many threads as took the last step.
        """
        return self.engine.batch_sizes.seconds[self.engine.batch_sizes.size_for(chains)]

    @property
    def chain_bytes(self) -> int:
        """Bytes of x and x_0_hat of one chain."""
        return 2 * self.engine.pool.x[0].nbytes

    def knows(self, recipe: Recipe) -> bool:
        """Tell whether this version of the service has the recipe's sampler and variance."""
        return recipe.sampler in get_args(Sampler) and recipe.variance in get_args(Variance)

    def admit(self, shard: Shard, indices: list[int], saved: bytes | None) -> None:
        """Submit the shard's images to the engine, each from where it was saved.

        Args:
            shard: whose images they are.
            indices: the images to make.
            saved: the shard's packed chains, or None.

        Raises:
            CannotRun: this worker cannot make what the shard's recipe asks for.
        """
        requests = {request.index: request for request in self._requests(shard, indices)}
        snapshots = self._unpacked(saved, requests, shard.id) if saved else []
        if snapshots:
            log.info(
                "shard %s: %d images resume, from step %d on",
                shard.id,
                len(snapshots),
                min(s.row for s in snapshots),
            )
        self.engine.restore(snapshots)
        resumed = {snapshot.request.index for snapshot in snapshots}
        self.engine.submit([request for index, request in requests.items() if index not in resumed])

    def _unpacked(
        self, saved: bytes, requests: dict[int, ChainRequest], shard_id: str
    ) -> list[Snapshot]:
        try:
            return unpack(saved, requests, self.engine.pool.shape, self.precision)
        except BadSnapshot as error:
            log.warning(
                "shard %s begins anew: what was saved of it cannot be used (%s)", shard_id, error
            )
            return []

    def _requests(self, shard: Shard, indices: list[int]) -> list[ChainRequest]:
        recipe = shard.recipe
        self._check_weights(recipe)
        self._check_residual_variance(recipe)
        try:
            plan = self.plan(recipe.sampler, recipe.steps, recipe.variance, recipe.eta)
        except ValueError as error:
            raise CannotRun("unknown_version", f"the worker has no such plan: {error}") from None
        interactive = shard.priority == "interactive"
        return [
            ChainRequest((shard.id, i), shard.job, plan, recipe.seed, i, shard.owner, interactive)
            for i in indices
        ]

    def _check_weights(self, recipe: Recipe) -> None:
        if recipe.weights == self.card.sha256:
            return
        asked, loaded = recipe.weights[:12], self.card.sha256[:12]
        message = (
            f"the job asks for weights {asked} of {recipe.model!r}, the worker has {loaded}; "
            "post it again when all of the service has been restarted"
        )
        raise CannotRun("wrong_weights", message)

    def _check_residual_variance(self, recipe: Recipe) -> None:
        loaded = self.card.residual_variance or ""
        if recipe.residual_variance == (loaded if recipe.variance == "analytic" else ""):
            return
        message = (
            f"the job asks for residual variance {recipe.residual_variance[:12] or 'none'} of "
            f"{recipe.model!r}, the worker has {loaded[:12] or 'none'}; "
            "post it again when all of the service has been restarted"
        )
        raise CannotRun("wrong_residual_variance", message)

    def _plan(self, sampler: str, steps: int, variance: str, eta: float) -> Plan:
        return compile_plan(
            self.schedule,
            steps,
            cast("Sampler", sampler),
            variance=cast("Variance", variance),
            eta=eta,
            prediction=self.prediction,
            residual_variance=self._residual_variance,
        )

    def _read_residual_variance(self, folder: Path) -> Tensor | None:
        if self.card.residual_variance is None:
            return None
        estimate = ResidualVariance.read(
            folder, self.card.sha256, self.schedule.T, self.card.residual_variance
        )
        return estimate.tensor
