"""Pickles of weights: converted apart, and hostile ones refused with nothing run."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.checkpoints.bad_checkpoint import BadCheckpoint
from models.checkpoints.sources import pickle_child
from models.checkpoints.sources.pickles import to_safetensors

WEIGHTS = {"conv_in.weight": torch.arange(6.0).reshape(2, 3), "conv_in.bias": torch.ones(2)}


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize(
    ("content", "place", "zipped"),
    [
        (WEIGHTS, "", True),
        ({"state_dict": WEIGHTS, "epoch": 3}, "state_dict", False),
        ({"model": {"raw": torch.zeros(1)}, "ema": WEIGHTS, "step": 9}, "ema", True),
    ],
)
def test_weights_are_found_and_converted(tmp_path, content, place, zipped):
    torch.save(content, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    held = to_safetensors(tmp_path / "m.pt", tmp_path / "out" / "m.safetensors")
    found = load_file(tmp_path / "out" / "m.safetensors")
    assert held.place == place
    assert set(held.beside) == set(content) - {place} - set(WEIGHTS)
    assert all(torch.equal(found[name], WEIGHTS[name]) for name in WEIGHTS)


def refused(path: Path, out: Path) -> str:
    with pytest.raises(BadCheckpoint) as caught:
        to_safetensors(path, out / "m.safetensors")
    assert not out.exists() or list(out.iterdir()) == []
    return str(caught.value)


def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path):
    torch.save({"state_dict": WEIGHTS, "extra": Hostile(tmp_path / "ran")}, tmp_path / "m.pt")
    text = refused(tmp_path / "m.pt", tmp_path / "out")
    assert "names posix.system" in text
    assert "nothing of it was run" in text
    assert not (tmp_path / "ran").exists()


def test_a_zip_bomb_is_refused_before_it_unpacks(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data/0", bytes(200 << 20))
    assert "unpacks to 209715200" in refused(tmp_path / "m.pt", tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"w": torch.zeros(1).expand(1 << 40)}, "tensors claim 4398046511104 bytes"),
        ([1, 2], "holds a list, not the weights"),
        ({"step": 1}, "holds no weights of a network, but step"),
    ],
)
def test_a_pickle_without_a_network_is_refused_by_its_reason(tmp_path, content, says):
    torch.save(content, tmp_path / "m.pt")
    assert says in refused(tmp_path / "m.pt", tmp_path / "out")


@pytest.mark.parametrize("content", [b"not a pickle at all", b"\x80\x02}", b"PK\x03\x04broken"])
def test_damage_is_refused(tmp_path, content):
    (tmp_path / "m.pt").write_bytes(content)
    assert "m.pt" in refused(tmp_path / "m.pt", tmp_path / "out")


def confined(tmp_path: Path, *codes: str) -> dict[str, str]:
    """Run code in a process that is confined as the child is; return what became of each."""
    (tmp_path / "inside").mkdir(exist_ok=True)
    begin = f"""
        from pathlib import Path
        import json, socket, subprocess, os, torch
        from models.checkpoints.sources import pickle_child
        pickle_child.confine(1024, Path({str(tmp_path / "inside")!r}))
        outcomes = {{}}
        for code in {codes!r}:
            try:
                exec(code)
            except BaseException as error:
                outcomes[code] = f"{{type(error).__name__}} {{error}}"
            else:
                outcomes[code] = "done"
        print(json.dumps(outcomes))
    """
    command = [sys.executable, "-c", textwrap.dedent(begin)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


# One process tries them all, as each would load torch.
def test_the_child_has_no_network_no_processes_and_one_folder(tmp_path):
    outside = str(tmp_path / "outside")
    with socket.create_server(("127.0.0.1", 0)) as server:
        outcomes = confined(
            tmp_path,
            f"socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 1)",
            "os.system('true')",
            "subprocess.run(['true'])",
            "os.fork()",
            f"open({outside!r}, 'w')",
            f"os.open({outside!r}, os.O_WRONLY | os.O_CREAT)",
        )
    assert [said.partition(" ")[0] for said in outcomes.values()] == ["Refused"] * 6, outcomes
    assert not (tmp_path / "outside").exists()


def test_the_child_writes_to_its_folder_and_has_a_bound_on_memory(tmp_path):
    writes = f"open({str(tmp_path / 'inside' / 'file')!r}, 'w')"
    outcomes = confined(tmp_path, writes, "torch.ones(1 << 31)")
    assert outcomes[writes] == "done"
    assert "memory" in outcomes["torch.ones(1 << 31)"]


def test_the_weights_of_an_average_are_chosen_before_others():
    content = {"state_dict": {"w": torch.zeros(1)}, "ema_state_dict": {"w": torch.ones(1)}}
    tensors, place, beside = pickle_child.find_weights(content)
    assert (float(tensors["w"]), place, beside) == (1.0, "ema_state_dict", ["state_dict"])
