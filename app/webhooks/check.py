"""Which webhooks a job may ask for."""

from __future__ import annotations

from app.problems.validation import invalid, shorten
from app.webhooks.target import BadTarget, Reach, Target


def check_webhook(url: str | None, reach: Reach | None) -> None:
    """Refuse a webhook that could never be sent.

    The address that a name leads to is checked when the webhook is sent.

    Args:
        url: Where the job's webhook is to go; None for a job without one.
        reach: Addresses that webhooks may go to; None where this service sends none.

    Raises:
        InvalidRequest: The URL cannot be sent to.
    """
    if url is None:
        return
    if reach is None:
        raise _invalid(
            url,
            "is asked for, but this service sends none; "
            "leave it out, or ask the operator for DDPM_WEBHOOK_SECRET",
        )
    try:
        address = Target.parse(url).address
    except BadTarget as error:
        raise _invalid(url, str(error)) from None
    if address is None or reach.allows(address):
        return
    if reach.denies(address):
        raise _invalid(
            url,
            "leads to an address that this service's operator denies; "
            "use another one, or ask the operator about DDPM_WEBHOOK_DENIED_NETWORKS",
        )
    raise _invalid(
        url,
        "leads to an address that is not public; "
        "use one that is, or ask the operator to put it into DDPM_WEBHOOK_NETWORKS",
    )


def _invalid(url: str, fact_and_remedy: str) -> Exception:
    return invalid("webhook", url, f"webhook={shorten(url)} {fact_and_remedy}.")
