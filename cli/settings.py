"""What the `ddpm` command itself takes from the environment (prefix DDPM_), and how it reads any process's settings."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from cli.faults import Fault

S = TypeVar("S", bound=BaseSettings)


class CliSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="DDPM_", extra="ignore", frozen=True)

    data_dir: Path = Field(default=Path(".ddpm"), description="Folder of all state: the queue, the results, added models")
    redis_url: str | None = Field(default=None, description="A server of your own; unset, `ddpm up` starts one")
    models_dir: Path | None = Field(default=None, description="Folder of added models; unset, models/ in the data folder")
    device: str | None = Field(default=None, description="Device of every worker; unset, one GPU each")

    @property
    def models_root(self) -> Path:
        return self.models_dir or self.data_dir / "models"


def read(settings: type[S]) -> S:
    """Settings from the environment; a Fault names the variable that is wrong."""
    try:
        return settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = "_".join(["DDPM", *map(str, first["loc"])]).upper()
        raise Fault(f"{name}={first['input']!r}: {first['msg']}; correct it or unset it") from None


def check_results_url(url: SecretStr) -> None:
    """Before anything starts, and without a traceback."""
    from worker.store import BadStoreUrl, open_store

    try:
        open_store(url.get_secret_value())
    except BadStoreUrl as error:
        raise Fault(str(error)) from None
