"""Chains that go halfway here and the rest of the way in another process.

So it is when a worker takes over from another.
"""

from __future__ import annotations

import os
import random
from collections import defaultdict
from collections.abc import Hashable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from unittest.mock import patch

from bench.lib.model import engine_on
from bench.lib.work import Images, Work, draw, images_by_index
from worker.engine.chain import Snapshot
from worker.engine.snapshot_codec import SavedChains, pack
from worker.process.loaded_model import LoadedModel


class OtherProcess:
    """A way to make images half here and half in another process.

    The other process loads the model for itself, as on a machine that has `threads` cores.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def __call__(self, model: LoadedModel, work: Work, _: random.Random) -> Images:
        """Make the images of the work."""
        images, blobs = draw_half(model, work)
        with (
            patch.dict(os.environ, OMP_NUM_THREADS=str(self.threads)),
            ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other,
        ):
            return images | other.submit(_go_on, work, blobs).result()


def draw_half(model: LoadedModel, work: Work) -> tuple[Images, list[bytes]]:
    """Do half of the image-steps.

    Returns:
        The images that are finished, and the other chains packed as a worker packs its shards.
    """
    engine = engine_on(model, model.calibration.batch_sizes)
    images = Images()
    requests = work.requests(model)
    engine.submit(requests)
    half = sum(len(request.plan) for request in requests) / 2
    while engine.image_steps < half:
        images |= images_by_index(engine.step())
    images |= images_by_index(engine.settle())
    unfinished = [request.chain for request in requests if request.index not in images]
    jobs: dict[Hashable, list[Snapshot]] = defaultdict(list)
    for snapshot in engine.snapshot(unfinished):
        jobs[snapshot.request.job].append(snapshot)
    return images, [pack({"job-0": snapshots}, model.precision) for snapshots in jobs.values()]


def _go_on(work: Work, blobs: list[bytes]) -> Images:
    model = work.model()
    requests = {request.index: request for request in work.requests(model)}
    engine = engine_on(model, model.calibration.batch_sizes)
    for blob in blobs:
        chains = SavedChains(blob)
        shape = model.engine.pool.shape
        engine.restore(chains.of("job-0", requests, shape, model.precision))
    return draw(engine, [])
