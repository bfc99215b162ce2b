"""A model folder and a prepared service for the tests of commands."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from cli.client import PatientClient
from cli.commands import sample
from models.checkpoints import diffusers_format
from models.checkpoints.catalog import ScheduleCard
from models.networks.unet import UNet
from tests.support.clock import SimulatedClock
from tests.support.networks import TINY
from tests.support.played import Played, playing


@pytest.fixture
def tiny_model(tmp_path: Path) -> Path:
    """A model folder without a card, as somebody else's training would leave it."""
    folder = tmp_path / "elsewhere"
    diffusers_format.save(
        folder, TINY, UNet(TINY).state_dict(), ScheduleCard(kind="linear", T=20), "epsilon"
    )
    return folder


@pytest.fixture
def service() -> Iterator[Played]:
    with playing() as played:
        yield played


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimulatedClock:
    """Simulate the time of `ddpm sample`: it only passes while the command waits to try again."""
    clock = SimulatedClock()
    simulated = partial(PatientClient, clock=clock, sleep=clock.pass_s)
    monkeypatch.setattr(sample, "PatientClient", simulated)
    return clock
