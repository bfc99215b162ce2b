"""The engine: any number of chains, each with its own plan, seed and progress, in one batch.

Its loop is four verbs: admit, pick, step, retire. A chain may join before any step, and is parked
in every step that does not pick it. All chains leave by the same door, whether they finish, fail or
are cancelled. The engine knows no Redis, no RQ and no HTTP.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.diffusion.sampling import to_bytes
from worker.engine.batch_sizes import BatchSizes
from worker.engine.chain import ChainRequest, Finished, Preview, Snapshot
from worker.engine.pool import Pool, columns_of
from worker.engine.scheduler import NOTHING_SERVED, ChainGroup, pick
from worker.engine.transfers import HostCopy


@dataclass(slots=True)
class _Chain:
    request: ChainRequest
    slot: int
    group: ChainGroup
    admitted_at: int  # row
    row: int  # next row
    rows: int  # of its plan

    @property
    def rows_left(self) -> int:
        return self.rows - self.row

    @property
    def numbers(self) -> tuple[float, ...]:
        """The chain's column in the next step (worker/engine/pool.py): address and plan row."""
        request = self.request
        t, *row = request.plan.row(self.row)
        return (self.slot, t, request.seed, request.index, self.row + 1, *row)

    @property
    def numbers_with_class(self) -> tuple[float, ...]:
        """The column for a conditional network."""
        return (*self.numbers, self.request.class_row, self.request.guidance)

    @property
    def numbers_without_class(self) -> tuple[float, ...]:
        """The column for the pass without a class, which takes no row of the plan."""
        return (*self.numbers, self.request.null_row, 1.0)


@dataclass(frozen=True, slots=True)
class _Leaving:
    """Chains that one step finished, and the copy of their x that is on its way to the host.

    `places` holds, by the chain's name, its place in the copy and its request.
    """

    places: dict[Hashable, tuple[int, ChainRequest]]
    x: HostCopy

    def finished(self) -> list[Finished]:
        x = self.x.result()
        finite = x.isfinite().flatten(1).all(1).tolist()
        pixels = to_bytes(x)
        return [
            Finished(request, pixels[i] if finite[i] else None)
            for i, request in self.places.values()
        ]


