"""The engine: any number of chains, each with its own plan, seed and progress, in one running batch.

It knows no Redis, no RQ and no HTTP. Its loop is four verbs: admit, pick, step, retire. Chains join at any step, may be
parked at any step (parking is not being picked), and leave by one door whether they finish, fail or are cancelled.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from models.diffusion.sampling import to_bytes
from worker.engine.batch_sizes import BatchSizes
from worker.engine.chain import ChainRequest, Finished, Preview, Snapshot
from worker.engine.pool import Pool, columns_of
from worker.engine.scheduler import NOTHING_SERVED, ChainGroup, pick, waiting
from worker.engine.transfers import HostCopy


@dataclass(slots=True)
class _Chain:
    request: ChainRequest
    slot: int
    line: ChainGroup
    admitted_at: int  # row
    row: int

    @property
    def rows_left(self) -> int:
        return len(self.request.plan) - self.row

    @property
    def numbers(self) -> tuple[float, ...]:
        """What the next step is to know of the chain, as in worker/engine/pool.py: its address, and its plan's row."""
        plan = self.request.plan
        return (
            self.slot,
            plan.timesteps[self.row],
            self.request.seed,
            self.request.index,
            self.row + 1,
            *plan.numbers[self.row],
        )


@dataclass(frozen=True, slots=True)
class _Leaving:
    """Chains that one step finished, by name, with their places in the copy that is on its way to the host."""

    places: dict[Hashable, tuple[int, ChainRequest]]
    x: HostCopy

    def finished(self) -> list[Finished]:
        x = self.x.result()
        finite = x.isfinite().flatten(1).all(1)
        return [
            Finished(request, to_bytes(x[i]) if finite[i] else None)
            for i, request in self.places.values()
        ]


