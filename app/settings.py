"""Settings of an API process, from the environment (prefix DDPM_)."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, IPvAnyNetwork, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from worker.jobs.keys import DEFAULT_PREFIX
from worker.jobs.redis_url import DEFAULT_REDIS_URL, KeyPrefix, RedisUrl
from worker.logs import LogFormat, LogLevel, url_secrets

# EXPIRE fails far above it, and with it the script that ends a job.
_TEN_YEARS_S = 10 * 365 * 86_400
# Of a host as a `Host` header has it, without its port.
_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
_ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[1-9]\d{0,4})?")
_ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")
# First words of paths of the API: behind such a prefix nobody could tell the two apart.
_OUR_PATHS = ("v1", "docs", "static", "healthz", "readyz", "metrics", "openapi.json")


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
        default=DEFAULT_REDIS_URL,
        description="The server that holds the jobs: redis://, rediss://, unix://, or "
        "redis+sentinel:// with several Sentinels",
    )
    redis_connections: int = Field(
        default=64,
        ge=8,
        le=10_000,
        description="Connections of one API process to that server, at most: so many for posts, "
        "and as many for all else",
    )
    key_prefix: KeyPrefix = Field(
        default=DEFAULT_PREFIX,
        description="What names of keys, queues and channels begin with: letters, digits, _, -, . "
        "and one colon at the end",
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
    api_processes: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="API processes that share the port; unset, one for each four cores, eight at "
        "most",
    )
    uds: Path | None = Field(
        default=None, description="Unix socket to listen on instead, such as /run/ddpm/api.sock"
    )
    supervisor: Literal["none", "up", "compose", "kubernetes", "systemd"] = Field(
        default="none",
        description="What runs the workers, so that /readyz can say how to start one",
    )
    publish: str = Field(
        default="",
        description="Where a container's port is published, HOST:PORT, as Compose has it; empty: "
        "nowhere but on `host`",
    )
    root_path: str = Field(
        default="",
        description="Path under which a proxy serves the API, such as /ddpm; empty: at the top",
    )
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Addresses and networks between commas whose Forwarded and X-Forwarded-* are "
        "believed, unix for what comes through a Unix socket",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Origins between commas whose web pages may call the API, such as "
        "https://app.example.com; * for any",
    )
    keep_alive_s: int = Field(
        default=75,
        ge=1,
        le=3600,
        description="Seconds that an idle connection stays open: longer than a proxy keeps its "
        "own, which is 60 for most",
    )
    stop_pause_s: float = Field(
        default=0,
        ge=0,
        le=300,
        allow_inf_nan=False,
        description="Seconds between not ready and closed, when the process is told to stop: as "
        "long as a balancer needs to see it",
    )
    max_connections: int = Field(
        default=4096,
        ge=1,
        description="Connections that a process holds, fewer where it may not open as many files",
    )
    max_body_bytes: int = Field(
        default=65_536, ge=1024, description="Largest request body that is read"
    )
    max_open_image_steps: int = Field(
        default=100_000_000,
        ge=1,
        description="Image-steps that all open jobs may have left to run, each times its model's "
        "cost; more are refused with 429",
    )
    max_open_image_steps_per_key: int = Field(
        default=50_000_000,
        ge=1,
        description="The same of one key's jobs, or of all that are posted without keys",
    )
    max_open_jobs_per_key: int = Field(
        default=20_000,
        ge=1,
        description="Jobs of one key that may wait or run, or of all that are posted without keys",
    )
    max_kept_jobs_per_key: int = Field(
        default=200_000,
        ge=1,
        description="The same with those that have ended and are not forgotten; each takes 2 to 5 "
        "KB of the job store",
    )
    max_kept_bytes_per_key: int = Field(
        default=100_000_000_000,
        ge=1,
        le=2**53,
        description="Bytes of one key's images that may be kept, wherever they lie, or of all that "
        "are posted without keys; images of open jobs count as what they may take",
    )
    api_keys: SecretStr = Field(
        default=SecretStr(""),
        description="Who is let in: NAME:SHA256 entries between commas, as `ddpm keys new NAME` "
        "prints them",
    )
    api_keys_file: Path | None = Field(
        default=None,
        description="File of more keys, with limits, scopes and expiry; it is read again when it "
        "changes",
    )
    key_requests_per_s: float = Field(
        default=100,
        ge=0,
        allow_inf_nan=False,
        description="Requests a second that a key may send to this host, after two seconds' worth "
        "at once, where dear ones count as several; 0: no limit",
    )
    max_streams_per_key: int = Field(
        default=1000,
        ge=1,
        description="Streams of events and waits that a key may hold open at one API process",
    )
    webhook_secret: SecretStr = Field(
        default=SecretStr(""),
        description="What the secrets of webhooks are made from, 32 characters or more; empty: no "
        "webhooks",
    )
    webhook_old_secrets: SecretStr = Field(
        default=SecretStr(""),
        description="Earlier values of webhook_secret between commas; webhooks are signed by them "
        "too, until all receivers have the new secret",
    )
    webhook_networks: Annotated[tuple[IPvAnyNetwork, ...], NoDecode] = Field(
        default=(),
        description="Networks between commas that webhooks may go to besides public addresses, "
        "such as 10.0.0.0/8",
    )
    webhook_denied_networks: Annotated[tuple[IPvAnyNetwork, ...], NoDecode] = Field(
        default=(),
        description="Networks between commas that webhooks may not go to, although they are public "
        "or in webhook_networks, such as this service's own address",
    )
    link_secret: SecretStr = Field(
        default=SecretStr(""),
        description="What links that need no key are signed by, 32 characters or more; empty: no "
        "such links",
    )
    link_old_secrets: SecretStr = Field(
        default=SecretStr(""),
        description="Earlier values of link_secret between commas, whose links are still good",
    )
    anonymous_hosts: str = Field(
        default="",
        description="Without keys: names between commas under which the API answers besides "
        "localhost, * for any; has to be set to listen on more than loopback",
    )

    log_format: LogFormat = Field(
        default="auto", description="json, console; auto: console on a terminal, else json"
    )
    log_level: LogLevel = Field(
        default="info", description="Least level of log lines: debug, info, warning, error"
    )
    access_log: bool = Field(default=True, description="Whether each request has a log line")

    @field_validator(
        "webhook_networks",
        "webhook_denied_networks",
        "trusted_proxies",
        "cors_origins",
        mode="before",
    )
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return split(value)

    @field_validator("root_path")
    @classmethod
    def _not_our_own(cls, value: str) -> str:
        root_path = value.rstrip("/")
        if root_path and not _ROOT_PATH.fullmatch(root_path):
            raise ValueError(
                "it is no path; write a slash and letters, digits, '.', '_', '~' and '-', as in "
                "/ddpm or /team/ddpm"
            )
        if root_path.split("/")[1:2] in [[name] for name in _OUR_PATHS]:
            raise ValueError("it begins as a path of the API does; choose another, such as /ddpm")
        return root_path

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            if entry != "unix":
                _network(entry)
        return value

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin!r} is no origin; write scheme, host in small letters and port as "
                    "browsers send them, without a path: https://app.example.com"
                )
        return value

    @field_validator("anonymous_hosts")
    @classmethod
    def _names(cls, value: str) -> str:
        for name in (part.strip() for part in value.split(",")):
            if name not in ("", "*") and not _is_host(name):
                raise ValueError(
                    f"{name!r} never matches, as a name here has no scheme, port, path or "
                    "wildcard; write it as in gpu-box.example.com, or * for any"
                )
        return value

    @field_validator("webhook_secret", "link_secret")
    @classmethod
    def _long_enough(cls, value: SecretStr) -> SecretStr:
        if 0 < len(value.get_secret_value()) < 32:
            raise ValueError("it has less than 32 characters, which could be guessed")
        return value

    @field_validator("webhook_old_secrets", "link_old_secrets")
    @classmethod
    def _all_long_enough(cls, value: SecretStr) -> SecretStr:
        if any(len(secret) < 32 for secret in split(value.get_secret_value())):
            raise ValueError("one of them has less than 32 characters, which could be guessed")
        return value

    @property
    def secrets(self) -> list[str]:
        """What no log line may hold."""
        entries = (entry.rpartition(":")[2] for entry in split(self.api_keys.get_secret_value()))
        urls = url_secrets(self.redis_url, self.results_url.get_secret_value())
        return [*entries, *self.webhook_secrets, *self.link_secrets, *urls]

    @property
    def webhook_secrets(self) -> tuple[str, ...]:
        """The secrets that webhooks are signed by, the present one first; empty for no webhooks."""
        return _with_old(self.webhook_secret, self.webhook_old_secrets)

    @property
    def link_secrets(self) -> tuple[str, ...]:
        """The secrets that links are signed by, the present one first; empty for no links."""
        return _with_old(self.link_secret, self.link_old_secrets)


def _with_old(secret: SecretStr, old: SecretStr) -> tuple[str, ...]:
    present = secret.get_secret_value()
    return (present, *split(old.get_secret_value())) if present else ()


def split(text: str) -> tuple[str, ...]:
    """Split what stands between commas; blanks around it do not count."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _network(text: str) -> None:
    try:
        ip_network(text)
    except ValueError as error:
        raise ValueError(
            f"{error}; write addresses, networks such as 10.0.0.0/8, or unix"
        ) from None


def _is_host(name: str) -> bool:
    try:
        return bool(ip_address(name))
    except ValueError:
        return bool(_HOST_NAME.fullmatch(name))
