from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from app.webhooks.target import BadTarget, Reach, Target


@pytest.mark.parametrize(
    ("url", "target", "authority"),
    [
        ("https://example.com", Target("https", "example.com", 443, "/"), "example.com"),
        (
            "http://EXAMPLE.com:8080/a%20b?c=d",
            Target("http", "example.com", 8080, "/a%20b?c=d"),
            "example.com:8080",
        ),
        ("https://example.com:443/x", Target("https", "example.com", 443, "/x"), "example.com"),
        ("http://example.com:443/x", Target("http", "example.com", 443, "/x"), "example.com:443"),
        (
            "http://[2606:4700::1111]:8080/",
            Target("http", "2606:4700::1111", 8080, "/"),
            "[2606:4700::1111]:8080",
        ),
        (
            "https://xn--bcher-kva.example/",
            Target("https", "xn--bcher-kva.example", 443, "/"),
            "xn--bcher-kva.example",
        ),
        ("https://8.8.8.8/", Target("https", "8.8.8.8", 443, "/"), "8.8.8.8"),
    ],
)
def test_a_url_is_taken_apart(url: str, target: Target, authority: str) -> None:
    assert Target.parse(url) == target
    assert target.authority == authority


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com",
        "ftp://example.com/",
        "http:///path",
        "http:example.com",
        "http://user:password@example.com/",
        "http://user@example.com/",
        "http://example.com\\@127.0.0.1/",
        "http://example.com/#fragment",
        "http://example.com:0/",
        "http://example.com:22/",
        "http://example.com:25/",
        "http://example.com:99999/",
        "http://example.com:80:81/",
        "http://example.com/a b",
        "http://example.com/\r\nX-Evil: 1",
        "http://exam\tple.com/",
        "http://bücher.example/",
        "http://①②⑦.0.0.1/",
        "http://%31%32%37.0.0.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.1/",
        "http://127.1/",
        "http://0177.0.0.1/",
        "http://127.0.0.1./",
        "http://127.0.0.0x1/",
        "http://example.0x/",
        "http://[fe80::1%25eth0]/",
        "http://[::1/",
        "http://exa..mple.com/",
        "http://-$-/",
    ],
)
def test_a_url_that_others_could_read_in_another_way_is_refused_with_a_remedy(url: str) -> None:
    with pytest.raises(BadTarget, match=r"; (send|put|use) "):
        Target.parse(url)


NOT_PUBLIC = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "127.0.0.1",
    "127.9.9.9",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.2.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.1.1.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::808:808",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:808:808::",
    "3fff::1",
    "fc00::1",
    "fd12::1",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "5f00::1",
    "4000::1",
    "168.63.129.16",
    "100.100.100.200",
    "192.0.0.192",
    "fd00:ec2::254",
    "192.31.196.1",
    "192.52.193.1",
    "192.88.99.1",
    "192.175.48.1",
    "2001:1::1",
    "2001:4:112::1",
    "2001:20::1",
    "2001:30::1",
    "2620:4f:8000::1",
]


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_an_address_that_is_not_public_is_out_of_reach(address: str) -> None:
    assert not Reach().allows(ip_address(address))


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "1.1.1.1", "100.63.0.1", "172.32.0.1", "2606:4700::1111", "2a00:1450:4001::1"],
)
def test_a_public_address_is_within_reach(address: str) -> None:
    assert Reach().allows(ip_address(address))


def test_a_network_that_is_allowed_is_within_reach_and_nothing_beside_it() -> None:
    reach = Reach([ip_network("10.1.0.0/16"), ip_network("fd12::/16")])
    for address in ("10.1.2.3", "fd12::5"):
        assert reach.allows(ip_address(address))
    for address in ("10.2.0.1", "fd13::1", "::ffff:10.1.2.3"):
        assert not reach.allows(ip_address(address))


def test_a_network_that_is_denied_is_out_of_reach_although_public_or_allowed() -> None:
    reach = Reach(
        [ip_network("10.0.0.0/8")],
        [ip_network("9.9.9.9"), ip_network("10.1.0.0/16"), ip_network("2606:4700:64::/96")],
    )
    for address in ("9.9.9.9", "10.1.2.3", "2606:4700:64::7f00:1"):
        assert not reach.allows(ip_address(address))
    for address in ("9.9.9.10", "10.2.0.1", "2606:4700::1111"):
        assert reach.allows(ip_address(address))
