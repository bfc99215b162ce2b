"""The paths that are answered to everybody who asks."""

from __future__ import annotations

_OURS = ("api.js", "docs.js", "icon.svg", "images.js", "job.js", "page.css", "page.js")
_SWAGGERS = ("swagger-ui-bundle.js", "swagger-ui.css")
# The files of the pages for people, which app/routers/page.py serves.
PAGE_PATHS = frozenset({"/", "/docs", *(f"/static/{name}" for name in (*_OURS, *_SWAGGERS))})

# A service with keys: nothing at these paths belongs to an owner.
_WITH_KEYS = PAGE_PATHS | {"/healthz", "/readyz", "/readyz/api", "/openapi.json"}
# A service without keys: health checks ask a container under any name.
_WITHOUT_KEYS = frozenset({"/healthz", "/readyz/api"})


def open_paths(has_keys: bool) -> frozenset[str]:
    """Return the paths that need neither a key nor, where there are no keys, a known host name."""
    return _WITH_KEYS if has_keys else _WITHOUT_KEYS
