from __future__ import annotations

import pytest

from worker.redaction import client_reason, scheme_only, without_secrets


def test_a_reason_has_the_type_and_the_first_line_without_paths() -> None:
    error = ValueError("cannot open /root/weights.bin for C:\\key\nTraceback: secret")
    assert client_reason(error) == "ValueError: cannot open … for …"
    assert client_reason(ValueError("see https://u:p@host/x")) == "ValueError: see …"


def test_a_reason_of_an_error_without_text_is_its_type() -> None:
    assert client_reason(KeyError()) == "KeyError"


def test_a_reason_is_at_most_200_characters() -> None:
    reason = client_reason(RuntimeError("x" * 1000))
    assert (len(reason), reason[-1]) == (200, "…")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://bucket/prefix", "s3://bucket/prefix"),
        ("sftp://me:secret@host/path", "sftp://***@host/path"),
        ("sftp://me:sec@re/t?@host/path?token=secret", "sftp://***@host/path"),
        ("me:secret@host", "***@host"),
        ("s3://bucket?secret", "s3://bucket"),
        ("nonsense://secret@x", "nonsense://***@x"),
        ("redis://me:sec\nret@host", "redis://***@host"),
    ],
)
def test_a_url_is_shown_without_passwords_and_tokens(url: str, shown: str) -> None:
    assert without_secrets(url) == shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [("redis://me:secret", "redis://***"), ("me:secret@host", "***"), ("", "***")],
)
def test_a_text_that_may_be_no_url_is_shown_by_its_scheme_only(url: str, shown: str) -> None:
    assert scheme_only(url) == shown
