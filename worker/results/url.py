"""Opens the results store that DDPM_RESULTS_URL names."""

from __future__ import annotations

from typing import Any

import fsspec
from fsspec.core import url_to_fs
from fsspec.registry import known_implementations

from worker.redaction import without_secrets
from worker.results.in_redis import InRedis
from worker.results.object_store import ObjectStore
from worker.results.store import ResultsStore

_S3: dict[str, Any] = {
    "config_kwargs": {"connect_timeout": 2, "read_timeout": 5, "retries": {"max_attempts": 1}},
    # Requests for one object. With more of them s3fs asks for the size first.
    "max_concurrency": 1,
}
_OPTIONS = {"s3": _S3, "s3a": _S3}


class BadStoreUrl(ValueError):
    """A DDPM_RESULTS_URL cannot be used.

    The text is fact, value and remedy, without what may be a secret.
    """


def open_store(url: str | None) -> ResultsStore:
    """Return the store, which connects when it is first used.

    Args:
        url: the setting; empty or None for a service that keeps PNGs in Redis.

    Raises:
        BadStoreUrl: the URL names no place, or its kind or its package is absent.
    """
    if not url:
        return InRedis()
    shown, protocol = without_secrets(url), _protocol(url)
    if set("*?[]") & set(url):
        raise BadStoreUrl(f"DDPM_RESULTS_URL={shown} holds one of * ? [ ]; choose a path without")
    try:
        file_system, root = url_to_fs(
            url, skip_instance_cache=True, use_listings_cache=False, **_OPTIONS.get(protocol, {})
        )
    except Exception as error:
        # Each file system has errors of its own, and their texts may repeat the URL.
        raise BadStoreUrl(
            f"DDPM_RESULTS_URL={shown} cannot be opened ({type(error).__name__}); "
            "correct it, see docs/how-to/store-results-elsewhere.md"
        ) from None
    return ObjectStore(file_system, root.rstrip("/"), protocol, shown)


def _protocol(url: str) -> str:
    """Return the protocol of a URL whose file system is installed. Importing it is the test."""
    protocol, colon, path = url.partition("://")
    shown = without_secrets(url)
    if not colon or not path.strip("/"):
        raise BadStoreUrl(
            f"DDPM_RESULTS_URL={shown} names no place; "
            "use file:///FOLDER, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX"
        )
    try:
        fsspec.get_filesystem_class(protocol)
    except ValueError:
        raise BadStoreUrl(
            f"DDPM_RESULTS_URL={shown} is of an unknown kind; use file://, s3:// or gs://"
        ) from None
    except ImportError:
        package = known_implementations[protocol]["class"].partition(".")[0]
        # A plain install of an extra would replace an editable one, and skip the constraints.
        ours = "make extra EXTRA=s3" if package == "s3fs" else f"pip install {package}"
        raise BadStoreUrl(
            f"DDPM_RESULTS_URL={shown} needs the package {package}, which is absent; {ours}"
        ) from None
    return protocol
