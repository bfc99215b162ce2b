from __future__ import annotations

from io import BytesIO

import pytest
from PIL import Image

from app.images.contact_sheets import ContactSheet
from tests.support.worker import png_of


def opened(sheet: ContactSheet) -> Image.Image:
    png = sheet.png()
    assert png
    return Image.open(BytesIO(png))


@pytest.mark.parametrize(
    ("count", "columns", "rows"),
    [(1, 1, 1), (2, 2, 1), (3, 2, 2), (16, 4, 4), (17, 5, 4), (1024, 32, 32)],
)
def test_a_sheet_is_as_square_as_can_be(count: int, columns: int, rows: int) -> None:
    sheet = ContactSheet(count)
    sheet.paste(0, [png_of(0)])
    assert sheet.columns == columns
    assert opened(sheet).size == (2 + 10 * columns, 2 + 10 * rows)


def test_a_sheet_of_many_large_images_is_scaled_down() -> None:
    sheet = ContactSheet(1024)
    sheet.paste(1023, [png_of(7, size=256)])
    assert max(opened(sheet).size) <= 2048 + 2
    assert opened(sheet).getpixel((2000, 2000)) == 7


def test_coloured_images_stay_coloured() -> None:
    out = BytesIO()
    Image.new("RGB", (4, 4), (200, 10, 30)).save(out, "PNG")
    sheet = ContactSheet(2)
    sheet.paste(1, [out.getvalue()])
    assert opened(sheet).getpixel((10, 4)) == (200, 10, 30)
    assert opened(sheet).getpixel((4, 4)) == (255, 255, 255)


def test_a_sheet_of_nothing_is_none() -> None:
    sheet = ContactSheet(2)
    sheet.paste(0, [None, None])
    assert sheet.png() is None
