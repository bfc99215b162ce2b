from __future__ import annotations

from base64 import b64decode

from app.webhooks.signature import headers, secret_of, text_of


def test_a_message_is_signed_as_the_example_of_standard_webhooks() -> None:
    secret = b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    assert headers(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}') == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_every_owner_has_a_secret_of_its_own_and_keeps_it() -> None:
    assert secret_of("s" * 32, "ann") == secret_of("s" * 32, "ann")
    assert (
        len({secret_of("s" * 32, "ann"), secret_of("s" * 32, "bob"), secret_of("t" * 32, "ann")})
        == 3
    )


def test_a_secret_is_shown_as_the_libraries_take_it() -> None:
    assert text_of(b"\x00" * 32) == "whsec_" + "A" * 43 + "="
