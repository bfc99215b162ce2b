"""Calibrations on the disk, which make a restart quick and the workers of a machine agree.

The first worker measures, and the others read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock

from worker.calibration.calibrate import Calibration
from worker.logs import event

log = logging.getLogger(__name__)
# Raise this when older calibrations no longer hold, as kernels or the way to measure changed.
_FORMAT = 11


class CalibrationCache:
    """A folder of JSON files. A file that cannot be written or read costs time, nothing else."""

    def __init__(self, folder: Path) -> None:
        """Take the folder, which is made when it is needed."""
        self._folder = folder

    def recall(
        self,
        conditions: tuple[str, ...],
        measure: Callable[[], Calibration],
        beaten: Calibration | None = None,
    ) -> Calibration:
        """Return what was found under these conditions, or measure now and save the result.

        Other workers that want the same wait meanwhile.

        Args:
            conditions: What the calibration depends on.
            measure: Makes one.
            beaten: A calibration that no longer holds.
        """
        key, path = self._key_and_path(conditions)
        with self._locked(path):
            found = _read(path, key)
            if found is None or found == beaten:
                found = measure()
                _write_json(path, key, asdict(found))
            return found

    def decide(self, conditions: tuple[str, ...], choose: Callable[[], str]) -> str:
        """Return what was chosen under these conditions, or choose now and save the choice.

        The choice stays: chosen again, after another measurement, it might be different.
        """
        key, path = self._key_and_path(("choice", *conditions))
        with self._locked(path):
            saved = _read_json(path, key)
            if saved is None or not isinstance(saved.get("chosen"), str):
                saved = {"chosen": choose()}
                _write_json(path, key, saved)
            return str(saved["chosen"])

    def _key_and_path(self, conditions: tuple[str, ...]) -> tuple[str, Path]:
        key = json.dumps([_FORMAT, *conditions])
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        return key, self._folder / f"{name}.json"

    @contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        lock = FileLock(path.with_suffix(".lock"))
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError as error:
            log.info(
                "no calibration is kept: %s cannot be used (%s); set DDPM_CACHE_DIR",
                self._folder,
                error.strerror,
                extra=event("calibration.not_kept"),
            )
            yield
            return
        try:
            yield
        finally:
            lock.release()


def _read(path: Path, key: str) -> Calibration | None:
    saved = _read_json(path, key)
    if saved is None:
        return None
    try:
        seconds = _seconds_by_size(saved["seconds"])
        by_fewer = _seconds_by_size(saved["by_fewer"])
        threads, fewer = int(saved["threads"]), int(saved["fewer"])
        return Calibration(seconds, threads, fewer, by_fewer, str(saved["fingerprint"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _seconds_by_size(saved: dict[str, float]) -> dict[int, float]:
    return {int(size): float(seconds) for size, seconds in saved.items()}


def _read_json(path: Path, key: str) -> dict[str, Any] | None:
    try:
        saved: dict[str, Any] = json.loads(path.read_text())
        return saved if saved["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_json(path: Path, key: str, found: dict[str, Any]) -> None:
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        part.write_text(json.dumps({"key": key, **found}))
        part.replace(path)
    except OSError as error:
        log.info("the calibration is not kept: %s", error, extra=event("calibration.not_kept"))