class Engine:
    """Steps the chains of one network. Not thread-safe: one thread submits, steps and cancels.

    On a GPU the host is a step or two ahead. A chain leaves its slot as soon as its last row is
    queued. `step` returns it once its pixels have arrived.
    """

    def __init__(self, pool: Pool, seconds: Mapping[int, float]) -> None:
        """Take an empty pool, and the seconds of a step by batch size, of the sizes to use."""
        self.pool = pool
        self.batch_sizes = BatchSizes(seconds)
        # steps of images since the start, padding not counted; guided ones count twice
        self.image_steps = 0
        # Images of each pass of the last step.
        self.passes: tuple[int, ...] = ()
        self._chains: dict[Hashable, _Chain] = {}
        self._groups: dict[Hashable, ChainGroup] = {}
        # Number of the chains that are interactive, and of those that are guided.
        self._interactive = 0
        self._guided = 0
        self._leaving: deque[_Leaving] = deque()
        self._free = list(range(pool.capacity))
        # By slot: seed and index of chains whose x_T is not drawn yet.
        self._unstarted: dict[int, tuple[int, int]] = {}
        self._served = NOTHING_SERVED
        self._moved: set[Hashable] = set()

    @property
    def room(self) -> int:
        """Number of chains that may be submitted now."""
        return len(self._free)

    @property
    def is_interactive(self) -> bool:
        """True if any chain is interactive, here or on its way out."""
        if self._interactive:
            return True
        leaving = (request for leaving in self._leaving for _, request in leaving.places.values())
        return any(request.interactive for request in leaving)

    def __len__(self) -> int:
        return len(self._chains) + sum(len(leaving.places) for leaving in self._leaving)

    def moved(self) -> set[Hashable]:
        """Name the chains here that have taken a step since the last call."""
        moved = self._moved
        self._moved = set()
        return moved

    def rows_done(self, chain: Hashable) -> int:
        """Count the rows that a chain has taken, which must be here or leaving."""
        if chain in self._chains:
            return self._chains[chain].row
        return next(
            len(leaving.places[chain][1].plan)
            for leaving in self._leaving
            if chain in leaving.places
        )

    def submit(self, requests: Sequence[ChainRequest]) -> None:
        """Admit new chains, which run from the next step on.

        Raises:
            ValueError: There are more than there is room for, or a name is in use.
        """
        slots = self._admit(requests, rows=[0] * len(requests))
        self._unstarted |= zip(slots, ((r.seed, r.index) for r in requests), strict=True)

    def restore(self, snapshots: Sequence[Snapshot]) -> None:
        """Admit chains as their snapshots hold them: their images come out as if never stopped.

        Raises:
            ValueError: There are more than there is room for, or a name is in use.
        """
        if not snapshots:
            return
        slots = self._admit([s.request for s in snapshots], [s.row for s in snapshots])
        x = torch.stack([s.x for s in snapshots])
        x_0_hat = torch.stack([s.x_0_hat for s in snapshots])
        self.pool.write(slots, x, x_0_hat)

    def snapshot(self, chains: Iterable[Hashable]) -> list[Snapshot]:
        """Copy chains as they are between two steps; they keep running.

        None of them may be leaving: call `settle` first.
        """
        held = [self._chains[chain] for chain in chains]
        if not held:
            return []
        self._start()
        slots = [c.slot for c in held]
        x = self.pool.read(slots)
        remembered = any(c.request.plan.remembers for c in held)
        x_0_hat = self.pool.read_x_0_hat(slots) if remembered else torch.zeros(()).expand_as(x)
        return [Snapshot(c.request, c.row, x[i], x_0_hat[i]) for i, c in enumerate(held)]

    def preview(self, chains: Iterable[Hashable]) -> list[Preview]:
        """Start copying the x_0_hat of these chains, without waiting for it.

        Chains that have taken no step here are left out: a snapshot may lack their x_0_hat.
        """
        stepped = [c for name in chains if (c := self._chains.get(name)) and c.row > c.admitted_at]
        if not stepped:
            return []
        copy = self.pool.copy_out_x_0_hat([c.slot for c in stepped])
        return [Preview(c.request, c.row, place, copy) for place, c in enumerate(stepped)]

    def cancel(self, chains: Iterable[Hashable]) -> None:
        """Drop those of the chains that are still here. Their slots are free at once."""
        for chain in chains:
            if chain in self._chains:
                self._leave(chain)
            for leaving in self._leaving:
                leaving.places.pop(chain, None)

    def step(
        self, only: Sequence[Hashable] | None = None, within_s: float = math.inf
    ) -> list[Finished]:
        """Take one step, and return the images that have arrived since the last one.

        Args:
            only: The chains that take it, of those that are here. None: those that the scheduler
                picks.
            within_s: Upper bound on the step's duration, in seconds, for the scheduler's pick. If
                every batch takes longer, the one for a single chain is used.
        """
        if only is None:
            picked = self._pick(within_s)
        else:
            picked = [self._chains[chain] for chain in only if chain in self._chains]
        if not picked:
            return self.settle()
        self._start()
        del picked[self.batch_sizes.largest :]
        self._run(picked)
        for chain in picked:
            chain.row += 1
            chain.group.rows_left -= 1
            self._moved.add(chain.request.chain)
        self.image_steps += sum(self.passes)
        self._retire([chain for chain in picked if chain.row == chain.rows])
        return self._arrived()

    def _run(self, picked: Sequence[_Chain]) -> None:
        """Run the network for these chains, and take their rows."""
        self.passes = (len(picked),)
        if not self.pool.is_conditional:
            self.pool.step(self._columns([chain.numbers for chain in picked]))
            return
        if guided := [chain for chain in picked if chain.request.is_guided]:
            self.passes = (len(guided), len(picked))
            columns = self._columns([chain.numbers_without_class for chain in guided])
            self.pool.pass_without_class(columns)
        self.pool.step(self._columns([chain.numbers_with_class for chain in picked]))

    def _columns(self, numbers: Sequence[tuple[float, ...]]) -> Tensor:
        size = self.batch_sizes.size_for(len(numbers))
        return columns_of(numbers, size, self.pool.dummy, self.pool.width)

    def settle(self) -> list[Finished]:
        """Wait for the images on their way, so that every chain is in its slot or has left."""
        finished = [image for leaving in self._leaving for image in leaving.finished()]
        self._leaving.clear()
        return finished

    def _start(self) -> None:
        """Draw x_T of all chains that were submitted since the last step, together."""
        if self._unstarted:
            seeds, indices = zip(*self._unstarted.values(), strict=True)
            self.pool.start(list(self._unstarted), seeds, indices)
            self._unstarted.clear()

    def _admit(self, requests: Sequence[ChainRequest], rows: Sequence[int]) -> list[int]:
        names = [request.chain for request in requests]
        if len(requests) > self.room:
            raise ValueError(
                f"{len(requests)} chains do not fit the {self.room} free places;"
                " submit what `room` allows"
            )
        if len(set(names)) < len(names) or any(self._knows(name) for name in names):
            raise ValueError(
                "a chain of this name is in the engine; give every chain a name of its own"
            )
        for request, row in zip(requests, rows, strict=True):
            group, slot = self._group_of(request), self._free.pop()
            chain = _Chain(request, slot, group, row, row, len(request.plan))
            self._chains[request.chain] = chain
            chain.group.join(request.chain, chain.rows_left)
            self._interactive += request.interactive
            self._guided += request.is_guided
        return [self._chains[name].slot for name in names]

    def _knows(self, name: Hashable) -> bool:
        return name in self._chains or any(name in leaving.places for leaving in self._leaving)

    def _group_of(self, request: ChainRequest) -> ChainGroup:
        group = ChainGroup(request.job, request.owner, request.interactive)
        return self._groups.setdefault(group.key, group)

    def _pick(self, within_s: float) -> list[_Chain]:
        bulk = len(self._chains) - self._interactive
        if self._guided:
            # Their step takes two passes.
            within_s /= 2
        places = self.batch_sizes.places(self._interactive, bulk, within_s)
        if places == len(self._chains):
            picked = list(self._chains.values())
        else:
            picked = [
                self._chains[chain]
                for chain in pick(list(self._groups.values()), places, self._served)
            ]
        interactive_picked = sum(chain.request.interactive for chain in picked)
        self._served = self._served.plus(len(picked), interactive_picked)
        return picked

    def _retire(self, done: Sequence[_Chain]) -> None:
        if not done:
            return
        x = self.pool.copy_out([chain.slot for chain in done])
        for chain in done:
            self._leave(chain.request.chain)
        places = {chain.request.chain: (i, chain.request) for i, chain in enumerate(done)}
        self._leaving.append(_Leaving(places, x))

    def _arrived(self) -> list[Finished]:
        finished: list[Finished] = []
        while self._leaving and self._leaving[0].x.is_here():
            finished += self._leaving.popleft().finished()
        return finished

    def _leave(self, name: Hashable) -> None:
        chain = self._chains.pop(name)
        self._moved.discard(name)
        self._interactive -= chain.request.interactive
        self._guided -= chain.request.is_guided
        self._unstarted.pop(chain.slot, None)
        self._free.append(chain.slot)
        chain.group.leave(name, chain.rows_left)
        if not chain.group.chains:
            del self._groups[chain.group.key]
