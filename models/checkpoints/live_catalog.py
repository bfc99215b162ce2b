"""A catalog that follows its folders: models are added and removed while a process serves."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from models.checkpoints.catalog import CARD, Card, Catalog, CatalogError

log = logging.getLogger(__name__)
_EVERY_S = 1.0


class LiveCatalog(Catalog):
    """Reads its folders again when a card has changed, and looks at most once a second.

    Iterating, asking for a name by `in` and asking for the default look at the folders. `[]` does
    not, so that a name that was there a line ago is still there.

    Attributes:
        faults: why cards cannot be read, by the names of their folders.
    """

    def __init__(
        self,
        *roots: Path,
        skip: Callable[[CatalogError], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read all cards below `roots`.

        Args:
            roots: Folders of model folders, which need not exist yet.
            skip: Takes the fault of each card that cannot be read now. None: it is raised.
            clock: The time in seconds, from any beginning.

        Raises:
            CatalogError: A card cannot be read, or there is none.
        """
        self._roots = roots
        self._clock = clock
        self._stamp = _stamp_of(roots)
        self._due_at = clock() + _EVERY_S
        self.faults: dict[str, str] = {}
        self._read(skip)

    def __contains__(self, name: object) -> bool:
        self.refresh()
        return name in self._cards

    def __iter__(self) -> Iterable[str]:  # type: ignore[override]
        self.refresh()
        return iter(self._cards)

    def __len__(self) -> int:
        self.refresh()
        return len(self._cards)

    @property
    def default(self) -> Card:
        """The last card marked default, or the last of all if none is, in order of reading."""
        self.refresh()
        return super().default

    def refresh(self) -> None:
        """Read the folders again if a second has passed and a card has changed.

        A card that cannot be read is logged and left out. If none can be read, the last ones stay.
        """
        now = self._clock()
        if now < self._due_at:
            return
        self._due_at = now + _EVERY_S
        stamp = _stamp_of(self._roots)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._read(_say_skipped)
        except CatalogError as fault:
            text = "%s; the models stay as they were"
            log.error(text, fault, extra=_event("catalog.unusable"))
        else:
            names = ", ".join(sorted(self._cards))
            log.info("the models are %s", names, extra=_event("catalog.reloaded"))

    def _read(self, skip: Callable[[CatalogError], object] | None) -> None:
        faults: dict[str, str] = {}

        def note(fault: CatalogError) -> None:
            faults[fault.folder] = str(fault)
            if skip is not None:
                skip(fault)

        read = Catalog.read(*self._roots, skip=note if skip else None)
        self.faults = faults
        cards = dict(read)
        super().__init__({name: read.folder(name) for name in cards}, cards)


def _say_skipped(fault: CatalogError) -> None:
    log.error("%s", fault, extra=_event("model.skipped"))


def _event(name: str) -> dict[str, object]:
    """Name a line's event as worker/logs.py does, of which models know nothing."""
    return {"event": name, "fields": {}}


def _stamp_of(roots: Iterable[Path]) -> list[tuple[str, int, int, int]]:
    """Return what changes when a card is added, removed or written."""
    stamp = []
    for root in roots:
        for card in sorted(root.glob(f"*/{CARD}")):
            try:
                status = card.stat()
            # removed in between
            except OSError:
                continue
            stamp.append((str(card), status.st_ino, status.st_mtime_ns, status.st_size))
    return stamp
