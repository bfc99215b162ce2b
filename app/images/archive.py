"""All images of a job as one zip, written while it is sent, so that memory holds a few of them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from hashlib import sha256
from io import SEEK_SET, BytesIO
from zipfile import ZipFile, ZipInfo

from app.images.reader import ImageReader
from app.operation.turns import Turns
from app.problems.problems import Expired
from app.records.record import Record
from worker.logs import event

log = logging.getLogger(__name__)
# Images that memory holds.
_AT_ONCE = 16
# The mode of a file on Unix. Without one, only its owner may read what is unpacked.
_MODE = 0o644 << 16


class Archive:
    """A zip of some images. The same images give the same bytes, as no entry has a time.

    Nothing is compressed, since PNGs are already.
    """

    def __init__(
        self, images: ImageReader, record: Record, digests: Mapping[int, str], turns: Turns
    ) -> None:
        """Prepare an archive, without reading any image.

        Args:
            images: Where the PNGs come from.
            record: The job whose images they are.
            digests: The sha256 of each image, by index; at least one.
            turns: Of owners, each of whom makes one part at a time.
        """
        self._images = images
        self._record = record
        self._digests = digests
        self._turns = turns
        self._digits = len(str(max(digests)))

    def __len__(self) -> int:
        """Count the images."""
        return len(self._digests)

    @property
    def sha256(self) -> str:
        """A digest of names and images, known before any image is read."""
        lines = (f"{self._name(index)} {digest}\n" for index, digest in self._digests.items())
        return sha256("".join(lines).encode()).hexdigest()

    async def parts(self) -> AsyncIterator[bytes]:
        """Write the archive, part by part.

        Raises:
            Expired: An image is gone.
            ResultsUnreachable: The results store did not answer.
            redis.RedisError: Redis did not answer.
        """
        indices = list(self._digests)
        window = _Window()
        with ZipFile(window, "w") as archive:
            for first in range(0, len(indices), _AT_ONCE):
                some = {index: self._digests[index] for index in indices[first : first + _AT_ONCE]}
                # A store that hangs keeps no turn.
                pngs = await self._images.read(self._record, some)
                async with self._turns.turn(self._record.owner):
                    self._write(archive, zip(some, pngs, strict=True), is_first=not first)
                yield window.take()
        yield window.take()

    def _write(
        self, archive: ZipFile, images: Iterable[tuple[int, bytes | None]], is_first: bool
    ) -> None:
        for index, png in images:
            if png:
                archive.writestr(self._entry(index), png)
                continue
            if not is_first:  # too late to answer 410
                log.warning(
                    "image %d of job %s is gone, so its archive cannot be sent whole",
                    index,
                    self._record.id,
                    extra=event("archive.broken", job=self._record.id),
                )
            raise Expired

    def _entry(self, index: int) -> ZipInfo:
        entry = ZipInfo(self._name(index))
        entry.external_attr = _MODE
        return entry

    def _name(self, index: int) -> str:
        """Name an image's entry, with so many digits that names sort as indices do."""
        return f"{index:0{self._digits}}.png"


class _Window(BytesIO):
    """The end of a file whose beginning has been taken.

    ZipFile seeks back within the entry that it writes, and no further.
    If it could not, it would write an entry's size behind it, which breaks readers of streams.
    """

    _taken = 0

    def tell(self) -> int:
        """Give the place in the whole file."""
        return self._taken + super().tell()

    def seek(self, place: int, whence: int = SEEK_SET) -> int:
        """Go to a place in the whole file that has not been taken yet."""
        assert whence == SEEK_SET
        return self._taken + super().seek(place - self._taken)

    def take(self) -> bytes:
        """Take what has been written since the last call."""
        part = self.getvalue()
        self._taken += len(part)
        super().seek(0)
        self.truncate()
        return part
