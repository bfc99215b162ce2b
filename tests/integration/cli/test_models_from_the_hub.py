"""`ddpm models add OWNER/NAME`, against a server that speaks the Hub's protocol."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from models.checkpoints import diffusers_format
from models.checkpoints.catalog import Catalog, ScheduleCard, sha256_of
from models.checkpoints.layout import WEIGHTS
from models.networks.unet import UNet
from tests.support.hub import COMMIT, Hub, serving
from tests.support.networks import TINY
from tests.support.processes import run_ddpm


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A repository with files that nobody needs beside the model's."""
    folder = tmp_path / "published"
    card = ScheduleCard(kind="linear", T=20)
    diffusers_format.save(folder, TINY, UNet(TINY).state_dict(), card, "epsilon")
    (folder / "README.md").write_text("A model")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle, never fetched")
    return folder


def add(hub: Hub, tmp_path: Path, *words: str, **variables: str) -> subprocess.CompletedProcess:
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("HF_")},
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "DDPM_MODELS_DIR": str(tmp_path / "added"),
        **variables,
    }
    return run_ddpm(["models", "add", hub.name, "--no-draw", *words], environment)


def left_behind(tmp_path: Path) -> list[Path]:
    """Files below the folder of added models and the Hub's home that hold something of a model."""
    found = [*(tmp_path / "added").rglob("*"), *(tmp_path / "hf").rglob("*")]
    return [path for path in found if path.is_file() and path.name != "CACHEDIR.TAG"]


def test_a_name_on_the_hub_is_added_with_only_the_files_that_it_needs(published, tmp_path):
    with serving(published) as hub:
        added = add(hub, tmp_path, "--name", "fetched")
        assert added.returncode == 0, added.stderr
        assert sorted(hub.asked) == [
            "model_index.json",
            "scheduler/scheduler_config.json",
            "unet/config.json",
            f"unet/{WEIGHTS}",
        ]
    assert "README.md" in added.stdout.split("ignored: ")[1]
    catalog = Catalog.read(tmp_path / "added")
    card = catalog["fetched"]
    assert card.sha256 == sha256_of(published / "unet" / WEIGHTS)
    assert (card.licence, card.provenance) == ("mit", f"{hub.url}/owner/name at {COMMIT[:12]}")
    assert sorted(path.name for path in (tmp_path / "added").iterdir()) == ["fetched"]


def test_a_token_is_sent_and_its_lack_is_said(published, tmp_path):
    with serving(published, token="hf_secret") as hub:
        refused = add(hub, tmp_path)
        assert (refused.returncode, "set HF_TOKEN" in refused.stderr) == (1, True)
        assert add(hub, tmp_path, HF_TOKEN="hf_secret").returncode == 0


def test_a_revision_is_followed_or_named_as_missing(published, tmp_path):
    with serving(published, revisions=("main", "v2", COMMIT)) as hub:
        refused = add(hub, tmp_path, "--revision", "v1")
        assert (refused.returncode, "has no revision v1" in refused.stderr) == (1, True)
        assert add(hub, tmp_path, "--revision", "v2").returncode == 0


def test_offline_says_so_and_asks_nobody(published, tmp_path):
    with serving(published) as hub:
        refused = add(hub, tmp_path, HF_HUB_OFFLINE="1")
        assert (refused.returncode, "HF_HUB_OFFLINE" in refused.stderr) == (1, True)
        assert hub.asked == []


def test_offline_takes_what_is_in_the_cache(published, tmp_path):
    snapshot = tmp_path / "hf" / "hub" / "models--owner--name" / "snapshots" / COMMIT
    shutil.copytree(published, snapshot)
    refs = snapshot.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    with serving(published) as hub:
        added = add(hub, tmp_path, HF_HUB_OFFLINE="1")
        assert (added.returncode, hub.asked) == (0, []), added.stderr


def _larger(path: str, content: bytes) -> bytes:
    return content + bytes(4 << 20) if path.endswith(".safetensors") else content


def _other(path: str, content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def _claims(size: Any) -> Any:
    return lambda path, entry: entry | {"size": size}


@pytest.mark.parametrize(
    ("lie", "says"),
    [
        ({"content": _larger}, "and the server sends more"),
        ({"content": lambda path, content: content[:-9]}, "and has"),
        ({"content": _other}, "was announced with the hash"),
        ({"announce": _claims(1 << 60)}, "is announced with 1152921504606846976 bytes"),
        ({"announce": _claims(-1)}, "is announced with -1 bytes"),
    ],
    ids=["more", "less", "other", "huge", "negative"],
)
def test_a_server_that_lies_is_refused_and_nothing_is_left(published, tmp_path, lie, says):
    with serving(published, **lie) as hub:
        refused = add(hub, tmp_path)
    assert (refused.returncode, refused.stderr.count("Traceback")) == (1, 0)
    assert says in refused.stderr
    assert left_behind(tmp_path) == []


def test_a_server_that_is_away_is_said_in_one_line(published, tmp_path):
    hub = Hub(published, url="http://127.0.0.1:9")
    refused = add(hub, tmp_path)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
