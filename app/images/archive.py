"""All pictures of a job as one zip, written while it is sent: memory holds a few of them, however many there are."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from hashlib import sha256
from io import SEEK_SET, BytesIO
from zipfile import ZipFile, ZipInfo

from app.images.reader import ImageReader
from app.problems.problems import Expired
from app.records.record import Record

log = logging.getLogger(__name__)
_AT_ONCE = 16
_MODE = 0o644 << 16  # of a file on Unix; without one, only its owner may read what is unpacked


class Archive:
    """The PNGs whose hashes are given. The same pictures give the same bytes: no times are kept, and nothing is compressed."""

    def __init__(self, pictures: ImageReader, record: Record, hashes: Mapping[int, str]) -> None:
        self._pictures, self._record, self._hashes = pictures, record, hashes
        self._digits = len(str(max(hashes)))

    @property
    def sha256(self) -> str:
        """Of what is in it; known before any of it is read."""
        return sha256(
            "".join(
                f"{self._name(index)} {digest}\n" for index, digest in self._hashes.items()
            ).encode()
        ).hexdigest()

    async def parts(self) -> AsyncIterator[bytes]:
        """Raises Expired where a picture is gone, and ResultsUnreachable."""
        indices, window = list(self._hashes), _Window()
        with ZipFile(window, "w") as archive:
            for first in range(0, len(indices), _AT_ONCE):
                some = {index: self._hashes[index] for index in indices[first : first + _AT_ONCE]}
                for index, png in zip(
                    some, await self._pictures.read(self._record, some), strict=True
                ):
                    if not png:
                        if first:  # too late to answer 410
                            log.warning(
                                "image %d of job %s is gone, so its archive cannot be sent whole",
                                index,
                                self._record.id,
                            )
                        raise Expired
                    archive.writestr(self._entry(index), png)
                yield window.taken()
        yield window.taken()

    def _entry(self, index: int) -> ZipInfo:
        entry = ZipInfo(self._name(index))
        entry.external_attr = _MODE
        return entry

    def _name(self, index: int) -> str:
        """So that they sort."""
        return f"{index:0{self._digits}}.png"


class _Window(BytesIO):
    """The end of a file whose beginning has been taken. ZipFile goes back no further than to the entry that it writes.

    Where it could not go back it would write an entry's size behind it, which readers of streams stumble over.
    """

    _taken = 0

    def tell(self) -> int:
        return self._taken + super().tell()

    def seek(self, place: int, whence: int = SEEK_SET) -> int:
        assert whence == SEEK_SET
        return self._taken + super().seek(place - self._taken)

    def taken(self) -> bytes:
        """What has come since the last time."""
        part = self.getvalue()
        self._taken += len(part)
        super().seek(0)
        self.truncate()
        return part
