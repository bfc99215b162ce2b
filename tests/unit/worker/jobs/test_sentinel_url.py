"""URLs of servers that Sentinels watch."""

from __future__ import annotations

import pytest

from worker.jobs.store.sentinel_url import SentinelUrl


def test_a_url_of_sentinels_names_all_that_a_client_needs():
    url = (
        "rediss+sentinel://ddpm:p%40ss%2F@a:26380,b,[::1]:3/main%2Fone/2"
        "?ssl_ca_certs=/etc/ca%20s.pem&sentinel_username=watch&sentinel_password=w%26x"
        "&ssl_check_hostname=no"
    )
    assert SentinelUrl.parse(url) == SentinelUrl(
        sentinels=(("a", 26380), ("b", 26379), ("::1", 3)),
        service="main/one",
        server={
            "username": "ddpm",
            "password": "p@ss/",
            "db": 2,
            "ssl": True,
            "ssl_ca_certs": "/etc/ca s.pem",
            "ssl_check_hostname": False,
        },
        sentinel={
            "username": "watch",
            "password": "w&x",
            "ssl": True,
            "ssl_ca_certs": "/etc/ca s.pem",
            "ssl_check_hostname": False,
        },
    )


def test_a_url_of_sentinels_may_be_short():
    assert SentinelUrl.parse("redis+sentinel://a/main") == SentinelUrl(
        (("a", 26379),), "main", {}, {}
    )


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis+sentinel://a:1,b:2", "names no service"),
        ("redis+sentinel://a:1,b:2/", "names no service"),
        ("redis+sentinel://a:1,b:2/main/first", "is no number"),
        ("redis+sentinel://a:one/main", "not every Sentinel"),
        ("redis+sentinel://a,,b/main", "not every Sentinel"),
        ("redis+sentinel:///main", "not every Sentinel"),
    ],
)
def test_a_url_that_lacks_something_says_what_to_write(url, expected):
    with pytest.raises(ValueError, match=f"{expected}.*write redis\\+sentinel://"):
        SentinelUrl.parse(url)
