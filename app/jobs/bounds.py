"""Bounds on what jobs there may be at a time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OwnBounds:
    """The bounds that one owner has of its own; None for those of all owners.

    Attributes:
        image_steps: As `Bounds.of_one`.
        jobs_open: As `Bounds.jobs_open`.
        jobs_kept: As `Bounds.jobs_kept`.
        bytes_kept: As `Bounds.bytes_kept`.
    """

    image_steps: int | None = None
    jobs_open: int | None = None
    jobs_kept: int | None = None
    bytes_kept: int | None = None


NO_OWN_BOUNDS = OwnBounds()


@dataclass(frozen=True, slots=True)
class Bounds:
    """What jobs there may be at a time.

    Attributes:
        of_one: Image-steps that one owner's open jobs may have left to run. An image-step counts
            as Card.cost_per_image_step of them.
        of_all: The same of all open jobs.
        jobs_open: Open jobs of one owner.
        jobs_kept: Jobs of one owner, with those that have ended and are not forgotten.
        bytes_kept: Bytes of one owner's images, wherever they lie. Those of open jobs count as
            Card.png_bytes_at_most each.
    """

    of_one: int
    of_all: int
    jobs_open: int
    jobs_kept: int
    bytes_kept: int

    def with_own(self, own: OwnBounds) -> Bounds:
        """Return the bounds that hold for an owner with bounds of its own."""
        return Bounds(
            of_one=own.image_steps or self.of_one,
            of_all=self.of_all,
            jobs_open=own.jobs_open or self.jobs_open,
            jobs_kept=own.jobs_kept or self.jobs_kept,
            bytes_kept=own.bytes_kept or self.bytes_kept,
        )
