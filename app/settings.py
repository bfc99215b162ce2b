"""Settings of an API process, from the environment (prefix DDPM_)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AnyUrl, Field, IPvAnyNetwork, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from worker.jobs.redis_url import RedisUrl

# EXPIRE fails far above it, and with it the script that ends a job.
_TEN_YEARS_S = 10 * 365 * 86_400


class ApiSettings(BaseSettings):
    """Settings of an API process. docs/reference/settings.md lists them."""

    model_config = SettingsConfigDict(
        env_prefix="DDPM_",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        # URLs hold passwords.
        hide_input_in_errors=True,
    )

    redis_url: RedisUrl = Field(
        default=AnyUrl("redis://127.0.0.1:6379/0"),
        description="The server that holds the jobs: redis://, rediss:// or unix://",
    )
    results_url: SecretStr = Field(
        default=SecretStr(""),
        description="Where finished PNGs lie, as the workers have it; empty: in Redis",
    )
    models_dir: Path | None = Field(
        default=None, description="Folder of model folders, beside the shipped ones"
    )
    results_ttl_s: int = Field(
        default=86_400,
        ge=1,
        le=_TEN_YEARS_S,
        description="Seconds that images are kept after their job ended; ten years at most",
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on")
    port: int = Field(
        default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one"
    )
    publish: str = Field(
        default="",
        description="Where a container's port is published, HOST:PORT, as Compose has it; empty: "
        "nowhere but on `host`",
    )
    max_body_bytes: int = Field(
        default=65_536, ge=1024, description="Largest request body that is read"
    )
    max_open_image_steps: int = Field(
        default=100_000_000,
        ge=1,
        description="Image-steps that all open jobs may have left to run; more are refused with "
        "429",
    )
    max_open_image_steps_per_key: int = Field(
        default=50_000_000,
        ge=1,
        description="The same of one key's jobs, or of all that are posted without keys",
    )
    api_keys: SecretStr = Field(
        default=SecretStr(""),
        description="Who is let in: NAME:SHA256 entries between commas, as `ddpm keys new NAME` "
        "prints them",
    )
    key_requests_per_s: float = Field(
        default=100,
        ge=0,
        allow_inf_nan=False,
        description="Requests a second that a key may send to one API process, after two seconds' "
        "worth at once; 0: no limit",
    )
    webhook_secret: SecretStr = Field(
        default=SecretStr(""),
        description="What the secrets of webhooks are made from, 32 characters or more; empty: no "
        "webhooks",
    )
    webhook_networks: Annotated[tuple[IPvAnyNetwork, ...], NoDecode] = Field(
        default=(),
        description="Networks between commas that webhooks may go to besides public addresses, "
        "such as 10.0.0.0/8",
    )
    anonymous_hosts: str = Field(
        default="",
        description="Without keys: names between commas under which the API answers besides "
        "localhost, * for any; has to be set to listen on more than loopback",
    )

    @field_validator("webhook_networks", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(part.strip() for part in value.split(",") if part.strip())

    @field_validator("webhook_secret")
    @classmethod
    def _long_enough(cls, value: SecretStr) -> SecretStr:
        if 0 < len(value.get_secret_value()) < 32:
            raise ValueError("it has less than 32 characters, which could be guessed")
        return value
