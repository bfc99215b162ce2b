from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.s3 import BUCKET, s3_server
from worker.results.in_redis import InRedis
from worker.results.store import ResultsStore, StoreFault
from worker.results.url import BadStoreUrl, open_store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "a folder" / "of pictures"


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, folder: Path) -> Iterator[ResultsStore]:
    if request.param == "file":
        yield open_store(f"file://{folder}")
        return
    with s3_server():
        yield open_store(f"s3://{BUCKET}/a prefix")


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_an_image_can_be_got_until_it_is_removed(store: ResultsStore) -> None:
    images = [(7, b"seven"), (12, b"twelve"), (2**32 - 1, b"last")]
    assert store.put("job", images) == [b"", b"", b""]
    assert store.get("job", [12, 7, 8, 2**32 - 1]) == [b"twelve", b"seven", None, b"last"]
    store.put("job", [(7, b"seven")])
    store.remove("job", [7, 8])
    assert store.get("job", [7, 12]) == [None, b"twelve"]
    store.remove_all("job")
    assert store.get("job", [12]) == [None]


@pytest.mark.parametrize("size", [1, 60 * 2**20], ids=["small", "in several parts"])
def test_a_blob_is_stored_whole_replaced_and_removed_with_its_job(
    store: ResultsStore, size: int
) -> None:
    store.put("a", [(0, b"a picture")])
    for content in (b"x", b"y" * size):
        store.put_blob("a", "chains-0", content)
        assert store.get_blob("a", "chains-0") == content
    store.put_blob("a", "chains-1", b"z")
    store.remove_blob("a", "chains-1")
    store.remove_blob("a", "chains-1")
    assert store.get_blob("a", "chains-1") is None
    assert store.get("a", [0]) == [b"a picture"]
    store.remove_all("a")
    assert store.get_blob("a", "chains-0") is None


def test_a_removal_of_nothing_is_no_fault_and_touches_no_other_job(
    store: ResultsStore,
) -> None:
    store.put("job2", [(0, b"another's")])
    store.remove("job", [0])
    store.remove_all("job")
    store.remove_all("job")
    assert store.get("job2", [0]) == [b"another's"]


def test_a_png_is_an_object_named_by_job_and_index(folder: Path) -> None:
    store = open_store(f"file://{folder}")
    store.put("job", [(3, b"three")])
    assert files(folder) == ["job/3.png"]
    store.remove_all("job")
    assert list(folder.iterdir()) == []


def test_a_full_disk_leaves_neither_half_a_png_nor_its_parts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = open_store(f"file://{folder}")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreFault, match="No space left on device"):
            store.put("job", [(0, b"zero")])
    assert files(folder) == []
    assert store.get("job", [0]) == [None]


def test_a_folder_that_is_gone_is_a_fault_and_not_a_missing_image(folder: Path) -> None:
    store = open_store(f"file://{folder}")
    with pytest.raises(StoreFault, match="No such file or directory"):
        store.get("job", [0])


def test_an_s3_that_is_gone_is_a_fault_at_once() -> None:
    with s3_server() as server:
        store = open_store(f"s3://{BUCKET}")
        store.put("job", [(0, b"zero")])
        server.stop()
        for call in (
            lambda: store.get("job", [0]),
            lambda: store.put("job", [(1, b"one")]),
            lambda: store.remove_all("job"),
        ):
            with pytest.raises(StoreFault, match="does not answer"):
                call()


def test_a_bucket_that_does_not_exist_is_a_fault_that_says_so() -> None:
    with (
        s3_server(),
        pytest.raises(StoreFault, match="s3://nobodys/x has no such bucket or folder"),
    ):
        open_store("s3://nobodys/x").put("job", [(0, b"zero")])


@pytest.mark.parametrize("url", [None, ""])
def test_pngs_go_to_redis_without_a_url(url: str | None) -> None:
    store = open_store(url)
    assert isinstance(store, InRedis)
    assert store.put("job", [(0, b"zero")]) == [b"zero"]


BAD_URLS = [
    ("/var/pictures", "names no place; use file:///FOLDER"),
    ("s3://", "names no place"),
    ("file:///", "names no place"),
    ("nonsense://x/y", "of an unknown kind; use file://"),
    ("s3://bucket/[a]", "holds one of"),
    ("simplecache::s3://bucket/x", "of an unknown kind"),
]


@pytest.mark.parametrize(("url", "text"), BAD_URLS)
def test_a_bad_url_is_refused_with_the_remedy(url: str, text: str) -> None:
    with pytest.raises(BadStoreUrl, match=text):
        open_store(url)


def test_a_url_whose_package_is_absent_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(
        BadStoreUrl,
        match=r"DDPM_RESULTS_URL=gs://bucket needs the package gcsfs, .*; pip install gcsfs",
    ):
        open_store("gs://bucket")


@pytest.mark.parametrize(
    "url",
    [
        "sftp://me:secret@host/path",
        "sftp://me:sec@re/t?@host/path?token=secret",
        "me:secret@host",
        "nonsense://secret@x",
    ],
)
def test_an_error_shows_a_url_without_its_secrets(url: str) -> None:
    with pytest.raises(BadStoreUrl) as caught:
        open_store(url)
    assert "secret" not in str(caught.value)
