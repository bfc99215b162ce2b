"""A model in a worker: its engine, and the plans of the jobs that it runs."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from models.checkpoints import diffusers_format
from models.checkpoints.catalog import Card, Catalog
from models.checkpoints.diffusers_format import Checkpoint
from models.checkpoints.residual_variance import ResidualVariance
from models.diffusion.options import Sampler, Variance
from models.diffusion.plans import Plan
from models.diffusion.schedule import Schedule
from worker.backends.host import WHOLE_HOST, HostShare
from worker.calibration.adaptive_threads import AdaptiveThreads
from worker.calibration.cache import CalibrationCache
from worker.calibration.calibrate import Between, compute_by
from worker.calibration.tune import tune
from worker.engine.batch_sizes import BatchSizes
from worker.engine.chain import ChainRequest, Finished, Snapshot
from worker.engine.engine import Engine
from worker.engine.plan_cache import PlanCache
from worker.engine.snapshot_codec import BadSnapshot, SavedChains
from worker.jobs.domain import NO_GUIDANCE, Precision, Recipe, Shard
from worker.jobs.worker_registry import ModelInfo
from worker.logs import event

log = logging.getLogger(__name__)


class CannotRun(Exception):
    """This worker cannot make what the job asks for. The code and the text are for the client.

    Attributes:
        code: `wrong_weights`, `wrong_residual_variance`, `wrong_classes` or `unknown_version`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def knows(recipe: Recipe) -> bool:
    """Tell whether this version of the service has a recipe's sampler and variance."""
    return recipe.sampler in get_args(Sampler) and recipe.variance in get_args(Variance)


