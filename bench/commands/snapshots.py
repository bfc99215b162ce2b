"""The cost of saving chains: `python -m bench.commands.snapshots`.

For images of two sizes it measures, in one run:

- the milliseconds that a copy takes the step's thread, and its share of the time at one copy a
  second,
- the milliseconds that packing takes the saver's thread,
- the megabytes.

Times are CPU time of the thread, the best of several.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from models.diffusion.plans import compile_plan
from models.diffusion.schedule import Schedule
from worker.engine.chain import ChainRequest
from worker.engine.engine import Engine
from worker.engine.pool import Pool
from worker.engine.snapshot_codec import pack
from worker.process.snapshot_saver import SAVE_EVERY_S

# Shapes of images, and how many chains of them.
CASES = [((1, 28, 28), 1024), ((3, 256, 256), 64)]
SHARD = 64
ROUNDS = 7


def main() -> None:
    """Measure every case, and print a row for each."""
    # With one thread, its time is all of the time.
    torch.set_num_threads(1)
    print(
        f"{'pictures':>14} {'chains':>6} {'sampler':>9} {'copy ms':>8} {'share':>6} "
        f"{'pack ms':>8} {'MB':>6}"
    )
    for shape, chains in CASES:
        for sampler in ("ddpm", "dpmpp_2m"):
            copy_s, pack_s, size_bytes = measure(shape, chains, sampler)
            name = "x".join(map(str, shape))
            share = copy_s / SAVE_EVERY_S
            print(
                f"{name:>14} {chains:>6} {sampler:>9} {copy_s * 1e3:>8.1f} {share:>6.2%} "
                f"{pack_s * 1e3:>8.1f} {size_bytes / 1e6:>6.1f}"
            )


def measure(shape: tuple[int, int, int], chains: int, sampler: str) -> tuple[float, float, int]:
    """Return the seconds to copy all chains, the seconds to pack them in shards, and the bytes."""
    engine = Engine(Pool(lambda x, t: x, shape, chains, torch.device("cpu")), {2: 1.0})
    plan = compile_plan(Schedule.linear(), 50, sampler)  # type: ignore[arg-type]
    engine.submit([ChainRequest(i, "bench", plan, 1, i) for i in range(chains)])
    snapshots = engine.snapshot(range(chains))
    shards = [snapshots[first : first + SHARD] for first in range(0, chains, SHARD)]
    size_bytes = sum(len(pack({"": shard}, "fp32")) for shard in shards)
    copy_s = _best_s(lambda: engine.snapshot(range(chains)))
    pack_s = _best_s(lambda: [pack({"": shard}, "fp32") for shard in shards])
    return copy_s, pack_s, size_bytes


def _best_s(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(ROUNDS):
        began = time.thread_time()
        work()
        seconds.append(time.thread_time() - began)
    return min(seconds)


if __name__ == "__main__":
    main()
