"""The engine against the plain loop, in any order of events."""

from __future__ import annotations

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from models.diffusion.plans import Plan
from tests.support.engines import PLANS, drain, engine, plain, plain_x_0_hat
from tests.support.networks import LatePool, one_by_one
from worker.engine.chain import ChainRequest, Finished, Snapshot
from worker.engine.cuda_graphs import Recorder
from worker.engine.pool import Pool


class EngineAgainstPlainLoop(RuleBasedStateMachine):
    """Chains join, leave, are parked, copied out and restored.

    Whatever finishes is the plain loop's image, bit for bit.
    """

    record: Recorder | None = None
    pool: type[Pool] = Pool

    def __init__(self) -> None:
        super().__init__()
        self.engine = engine(record=type(self).record, pool=type(self).pool)
        self.running: dict[int, ChainRequest] = {}
        self.saved: list[Snapshot] = []
        self.names = 0

    @rule(
        plan=st.sampled_from(PLANS),
        seed=st.integers(0, 2**53 - 1),
        index=st.integers(0, 2**32 - 1),
        interactive=st.booleans(),
    )
    def submit(self, plan: Plan, seed: int, index: int, interactive: bool) -> None:
        if self.engine.room:
            r = ChainRequest(
                self.names,
                self.names % 3,
                plan,
                seed,
                index,
                owner=str(self.names % 2),
                interactive=interactive,
            )
            self.names += 1
            self.engine.submit([r])
            self.running[r.chain] = r

    def check(self, finished: list[Finished]) -> None:
        for done in finished:
            assert torch.equal(done.pixels, plain(self.running.pop(done.request.chain)))

    @rule()
    def step(self) -> None:
        self.check(self.engine.step())

    @rule()
    def preview(self) -> None:
        for preview in self.engine.preview(self.running):
            assert torch.equal(preview.x_0_hat(), plain_x_0_hat(preview.request, preview.row))

    @rule()
    def settle(self) -> None:
        self.check(self.engine.settle())

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.running)))
        self.engine.cancel([name])
        del self.running[name]

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def move_out(self, data: st.DataObject) -> None:
        self.check(self.engine.settle())
        if not self.running:
            return
        name = data.draw(st.sampled_from(sorted(self.running)))
        self.saved += self.engine.snapshot([name])
        self.engine.cancel([name])
        del self.running[name]

    @precondition(lambda self: self.saved and self.engine.room)
    @rule()
    def move_in(self) -> None:
        snapshot = self.saved.pop()
        self.engine.restore([snapshot])
        self.running[snapshot.request.chain] = snapshot.request

    @invariant()
    def every_slot_is_free_or_taken(self) -> None:
        assert len(self.engine) == len(self.running)
        leaving = [
            r for r in self.running.values() if self.engine.rows_done(r.chain) == len(r.plan)
        ]
        assert self.engine.room == 12 - len(self.running) + len(leaving)

    def teardown(self) -> None:
        for name, pixels in drain(self.engine).items():
            assert torch.equal(pixels, plain(self.running[name]))


TestEngineAgainstPlainLoop = EngineAgainstPlainLoop.TestCase
TestEngineAgainstPlainLoop.settings = settings(max_examples=30, stateful_step_count=30)


class RecordedEngineAgainstPlainLoop(EngineAgainstPlainLoop):
    """The engine as on CUDA: every step fills the same inputs, and recording takes a step."""

    record = staticmethod(one_by_one)


TestRecordedEngineAgainstPlainLoop = RecordedEngineAgainstPlainLoop.TestCase
TestRecordedEngineAgainstPlainLoop.settings = settings(max_examples=15, stateful_step_count=30)


class LateEngineAgainstPlainLoop(EngineAgainstPlainLoop):
    """The engine as on CUDA: images arrive after later steps, which may have used their slots."""

    record = staticmethod(one_by_one)
    pool = LatePool


TestLateEngineAgainstPlainLoop = LateEngineAgainstPlainLoop.TestCase
TestLateEngineAgainstPlainLoop.settings = settings(max_examples=15, stateful_step_count=30)
