"""Route of the caller: who asks, what the key may do, and what is left of its limits."""

from __future__ import annotations

from fastapi import APIRouter

from app.access.cost import CostMeter
from app.problems.problems import StoreUnreachable, problems
from app.records.record import utc
from app.routers.dependencies import Caller, Commands, Cost, Streams
from app.schemas.me import Limit, Me

router = APIRouter(tags=["jobs"], responses=problems(StoreUnreachable))


def _requests(cost: CostMeter) -> Limit | None:
    if not cost.per_s:
        return None
    now = cost.allowance
    return Limit.of(now.most - now.left, now.most)


@router.get("/v1/me")
async def get_me(caller: Caller, commands: Commands, cost: Cost, streams: Streams) -> Me:
    """Your key: its name, what it may do, and what is left of its limits."""
    usage = await commands.usage(caller.name, caller.bounds)
    return Me(
        name=caller.name,
        scopes=sorted(caller.scopes),
        expires_at=utc(caller.expires_at),
        requests_per_s=cost.per_s or None,
        requests=_requests(cost),
        streams=Limit.of(streams.of[caller.name], caller.max_streams or streams.most),
        open_image_steps=Limit.of(*usage.open_image_steps),
        open_jobs=Limit.of(*usage.open_jobs),
        kept_jobs=Limit.of(*usage.kept_jobs),
        kept_bytes=Limit.of(*usage.kept_bytes),
    )
