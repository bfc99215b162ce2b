"""What proves to a receiver that a webhook is ours: https://www.standardwebhooks.com, symmetric, version 1."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from hmac import digest


def secret_of(service_secret: str, owner: str) -> bytes:
    """An owner's own secret: with one for all, each receiver could sign for every other."""
    return digest(service_secret.encode(), f"webhooks of {owner}".encode(), sha256)


def text_of(secret: bytes) -> str:
    """As libraries for Standard Webhooks take it."""
    return f"whsec_{b64encode(secret).decode()}"


def headers(secret: bytes, message: str, now_s: int, body: bytes) -> dict[str, str]:
    """`message` is the same at every attempt, and `now_s` is not: a receiver refuses old ones, which may be replayed."""
    signed = digest(secret, f"{message}.{now_s}.".encode() + body, sha256)
    return {
        "webhook-id": message,
        "webhook-timestamp": str(now_s),
        "webhook-signature": f"v1,{b64encode(signed).decode()}",
    }