class Engine:
    """Steps the chains of one network. Not thread-safe: one thread submits, steps and cancels.

    On a GPU the host is a step or two ahead. A chain that has taken its last row has left its slot, and comes out of the step
    by which its picture has arrived.
    """

    def __init__(self, pool: Pool, seconds: Mapping[int, float]) -> None:
        """`seconds`: what a step of each batch size takes; the sizes are those that may be used."""
        self.pool = pool
        self.batch_sizes = BatchSizes(seconds)
        self.image_steps = 0  # done since the start, padding not counted
        self._chains: dict[Hashable, _Chain] = {}
        self._lines: dict[Hashable, ChainGroup] = {}
        self._leaving: deque[_Leaving] = deque()
        self._free = list(range(pool.capacity))
        self._given = NOTHING_SERVED
        self._moved: set[Hashable] = set()

    @property
    def room(self) -> int:
        """Chains that may still be submitted."""
        return len(self._free)

    @property
    def is_interactive(self) -> bool:
        """Whether chains of the upper class are in it, those included whose pictures are on their way."""
        leaving = (request for leaving in self._leaving for _, request in leaving.places.values())
        return any(line.interactive for line in self._lines.values()) or any(
            request.interactive for request in leaving
        )

    def __len__(self) -> int:
        return len(self._chains) + sum(len(leaving.places) for leaving in self._leaving)

    def moved(self) -> set[Hashable]:
        """The chains here that have taken a step since this was last asked."""
        moved, self._moved = self._moved, set()
        return moved

    def rows_done(self, chain: Hashable) -> int:
        if chain in self._chains:
            return self._chains[chain].row
        return next(
            len(leaving.places[chain][1].plan)
            for leaving in self._leaving
            if chain in leaving.places
        )

    def submit(self, requests: Sequence[ChainRequest]) -> None:
        """Admit new chains; they run from the next step on. Raises ValueError for more than there is room, or a name in use."""
        slots = self._admit(requests, rows=[0] * len(requests))
        if requests:
            self.pool.start(slots, [r.seed for r in requests], [r.index for r in requests])

    def restore(self, snapshots: Sequence[Snapshot]) -> None:
        """Admit chains where their snapshots left them; the images come out as if nothing had happened."""
        slots = self._admit([s.request for s in snapshots], [s.row for s in snapshots])
        if snapshots:
            self.pool.write(
                slots,
                torch.stack([s.x for s in snapshots]),
                torch.stack([s.x_0_hat for s in snapshots]),
            )

    def snapshot(self, chains: Iterable[Hashable]) -> list[Snapshot]:
        """Copies of the chains as they are between two steps. They keep running. None may be leaving: `settle` first."""
        held = [self._chains[chain] for chain in chains]
        if not held:
            return []
        slots = [c.slot for c in held]
        x = self.pool.read(slots)
        remembered = any(c.request.plan.remembers for c in held)
        x_0_hat = self.pool.read_x_0_hat(slots) if remembered else torch.zeros(()).expand_as(x)
        return [Snapshot(c.request, c.row, x[i], x_0_hat[i]) for i, c in enumerate(held)]

    def preview(self, chains: Iterable[Hashable]) -> list[Preview]:
        """Of those chains that have taken a step here, without waiting for it. What a snapshot kept may lack their x_0_hat."""
        stepped = [c for name in chains if (c := self._chains.get(name)) and c.row > c.admitted_at]
        if not stepped:
            return []
        copy = self.pool.copy_out_x_0_hat([c.slot for c in stepped])
        return [Preview(c.request, c.row, place, copy) for place, c in enumerate(stepped)]

    def cancel(self, chains: Iterable[Hashable]) -> None:
        """Drop the chains that are still here; their places are free at once."""
        for chain in chains:
            if chain in self._chains:
                self._leave(chain)
            for leaving in self._leaving:
                leaving.places.pop(chain, None)

    def step(
        self, only: Sequence[Hashable] | None = None, within_s: float = math.inf
    ) -> list[Finished]:
        """One step for the chains that are picked, or for `only` these where given; returns those that have left since.

        It is to take `within_s` where a batch does.
        """
        picked = (
            self._pick(within_s)
            if only is None
            else [self._chains[chain] for chain in only if chain in self._chains]
        )
        if not picked:
            return self.settle()
        del picked[self.batch_sizes.largest :]
        size = self.batch_sizes.holding(len(picked))
        self.pool.step(columns_of([chain.numbers for chain in picked], size, self.pool.dummy))
        for chain in picked:
            chain.row += 1
            chain.line.rows_left -= 1
            self._moved.add(chain.request.chain)
        self.image_steps += len(picked)
        self._retire([chain for chain in picked if not chain.rows_left])
        return self._arrived()

    def settle(self) -> list[Finished]:
        """Wait for the pictures that are on their way; afterwards every chain is in its slot or has left."""
        finished = [image for leaving in self._leaving for image in leaving.finished()]
        self._leaving.clear()
        return finished

    def _admit(self, requests: Sequence[ChainRequest], rows: Sequence[int]) -> list[int]:
        names = [request.chain for request in requests]
        if len(requests) > self.room:
            raise ValueError(
                f"{len(requests)} chains do not fit the {self.room} free places; submit what `room` allows"
            )
        if len(set(names)) < len(names) or any(self._knows(name) for name in names):
            raise ValueError(
                "a chain of this name is in the engine; give every chain a name of its own"
            )
        for request, row in zip(requests, rows, strict=True):
            chain = _Chain(request, self._free.pop(), self._line(request), row, row)
            self._chains[request.chain] = chain
            chain.line.join(request.chain, chain.rows_left)
        return [self._chains[name].slot for name in names]

    def _knows(self, name: Hashable) -> bool:
        return name in self._chains or any(name in leaving.places for leaving in self._leaving)

    def _line(self, request: ChainRequest) -> ChainGroup:
        line = ChainGroup(request.job, request.owner, request.interactive)
        return self._lines.setdefault(line.key, line)

    def _pick(self, within_s: float) -> list[_Chain]:
        lines = list(self._lines.values())
        places = self.batch_sizes.places(
            waiting(lines, interactive=True), waiting(lines, interactive=False), within_s
        )
        chosen = self._chains if places == len(self._chains) else pick(lines, places, self._given)
        picked = [self._chains[chain] for chain in chosen]
        self._given = self._given.plus(
            len(picked), sum(chain.request.interactive for chain in picked)
        )
        return picked

    def _retire(self, done: Sequence[_Chain]) -> None:
        if not done:
            return
        x = self.pool.copy_out([chain.slot for chain in done])
        for chain in done:
            self._leave(chain.request.chain)
        self._leaving.append(
            _Leaving({chain.request.chain: (i, chain.request) for i, chain in enumerate(done)}, x)
        )

    def _arrived(self) -> list[Finished]:
        finished: list[Finished] = []
        while self._leaving and self._leaving[0].x.is_here():
            finished += self._leaving.popleft().finished()
        return finished

    def _leave(self, name: Hashable) -> None:
        chain = self._chains.pop(name)
        self._moved.discard(name)
        self._free.append(chain.slot)
        chain.line.leave(name, chain.rows_left)
        if not chain.line.chains:
            del self._lines[chain.line.key]
