"""Attempts over real connections to servers on loopback, which stands for an address in reach.

Most names are looked up in a stub.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from app.webhooks.sender import AT_ONCE, MAX_ADDRESSES, Outcome, PinnedAddresses, Sender
from app.webhooks.target import Reach, Target
from tests.support.receiver import Receiver, receiver

LOOPBACK = Reach([ip_network("127.0.0.1")])


class Names:
    """A resolver: each lookup gives the next answer, the last one for ever."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked += 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def post(
    url: str, names: Names | None = None, reach: Reach = LOOPBACK, timeout_s: float = 60.0
) -> Outcome:
    """Make one attempt."""
    sender = Sender(reach, names, timeout_s)
    target = Target.parse(url)
    try:
        return asyncio.run(sender.post(target, {"Host": target.authority, "X-Ours": "1"}, b"{}"))
    finally:
        sender.close()


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiver() as running:
        yield running


def test_a_name_is_looked_up_once_and_the_receiver_is_asked_by_it(hook: Receiver) -> None:
    names = Names(["127.0.0.1"])
    outcome = post(f"http://hooks.example:{hook.port}/a?b=c", names)
    assert outcome == Outcome("answered 204", delivered=True)
    (got,) = hook.received
    assert (got.path, got.body) == ("/a?b=c", b"{}")
    assert (got.headers["host"], got.headers["x-ours"]) == (f"hooks.example:{hook.port}", "1")
    assert names.asked == 1


REFUSED = Outcome("the host has no address that webhooks may go to")


def test_a_name_that_leads_to_a_forbidden_address_is_not_connected_to(hook: Receiver) -> None:
    for addresses in (["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["::ffff:127.0.0.1"], ["::1"], []):
        assert post(f"http://hooks.example:{hook.port}/", Names(addresses), Reach()) == REFUSED
    assert hook.received == []


def test_a_name_that_changes_its_address_after_the_check_gains_nothing(hook: Receiver) -> None:
    """Try DNS rebinding: an address that is allowed, then one that is not.

    There is no second lookup that could give the latter.
    """
    names = Names(["127.0.0.2"], ["127.0.0.1"])
    reach = Reach([ip_network("127.0.0.2")])
    outcome = post(f"http://hooks.example:{hook.port}/", names, reach)
    assert outcome.report == "no connection, or no valid certificate"
    assert (names.asked, hook.received) == (1, [])


def test_the_next_address_is_tried_where_one_does_not_answer(hook: Receiver) -> None:
    names = Names(["127.0.0.2", "127.0.0.1"])
    reach = Reach([ip_network("127.0.0.0/8")])
    assert post(f"http://hooks.example:{hook.port}/", names, reach).delivered


async def test_an_address_that_swallows_what_it_is_sent_leaves_time_for_the_next(
    hook: Receiver,
) -> None:
    addresses = PinnedAddresses(["127.0.0.2", "127.0.0.1"], share_s=0.5)
    with full(("127.0.0.2", hook.port)):
        stream = await addresses.connect_tcp("hooks.example", hook.port)
    connected = stream.get_extra_info("socket")
    assert connected.getpeername() == ("127.0.0.1", hook.port)
    await stream.aclose()


@contextmanager
def full(where: tuple[str, int]) -> Iterator[None]:
    """Listen with a full queue, and accept nobody: clients get no answer at all."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(where)
        listener.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(where)
        yield


@pytest.mark.parametrize("spelling", ["2130706433", "0x7f.1", "127.1", "localhost"])
def test_addresses_from_the_systems_resolver_are_checked_too(hook: Receiver, spelling: str) -> None:
    target = Target("http", spelling, hook.port, "/")
    sender = Sender(Reach())
    assert asyncio.run(sender.post(target, {"Host": "x"}, b"{}")) == REFUSED
    sender.close()


def test_a_redirect_is_not_followed(hook: Receiver) -> None:
    for status in (301, 302, 303, 307, 308):
        hook.statuses = [status]
        assert post(f"http://127.0.0.1:{hook.port}/") == Outcome(f"answered {status}")
    assert {got.path for got in hook.received} == {"/"}


def test_no_proxy_is_asked(hook: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as dead:
        proxy = f"http://127.0.0.1:{dead.getsockname()[1]}"
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy)
    assert post(f"http://127.0.0.1:{hook.port}/").delivered


def test_an_answer_without_end_is_not_read(hook: Receiver) -> None:
    hook.endless = True
    assert post(f"http://127.0.0.1:{hook.port}/") == Outcome("answered 204", delivered=True)


def test_a_receiver_that_answers_410_is_asked_no_more(hook: Receiver) -> None:
    hook.statuses = [410]
    assert post(f"http://127.0.0.1:{hook.port}/") == Outcome("answered 410", final=True)


def test_a_receiver_that_never_answers_is_given_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        assert post(url, timeout_s=0.2) == Outcome("no answer in 0.2 s")


def test_lookups_that_hang_leave_a_thread_for_another_attempt_and_are_reported(
    hook: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller counts threads, since the outcome holds a lookup that goes on."""
    found, real = threading.Event(), socket.getaddrinfo

    def looked_up(host: str, *rest: Any, **more: Any) -> Any:
        if host == "tarpit.example":
            found.wait(20)
        return real("127.0.0.1", *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)

    async def attempts() -> None:
        sender = Sender(LOOPBACK, timeout_s=0.2)

        def post_to(host: str) -> asyncio.Task[Outcome]:
            return asyncio.create_task(
                sender.post(Target.parse(f"http://{host}:{hook.port}/"), {"Host": host}, b"{}")
            )

        try:
            stuck = await asyncio.gather(*(post_to("tarpit.example") for _ in range(AT_ONCE - 1)))
            assert {outcome.report for outcome in stuck} == {"no answer in 0.2 s"}
            assert not [outcome for outcome in stuck if outcome.lookup.done()]
            sender.timeout_s = 60.0
            assert (await post_to("hooks.example")).delivered
            found.set()
            assert {tuple(await outcome.lookup) for outcome in stuck} == {("127.0.0.1",)}
        finally:
            found.set()
            sender.close()

    asyncio.run(attempts())
    assert len(hook.received) == 1


def greet(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        connection.sendall(b"220 mail.example ESMTP\r\n")


def test_a_refused_connection_and_an_answer_that_is_no_http_are_told_apart() -> None:
    with socket.create_server(("127.0.0.1", 0)) as dead:
        port = dead.getsockname()[1]
    assert post(f"http://127.0.0.1:{port}/") == Outcome("no connection, or no valid certificate")
    with socket.create_server(("127.0.0.1", 0)) as other, ThreadPoolExecutor(1) as thread:
        thread.submit(greet, other)
        report = post(f"http://127.0.0.1:{other.getsockname()[1]}/").report
    assert report == "the connection broke, or the answer was no HTTP"


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A certificate for hooks.example, from an authority that the service trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    now = datetime.now(UTC)
    begins, ends = now - timedelta(1), now + timedelta(1)
    serial = x509.random_serial_number()
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), serial, begins, ends)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("hooks.example")]), critical=True)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    public, private = tmp_path / "certificate.pem", tmp_path / "key.pem"
    public.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(public))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, private)
    return context


