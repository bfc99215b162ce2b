"""The type of DDPM_REDIS_URL, which the API and the workers share."""

from __future__ import annotations

from typing import Annotated

from pydantic import AnyUrl, UrlConstraints

RedisUrl = Annotated[AnyUrl, UrlConstraints(allowed_schemes=["redis", "rediss", "unix"])]
