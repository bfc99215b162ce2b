"""Fingerprints: the same exactly where the bits of some chains are the same."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from models.diffusion.sampling import Network
from tests.support.networks import SHAPE, gaussian_eps
from worker.backends.served_network import precisions
from worker.calibration.fingerprint import fingerprint_of
from worker.engine.pool import Pool

CPU = torch.device("cpu")
T = 1000
OF_THE_SHIPPED_MODEL = """
import sys
import torch
from models.checkpoints import diffusers_format
from models.checkpoints.catalog import SHIPPED, Catalog
from worker.backends.served_network import ServedNetwork
from worker.calibration.fingerprint import fingerprint_of
from worker.engine.pool import Pool

precision, size, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(threads)
catalog = Catalog.read(SHIPPED)
card = catalog["fashion-mnist-28"]
loaded = diffusers_format.load(catalog.folder(card.name), card.sha256)
network = ServedNetwork(loaded, torch.device("cpu"), precision, [size])
pool = Pool(network, (1, 28, 28), 64, torch.device("cpu"))
print(fingerprint_of(pool, loaded.schedule.T, size))
"""


def fingerprint(network: Network = gaussian_eps, size: int = 2, capacity: int = 8) -> str:
    return fingerprint_of(Pool(network, SHAPE, capacity, CPU), T, size)


def of_the_shipped_model(
    precision: str = "fp32", size: int = 1, threads: int = 1, **environment: str
) -> str:
    command = [sys.executable, "-c", OF_THE_SHIPPED_MODEL, precision, str(size), str(threads)]
    return subprocess.check_output(command, text=True, env=os.environ | environment).strip()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_a_fingerprint_depends_on_no_batch_size_and_no_pool(size: int):
    assert fingerprint(size=size, capacity=64) == fingerprint()
    assert len(fingerprint()) == 12


def test_a_network_of_other_bits_has_another_fingerprint():
    def other(x: Tensor, t: Tensor) -> Tensor:
        out = gaussian_eps(x, t)
        out[0, 0, 0, 0] = torch.nextafter(out[0, 0, 0, 0], torch.tensor(9.0))
        return out

    assert fingerprint(other) != fingerprint()


def test_instructions_and_precision_change_a_fingerprint_and_threads_do_not():
    """PyTorch is told to use older instructions, as an older CPU would make it."""
    here = of_the_shipped_model()
    assert of_the_shipped_model(size=4, threads=2) == here
    assert of_the_shipped_model(ATEN_CPU_CAPABILITY="default") != here
    if "bf16" in precisions(CPU):
        assert of_the_shipped_model("bf16") != here
