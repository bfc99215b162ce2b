"""Calibrations on the disk, so that a restart is quick and workers of one machine agree: the first measures, the others read."""

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

log = logging.getLogger(__name__)
_FORMAT = 10  # to be raised when calibrations of before no longer hold: another kernel, another way to measure


class CalibrationCache:
    """A folder of JSON files. One that cannot be written or read costs time, nothing else."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def recall(
        self,
        conditions: tuple[str, ...],
        measure: Callable[[], Calibration],
        beaten: Calibration | None = None,
    ) -> Calibration:
        """What was found under these conditions, or what `measure` finds now, while others who want the same wait.

        `beaten` is one that no longer holds.
        """
        key, path = self._place(conditions)
        with self._alone(path):
            found = _read(path, key)
            if found is None or found == beaten:
                found = measure()
                _write_json(path, key, asdict(found))
            return found

    def decide(self, conditions: tuple[str, ...], choose: Callable[[], str]) -> str:
        """What was chosen under these conditions, or what `choose` chooses now: measured anew, it might be something else."""
        key, path = self._place(("choice", *conditions))
        with self._alone(path):
            kept = _read_json(path, key)
            if kept is None or not isinstance(kept.get("chosen"), str):
                kept = {"chosen": choose()}
                _write_json(path, key, kept)
            return str(kept["chosen"])

    def _place(self, conditions: tuple[str, ...]) -> tuple[str, Path]:
        key = json.dumps([_FORMAT, *conditions])
        return key, self._folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"

    @contextmanager
    def _alone(self, path: Path) -> Iterator[None]:
        lock = FileLock(path.with_suffix(".lock"))
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError as error:
            log.info(
                "no calibration is kept: %s cannot be used (%s); set DDPM_CACHE_DIR",
                self._folder,
                error.strerror,
            )
            yield
            return
        try:
            yield
        finally:
            lock.release()


def _read(path: Path, key: str) -> Calibration | None:
    kept = _read_json(path, key)
    try:
        if kept is None:
            return None
        seconds, by_fewer = (
            {int(size): float(s) for size, s in kept[name].items()}
            for name in ("seconds", "by_fewer")
        )
        return Calibration(seconds, int(kept["threads"]), int(kept["fewer"]), by_fewer)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _read_json(path: Path, key: str) -> dict[str, Any] | None:
    try:
        kept: dict[str, Any] = json.loads(path.read_text())
        return kept if kept["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_json(path: Path, key: str, found: dict[str, Any]) -> None:
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        part.write_text(json.dumps({"key": key, **found}))
        part.replace(path)
    except OSError as error:
        log.info("the calibration is not kept: %s", error)
