"""Fetches what a job has made for its owner: images, previews, contact sheet and archive."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256

from redis.asyncio import Redis

from app.events.previews import PreviewReader
from app.images.archive import Archive
from app.images.contact_sheets import ClientGone, ContactSheets
from app.images.reader import ImageReader
from app.jobs.queries import JobQueries
from app.operation.turns import Turns
from app.problems.problems import Expired, NotEnded, NotFinished, UnknownImage
from app.records.reader import check_job_id, owned_record
from worker.jobs.keys import job_key, png_key, sha256_key

# Archives of which a part is made at a time.
_ARCHIVES = 4


class JobImages:
    """Fetches the images of jobs for their owner. To everybody else a job is unknown.

    Every method raises redis' own errors where Redis is away.
    app/problems/exception_handlers.py turns them into 503 and 507.
    """

    def __init__(
        self,
        redis: Redis,
        queries: JobQueries,
        reader: ImageReader,
        sheets: ContactSheets,
        previews: PreviewReader,
    ) -> None:
        self._redis = redis
        self._queries = queries
        self._reader = reader
        self._sheets = sheets
        self._previews = previews
        self._turns = Turns(_ARCHIVES)

    async def image(self, job: str, owner: str, index: int) -> tuple[bytes, str]:
        """Return a PNG and its SHA-256 in hexadecimal.

        Raises:
            UnknownJob: there is no such job, or it is another owner's.
            UnknownImage: the job has no image of this index.
            NotFinished: the image is still to come, or never will.
            Expired: the image was there, and its time to live is over.
            ResultsUnreachable: the results store does not answer.
        """
        check_job_id(job)
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.hgetall(job_key(job))
            pipe.hget(sha256_key(job), str(index))
            pipe.hget(png_key(job), str(index))
            fields, digest, png = await pipe.execute()
        record = owned_record(job, owner, fields)
        if index not in record.indices:
            raise UnknownImage(index, record.start, record.count)
        if not digest:
            raise NotFinished(f"image {index} is not finished", record.state)
        png = png or (await self._reader.stored(record, {index: digest.decode()}))[index]
        if not png:
            raise Expired
        return png, digest.decode()

    async def preview(self, job: str, owner: str, index: int) -> tuple[bytes, str]:
        """Return a PNG of x_0_hat and its SHA-256, or the image where that is finished.

        Raises:
            NoPreview: no worker shows the image.
            UnknownJob, UnknownImage, NotFinished, Expired, ResultsUnreachable: as `image` does.
        """
        png = await self._previews.read(job, owner, index)
        return (png, sha256(png).hexdigest()) if png else await self.image(job, owner, index)

    async def grid(
        self, job: str, owner: str, pay: Callable[[int], None], gone: ClientGone
    ) -> tuple[bytes, bool] | None:
        """Draw the contact sheet of the images that are finished.

        Args:
            job: Id of the job.
            owner: Name of the key that asks.
            pay: Takes the number of images before they are drawn, and may refuse.
            gone: Returns when the client has closed its connection, which ends the drawing.

        Returns:
            A PNG, and whether it can never change. None for a client that has gone.

        Raises:
            UnknownJob: there is no such job, or it is another owner's.
            NotFinished: no image is finished.
            Expired: the images were there, and their time to live is over.
            ResultsUnreachable: the results store does not answer.
        """
        now, record = await self._queries.get_with_record(job, owner)
        if not now.progress.images_done:
            raise NotFinished("no image is finished", now.state)
        pay(now.progress.images_done)
        drawn = await self._sheets.draw(record, now.images, gone)
        if drawn is None:
            return None
        png, whole = drawn
        return png, whole and now.state.final

    async def archive(self, job: str, owner: str) -> Archive:
        """Return all finished images of a job that has ended, to be sent as a zip.

        Raises:
            UnknownJob: there is no such job, or it is another owner's.
            NotEnded: the job is still queued or running.
            NotFinished: the job has ended without an image.
        """
        now, record = await self._queries.get_with_record(job, owner)
        if not now.state.final:
            raise NotEnded(now.state)
        hashes = {image.index: image.sha256 for image in now.images if image.sha256}
        if not hashes:
            raise NotFinished("no image is finished", now.state)
        return Archive(self._reader, record, hashes, self._turns)
