"""Settings of a worker process, read from environment variables with the prefix DDPM_."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AnyUrl, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from worker.jobs.domain import SHARD_IMAGES, Precision
from worker.jobs.redis_url import RedisUrl


class WorkerSettings(BaseSettings):
    """All that can be set of a worker.

    Raises:
        ValidationError: a variable has no valid value. The message hides the values, since URLs
            hold passwords.
    """

    model_config = SettingsConfigDict(
        env_prefix="DDPM_",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    redis_url: RedisUrl = Field(
        default=AnyUrl("redis://127.0.0.1:6379/0"), description="The server that holds the queue"
    )
    results_url: SecretStr = Field(
        default=SecretStr(""),
        description=(
            "Where finished PNGs lie: file:///FOLDER, s3://BUCKET/PREFIX, any of fsspec; "
            "empty: in Redis"
        ),
    )
    models_dir: Path | None = Field(
        default=None, description="Folder of model folders, beside the shipped ones"
    )
    models: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Names to serve, comma-separated; empty: all"
    )
    device: str = Field(
        default="auto", description="cpu, cuda, cuda:1; auto takes a GPU where there is one"
    )
    pool_images: int = Field(
        default=1024,
        ge=3 * SHARD_IMAGES,
        le=65536,
        description="Images that one model's pool holds at once",
    )
    precision: Precision | Literal["auto"] = Field(
        default="auto",
        description=(
            "fp32, bf16; auto takes bf16 where it is at least 1.1 times as fast. "
            "Pictures of the two differ"
        ),
    )
    cache_dir: Path = Field(
        default_factory=lambda: _cache_home() / "ddpm",
        description=(
            "Folder in which calibrations and compiled kernels are kept; "
            "it may be emptied at any time"
        ),
    )

    heartbeat_file: Path | None = Field(
        default=None,
        description="File to touch at every heartbeat, for a health check; empty: none",
    )

    @field_validator("models", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(name.strip() for name in value.split(",") if name.strip())


def _cache_home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
