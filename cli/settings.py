"""Settings of the `ddpm` command, from the environment (prefix DDPM_).

Also how the command reads any process's settings, and checks them before it starts anything.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from cli.faults import Fault
from worker.redaction import scheme_only

if TYPE_CHECKING:
    from app.access.key_file import KeySource
    from app.settings import ApiSettings

S = TypeVar("S", bound=BaseSettings)


class CliSettings(BaseSettings):
    """Settings of the command itself."""

    model_config = SettingsConfigDict(
        env_prefix="DDPM_", env_ignore_empty=True, extra="ignore", frozen=True
    )

    data_dir: Path = Field(
        default=Path(".ddpm"),
        description="Folder of all state: the queue, the results, added models",
    )
    redis_url: str | None = Field(
        default=None, description="A server of your own; unset, `ddpm up` starts one"
    )
    redis_maxmemory: str | None = Field(
        default=None,
        pattern=r"^\d+([kmg]b?)?$",
        description="Memory of the server that `ddpm up` starts, in bytes or as 4gb; "
        "unset, half of the machine's",
    )
    models_dir: Path | None = Field(
        default=None, description="Folder of added models; unset, models/ in the data folder"
    )
    cache_dir: Path | None = Field(
        default=None,
        description="Folder of the workers' calibrations; unset, cache/ in the data folder",
    )
    device: str | None = Field(
        default=None, description="Device of every worker; unset, one GPU each"
    )
    worker_name: str | None = Field(
        default=None, description="What workers' names begin with; unset, the host's"
    )

    @property
    def cache_root(self) -> Path:
        """Folder of the workers' calibrations."""
        return self.cache_dir or self.data_dir / "cache"

    @property
    def models_root(self) -> Path:
        """Folder of added models."""
        return self.models_dir or self.data_dir / "models"


def read(settings: type[S]) -> S:
    """Read settings from the environment.

    Raises:
        Fault: A variable is wrong; the text names it and shows no secret.
    """
    try:
        return settings()
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])
        secret = settings.model_fields[field].annotation is SecretStr
        if secret:
            value = "***"
        elif field.endswith("_url"):
            value = scheme_only(first["input"])
        else:
            value = repr(first["input"])
        raise Fault(
            f"DDPM_{field.upper()}={value}: {first['msg']}; correct it or unset it"
        ) from None


def check_models(folder: Path | None) -> None:
    """Check before anything starts that a model can be served.

    Args:
        folder: Folder of added models; None where there are only those that we ship.

    Raises:
        Fault: The catalog cannot be read, or holds no model.
    """
    from models.checkpoints.catalog import SHIPPED, Catalog, CatalogError

    try:
        Catalog.read(SHIPPED, *([folder] if folder else []))
    except CatalogError as error:
        raise Fault(str(error)) from None


def check_results_url(url: SecretStr) -> None:
    """Check before anything starts that the results store can be used.

    Raises:
        Fault: It cannot.
    """
    from worker.results.url import BadStoreUrl, open_store

    try:
        open_store(url.get_secret_value())
    except BadStoreUrl as error:
        raise Fault(str(error)) from None


def check_tracing() -> None:
    """Check before anything starts that traces can be sent, if the OTEL_* variables ask for them.

    Raises:
        Fault: They cannot.
    """
    from worker.tracing import TracingUnavailable, start_tracing

    try:
        tracing = start_tracing("ddpm")
    except TracingUnavailable as error:
        raise Fault(str(error)) from None
    if tracing:
        tracing.close()


def check_access(settings: ApiSettings, host: str) -> None:
    """Check before anything starts that no stranger would be let in.

    There have to be keys, or a host that only this machine reaches, or names to be reached under.

    Args:
        settings: Settings of the API.
        host: Address that it will listen on.

    Raises:
        Fault: Strangers would be let in, or a key cannot be used.
    """
    from app.access.api_keys import is_loopback_host
    from app.access.gate import host_names

    if keys_of(settings):
        return
    everybody = (
        "anybody who reaches this machine would be let in, as there are no API keys; "
        "set DDPM_API_KEYS or DDPM_API_KEYS_FILE (`ddpm keys new NAME` makes a key)"
    )
    by_name = "DDPM_ANONYMOUS_HOSTS to the names to be reached under without (* for any)"
    names = host_names(settings.anonymous_hosts)
    if not (names or is_loopback_host(host)):
        raise Fault(f"on host {host!r} {everybody}, or {by_name}")
    published = settings.publish.rpartition(":")[0].strip("[]")
    # Names of loopback say nothing of a port for everybody. "localhost" is Compose's default.
    named = any(not is_loopback_host(name) for name in names)
    if settings.publish and not (named or is_loopback_host(published)):
        loopback = "DDPM_PUBLISH to an address of loopback such as 127.0.0.1:8000"
        raise Fault(f"published on {settings.publish}, {everybody}, {loopback}, or {by_name}")


def keys_of(settings: ApiSettings) -> KeySource:
    """Return the keys that are let in.

    Raises:
        Fault: An entry of DDPM_API_KEYS, or DDPM_API_KEYS_FILE, cannot be used.
    """
    from app.access.api_keys import BadKeys
    from app.access.key_file import KeySource

    try:
        return KeySource(settings.api_keys.get_secret_value(), settings.api_keys_file)
    except BadKeys as error:
        raise Fault(str(error)) from None