def test_the_certificate_is_checked_for_the_name_though_the_address_is_connected_to(
    tls: ssl.SSLContext,
) -> None:
    asked: list[str | None] = []
    tls.sni_callback = lambda _socket, name, _context: asked.append(name)
    with receiver(tls) as hook:
        names = Names(["127.0.0.1"])
        assert post(f"https://hooks.example:{hook.port}/", names).delivered
        refused = post(f"https://other.example:{hook.port}/", names)
        assert refused == Outcome("no connection, or no valid certificate")
        assert asked == ["hooks.example", "other.example"]
        assert len(hook.received) == 1


@contextmanager
def endless(data: bytes) -> Iterator[int]:
    """Answer one connection with `data` again and again; the port."""

    def answer(listener: socket.socket) -> None:
        with listener.accept()[0] as client, suppress(OSError):
            client.settimeout(60)
            while True:
                client.sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=(listener,))
        thread.start()
        yield listener.getsockname()[1]
        thread.join(60)


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n"]
)
def test_a_receiver_that_sends_informational_answers_for_ever_is_cut_off(head: bytes) -> None:
    with endless(head * 100) as port:
        outcome = post(f"http://127.0.0.1:{port}/")
    assert outcome == Outcome("the connection broke, or the answer was no HTTP")


def test_a_name_with_hundreds_of_addresses_has_eight_of_them_tried(hook: Receiver) -> None:
    reach = Reach([ip_network("127.0.0.0/8")])
    refusing = [f"127.0.1.{i}" for i in range(1, 200)]
    few = [*refusing[: MAX_ADDRESSES - 1], "127.0.0.1"]
    assert post(f"http://hooks.example:{hook.port}/", Names(few), reach).delivered
    many = [*refusing[:MAX_ADDRESSES], "127.0.0.1"]
    outcome = post(f"http://hooks.example:{hook.port}/", Names(many), reach)
    assert outcome == Outcome("no connection, or no valid certificate")
    assert post(f"http://hooks.example:{hook.port}/", Names([*few, "10.0.0.1"]), reach) == REFUSED
