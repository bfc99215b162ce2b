"""What a worker can load: the models of the catalog, and weights that jobs still need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.checkpoints.added.kept import kept_models
from models.checkpoints.catalog import Card, Catalog
from models.checkpoints.live_catalog import LiveCatalog
from worker.process.models.served_models import Version

_FLOAT_BYTES = 4
# What every served model has in addition, such as the table of its time features.
_EXTRA_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Offer:
    """A model that can be loaded.

    Attributes:
        card: what is known of it.
        folder: where it lies.
        is_kept: whether its name has other weights by now, or was removed.
    """

    card: Card
    folder: Path
    is_kept: bool = False

    @property
    def version(self) -> Version:
        """Its name and the hash of its weights."""
        return Version(self.card.name, self.card.sha256)

    @property
    def catalog(self) -> Catalog:
        """A catalog of this model alone."""
        return Catalog({self.card.name: self.folder}, {self.card.name: self.card})

    def stamp(self) -> tuple[tuple[int, int, int], ...]:
        """Return what changes when a file of the folder is written."""
        found = []
        for path in sorted(self.folder.rglob("*")):
            try:
                status = path.stat()
            # removed in between
            except OSError:
                continue
            found.append((status.st_ino, status.st_mtime_ns, status.st_size))
        return tuple(found)


def needed_bytes(card: Card, pool_images: int) -> int:
    """Return the memory that a model takes: its weights, and the tensors of each place of its pool.

    What a step needs while it runs is not counted: models step one after the other, and use the
    same memory for it.
    """
    shape = card.shape
    is_guided = card.classes is not None and card.classes.null is not None
    # x and x_0_hat, and of guided chains a third tensor
    chain = (3 if is_guided else 2) * shape.channels * shape.height * shape.width
    return _FLOAT_BYTES * (card.parameters + pool_images * chain) + _EXTRA_BYTES


class Offers:
    """Follows the folders of models.

    Attributes:
        catalog: the models that new jobs may name.
    """

    def __init__(
        self,
        catalog: LiveCatalog,
        roots: Sequence[Path],
        serves: Callable[[str], bool] = lambda name: True,
    ) -> None:
        """Read the folders.

        Args:
            catalog: the models that there are.
            roots: the folders of model folders, as the catalog has them.
            serves: tells whether the worker may serve a model of that name.
        """
        self.catalog = catalog
        self._roots = roots
        self._serves = serves
        self._offers: dict[Version, Offer] = {}
        self.refresh()

    def __contains__(self, version: object) -> bool:
        return version in self._offers

    def __iter__(self) -> Iterator[Offer]:
        return iter(list(self._offers.values()))

    def get(self, version: Version) -> Offer | None:
        """Return the offer of a version, if there is one."""
        return self._offers.get(version)

    def current(self, name: str) -> Offer | None:
        """Return what new jobs of a name get, if there is such a model."""
        return next((o for o in self if o.card.name == name and not o.is_kept), None)

    @property
    def names(self) -> set[str]:
        """The names of all offers."""
        return {offer.card.name for offer in self}

    @property
    def faults(self) -> dict[str, str]:
        """Why cards cannot be read, by the names of their folders."""
        return self.catalog.faults

    def without_roots(self, text: str) -> str:
        """Return a text in which paths begin below the folders of models, for clients."""
        for root in self._roots:
            text = text.replace(f"{root}/", "")
        return text

    def kept(self) -> list[Offer]:
        """Return the offers of weights that only jobs of the past need."""
        return [offer for offer in self if offer.is_kept]

    def refresh(self) -> None:
        """Look at the folders again. The catalog looks at most once a second."""
        offers = {}
        for folder, card in kept_models(self._roots).items():
            if self._serves(card.name):
                offer = Offer(card, folder, is_kept=True)
                offers[offer.version] = offer
        for name in list(self.catalog):
            if self._serves(name):
                offer = Offer(self.catalog[name], self.catalog.folder(name))
                offers[offer.version] = offer
        self._offers = offers
