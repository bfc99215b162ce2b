from __future__ import annotations

from base64 import b64decode

from app.webhooks.signature import headers, owner_secret, secret_text


def test_a_message_is_signed_as_the_example_of_standard_webhooks() -> None:
    secret = b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    assert headers([secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body) == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_every_owner_has_a_secret_of_its_own_and_keeps_it() -> None:
    assert owner_secret("s" * 32, "ann") == owner_secret("s" * 32, "ann")
    pairs = [("s" * 32, "ann"), ("s" * 32, "bob"), ("t" * 32, "ann")]
    assert len({owner_secret(service_secret, owner) for service_secret, owner in pairs}) == 3


def test_a_secret_is_shown_as_the_libraries_take_it() -> None:
    assert secret_text(b"\x00" * 32) == "whsec_" + "A" * 43 + "="


def test_each_secret_signs_the_present_one_first() -> None:
    secrets = [b"new", b"old"]
    signed = headers(secrets, "msg_1", 1, b"{}")["webhook-signature"].split(" ")
    alone = [headers([secret], "msg_1", 1, b"{}")["webhook-signature"] for secret in secrets]
    assert signed == alone
    assert alone[0] != alone[1]
