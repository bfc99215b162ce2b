"""The signature that proves to a receiver that a webhook is ours.

It is that of https://www.standardwebhooks.com, symmetric, version 1.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from hmac import digest


def owner_secret(service_secret: str, owner: str) -> bytes:
    """Derive an owner's own secret.

    With one secret for all, each receiver could sign messages to every other.
    """
    return digest(service_secret.encode(), f"webhooks of {owner}".encode(), sha256)


def secret_text(secret: bytes) -> str:
    """Write a secret as libraries for Standard Webhooks take it."""
    return f"whsec_{b64encode(secret).decode()}"


def headers(secrets: Sequence[bytes], message: str, now_s: int, body: bytes) -> dict[str, str]:
    """Sign an attempt.

    Args:
        secrets: The owner's, each of which signs: several while a new one takes the place of an
            old one. A receiver accepts a message if one of the signatures is right.
        message: The message's id, the same at every attempt.
        now_s: Seconds since the epoch. Receivers refuse old attempts, which may be replayed.
        body: What is sent.
    """
    signed = f"{message}.{now_s}.".encode() + body
    signatures = [b64encode(digest(secret, signed, sha256)).decode() for secret in secrets]
    return {
        "webhook-id": message,
        "webhook-timestamp": str(now_s),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }
