"""Settings of a worker process, read from environment variables with the prefix DDPM_."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ByteSize, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from worker.jobs.domain import SHARD_IMAGES, Precision
from worker.jobs.keys import DEFAULT_PREFIX
from worker.jobs.redis_url import DEFAULT_REDIS_URL, KeyPrefix, RedisUrl
from worker.logs import LogFormat, LogLevel


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
        default=DEFAULT_REDIS_URL, description="The server that holds the queue"
    )
    key_prefix: KeyPrefix = Field(
        default=DEFAULT_PREFIX,
        description="What names of keys, queues and channels begin with, as the API has it",
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
    models_memory: ByteSize | None = Field(
        default=None,
        gt=0,
        description=(
            "Memory that all models of the worker may take together, such as 8GiB; empty: half of "
            "the host's, or four fifths of what is free on the GPU at the start"
        ),
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        description=(
            "Threads of a CPU that compute a step, at most; empty: one for each core that the "
            "process may use"
        ),
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

    worker_name: str = Field(
        default="",
        max_length=100,
        description="The worker's name in metrics and log lines; empty: the host's and the device",
    )
    log_format: LogFormat = Field(
        default="auto", description="json, console; auto: console on a terminal, else json"
    )
    log_level: LogLevel = Field(
        default="info", description="Least level of log lines: debug, info, warning, error"
    )

    @field_validator("models", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(name.strip() for name in value.split(",") if name.strip())


def _cache_home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
