from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from worker.jobs.redis_url import RedisUrl

URL = TypeAdapter(RedisUrl)


@pytest.mark.parametrize("url", ["redis://h:1/0", "rediss://u:p@h/0", "unix:///tmp/s?db=0"])
def test_a_redis_url_has_a_scheme_that_redis_py_knows(url: str) -> None:
    assert str(URL.validate_python(url)) == url


@pytest.mark.parametrize("url", ["http://h", "h:6379", ""])
def test_a_url_of_another_scheme_is_refused(url: str) -> None:
    with pytest.raises(ValidationError):
        URL.validate_python(url)
