"""`ddpm keys`: makes keys and webhook secrets, and prints what goes to whom."""

from __future__ import annotations

import typer

from app.access.api_keys import BadKeys, new_key
from cli.faults import Fault
from cli.settings import keys_of, read


def new(name: str) -> None:
    """Make a key for `name` and print it with its entry for DDPM_API_KEYS.

    Both lines go to stdout, for programs too. What to do with them goes to stderr.

    Raises:
        Fault: The name cannot be used.
    """
    try:
        key, entry = new_key(name)
    except BadKeys as error:
        raise Fault(str(error)) from None
    typer.echo(f"key   {key}")
    typer.echo(f"entry {entry}")
    typer.echo(
        "The key is shown only now; its client sends it as `Authorization: Bearer KEY`. "
        "Add the entry to DDPM_API_KEYS of the API, after a comma, and restart it; or put what "
        "stands after the colon into the file of DDPM_API_KEYS_FILE as `sha256`.",
        err=True,
    )


def webhook_secret(name: str) -> None:
    """Print the secret that the owner `name` verifies webhooks with, on stdout for programs too.

    Raises:
        Fault: DDPM_WEBHOOK_SECRET is not set, or no key has this name. The secret of a misspelt
            name would verify nothing.
    """
    from app.settings import ApiSettings
    from app.webhooks.signature import owner_secret, secret_text

    settings = read(ApiSettings)
    service_secret = settings.webhook_secret.get_secret_value()
    if not service_secret:
        raise Fault(
            "DDPM_WEBHOOK_SECRET is not set, so no webhook is sent; "
            "set it as for the API (`openssl rand -hex 32` makes one)"
        )
    names = keys_of(settings).ring().names
    if name not in names:
        raise Fault(
            f"{name!r} is nobody's name; set DDPM_API_KEYS as for the API, "
            f"and use one of: {', '.join(names)}"
        )
    typer.echo(secret_text(owner_secret(service_secret, name)))