class LoadedModel:
    """A network that is calibrated for this machine, in an engine that runs jobs with it.

    Attributes:
        card: what the catalog says of the model.
        process: what the network was trained on, with the card's choice of timesteps.
        calibration: what a step of each batch size takes.
        precision: precision of the network's weights and activations.
        kernels: whose kernels compute it.
        fingerprint: the hash of the bits of some chains. Workers with the same one draw the same
            images.
        capacity: images that the pool holds.
        engine: steps the chains.
        chain_bytes: bytes of x and x_0_hat of one chain.
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
        share: HostShare = WHOLE_HOST,
        checkpoint: Checkpoint | None = None,
        between: Between = lambda: None,
    ) -> None:
        """Load and calibrate a model.

        Args:
            catalog: the models that there are.
            name: the model's name in the catalog.
            device: where the network runs.
            capacity: images that the pool is to hold, at most.
            precision: `auto` takes bf16 where it is enough faster.
            cache: earlier calibrations.
            share: what the model may use of the machine.
            checkpoint: the model's network, if another thread has read it already.
            between: is called between the steps that are measured.

        Raises:
            BadCheckpoint: the model's folder cannot be served.
        """
        self.card: Card = catalog[name]
        loaded = checkpoint or diffusers_format.load(catalog.folder(name), self.card.sha256)
        timesteps = self.card.timesteps
        self.process = replace(loaded.process, spacing=timesteps.spacing, offset=timesteps.offset)
        self._residual_variance = self._read_residual_variance(catalog.folder(name))
        shape = (self.card.shape.channels, self.card.shape.height, self.card.shape.width)
        tuned = tune(
            loaded,
            self.card.sha256,
            shape,
            device,
            capacity,
            precision,
            cache,
            share=share,
            between=between,
            classes=self.card.classes,
        )
        self.calibration = tuned.calibration
        self.precision = tuned.precision
        self.kernels = tuned.kernels
        self.fingerprint = tuned.fingerprint
        self.capacity = tuned.pool.capacity
        self._threads = AdaptiveThreads(self.calibration.threads, self.calibration.fewer)
        self._batch_sizes = {
            n: BatchSizes(self.calibration.seconds_by(n))
            for n in (self.calibration.threads, self.calibration.fewer)
        }
        self.engine = Engine(tuned.pool, self.calibration.seconds)
        self.chain_bytes = 2 * tuned.pool.x[0].nbytes
        self.plan = PlanCache(self._plan)
        # The packed chains that were read last, if they are those of several shards.
        self._saved: tuple[bytes, SavedChains] | None = None
        log.info(
            "%s on %s in %s by %s, fingerprint %s: %s",
            name,
            device,
            self.precision,
            self.kernels,
            self.fingerprint,
            self.calibration,
            extra=event("model.loaded", model=name, fingerprint=self.fingerprint),
        )

    @property
    def schedule(self) -> Schedule:
        """The noise schedule that the network was trained with."""
        return self.process.schedule

    @property
    def info(self) -> ModelInfo:
        """Precision, kernels, threads and speed of the model, as it runs now."""
        return ModelInfo(
            self.precision,
            self.kernels,
            self._threads.count,
            self.engine.batch_sizes.seconds,
            self.fingerprint,
            weights=self.card.sha256,
        )

    @property
    def is_interactive(self) -> bool:
        """Tell whether interactive images are in the engine."""
        return self.engine.is_interactive

    @property
    def lone_s(self) -> float:
        """Seconds that a step of one chain takes, as calibration found."""
        return self.promised_s(1)

    @property
    def longest_s(self) -> float:
        """Seconds that a step of the largest batch takes, as calibration found."""
        return max(self.engine.batch_sizes.seconds.values())

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
        if self.engine.image_steps > done_before:
            sizes = map(self.engine.batch_sizes.size_for, self.engine.passes)
            promised_s = sum(self.calibration.seconds[size] for size in sizes)
            self._threads.note(time.monotonic() - began, promised_s)
        return finished

    def moved(self) -> set[str]:
        """Return the ids of the shards of which a chain has stepped since the last call."""
        return {cast("tuple[str, int]", chain)[0] for chain in self.engine.moved()}

    def promised_s(self, chains: int) -> float:
        """Return the seconds that calibration found for a step of so many chains.

        They are for as many threads as took the last step.
        """
        return self.engine.batch_sizes.seconds[self.engine.batch_sizes.size_for(chains)]

    def admit(self, shard: Shard, indices: list[int], saved: bytes | None) -> None:
        """Submit the shard's images to the engine, each from where it was saved.

        Args:
            shard: whose images they are.
            indices: the images to make.
            saved: packed chains that hold the shard's, or None.

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
                extra=event("shard.resumed", job=shard.job, shard=shard.id, owner=shard.owner),
            )
        self.engine.restore(snapshots)
        resumed = {snapshot.request.index for snapshot in snapshots}
        self.engine.submit([request for index, request in requests.items() if index not in resumed])

    def _unpacked(
        self, saved: bytes, requests: dict[int, ChainRequest], shard_id: str
    ) -> list[Snapshot]:
        try:
            known = self._saved and self._saved[0] is saved and self._saved[1]
            chains = known or SavedChains(saved)
            self._saved = (saved, chains) if chains.holds_several else None
            shape = self.engine.pool.shape
            return chains.of(shard_id, requests, shape, self.precision, self.fingerprint)
        except BadSnapshot as error:
            log.warning(
                "shard %s begins anew: what was saved of it cannot be used (%s)",
                shard_id,
                error,
                extra=event("shard.begins_anew", shard=shard_id),
            )
            return []

    def _requests(self, shard: Shard, indices: list[int]) -> list[ChainRequest]:
        recipe = shard.recipe
        self._check_weights(recipe)
        self._check_residual_variance(recipe)
        classes = self._rows(shard)
        try:
            plan = self.plan(recipe.sampler, recipe.steps, recipe.variance, recipe.eta)
        except ValueError as error:
            raise CannotRun("unknown_version", f"the worker has no such plan: {error}") from None
        interactive = shard.priority == "interactive"
        null = self.card.classes.null if self.card.classes else None
        return [
            ChainRequest(
                (shard.id, i),
                shard.job,
                plan,
                recipe.seed,
                i,
                shard.owner,
                interactive,
                class_row=classes[i - shard.first],
                null_row=null or 0,
                guidance=recipe.guidance,
            )
            for i in indices
        ]

    def _rows(self, shard: Shard) -> list[int]:
        """Find the row of the embedding of classes for each image of a shard.

        Raises:
            CannotRun: the card of this worker has not the classes that the job names.
        """
        recipe, classes = shard.recipe, self.card.classes
        asked = [label for label in recipe.labels_of(shard.count) if label is not None]
        count = classes.count if classes else 0
        has_null = classes is not None and classes.null is not None
        if (
            bool(asked) != bool(count)
            or any(label >= count for label in asked)
            or (recipe.guidance != NO_GUIDANCE and not has_null)
        ):
            raise CannotRun(
                "wrong_classes",
                f"the job asks for labels {recipe.labels[:40] or 'none'} and guidance"
                f" {recipe.guidance:g} of {recipe.model!r}, and the worker's card has {count}"
                f" classes {'with' if has_null else 'without'} a null class; "
                "post it again when all of the service has been restarted",
            )
        return [classes.row(label) for label in asked] if classes else [0] * shard.count

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
        return self.process.plan(
            steps,
            cast("Sampler", sampler),
            variance=cast("Variance", variance),
            eta=eta,
            residual_variance=self._residual_variance,
        )

    def _read_residual_variance(self, folder: Path) -> Tensor | None:
        if self.card.residual_variance is None:
            return None
        estimate = ResidualVariance.read(
            folder, self.card.sha256, self.schedule.T, self.card.residual_variance
        )
        return estimate.tensor
