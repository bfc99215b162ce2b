"""The images at a path, whatever they are in: a folder, an IDX file or an npz."""

from __future__ import annotations

from pathlib import Path

from models.train.data import labels
from models.train.data.arrays import read_array
from models.train.data.folder import FolderImages, FolderOptions
from models.train.data.images import ArrayImages, BadData, Images, Size


def open_images(
    path: Path, size: Size, channels: int, options: FolderOptions | None = None
) -> Images:
    """Open an IDX file (also gzipped), an npz or a folder.

    Args:
        path: The file or folder.
        size: Pixels a side, or height and width.
        channels: 1 for grey, 2 for grey with alpha, 3 for RGB, 4 for RGBA.
        options: How a folder is read, and whether images have classes.

    Raises:
        BadData: It cannot be read, its images are of another size or number of channels, or they
            have no classes, and are to have some.
    """
    if path.is_dir():
        return FolderImages(path, size, channels, options)
    if not path.is_file():
        raise BadData(
            f"{path} does not exist;"
            " for Fashion-MNIST install the Debian package dataset-fashion-mnist"
        )
    pixels = read_array(path, size, channels)
    if options is None or not options.labelled:
        return ArrayImages(pixels)
    return ArrayImages(pixels, labels.beside(path, len(pixels), options.known))
