from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from app.records.cursor import CURSOR_PATTERN, Cursor

# To the year 2106; then a double is too coarse.
MICROSECONDS = st.integers(min_value=0, max_value=2**32 * 10**6 - 1)


@given(MICROSECONDS, st.uuids())
def test_a_cursor_says_a_place_exactly(microseconds: int, job: object) -> None:
    place = Cursor(microseconds / 1e6, str(job).replace("-", ""))
    assert Cursor.parse(str(place)) == place
    assert re.match(CURSOR_PATTERN, str(place))


@given(st.from_regex(CURSOR_PATTERN, fullmatch=True, alphabet="0123456789abcdef-"))
def test_any_text_that_matches_the_pattern_is_a_cursor(cursor: str) -> None:
    assert Cursor.parse(cursor.strip()).created_at >= 0
