"""Bounds and faults of encoded pictures, for everything that opens them with Pillow."""

from __future__ import annotations

import struct
import zlib

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

# Importing a plug-in registers its format.
PLUGINS = (
    BmpImagePlugin,
    GifImagePlugin,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""Formats that may be opened; JPEG includes MPO. Of the others, some run programs or name further files."""
LARGEST = 2**27
"""Pixels that a picture may have, known from its header before it is decoded."""
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
)
"""Exceptions that Pillow raises for damaged files."""


def check_pixels(image: Image.Image) -> None:
    """Raise `Image.DecompressionBombError`, as Pillow does, for an opened picture with too many pixels."""
    if image.width * image.height > LARGEST:
        raise Image.DecompressionBombError(f"more than {LARGEST:,} pixels")
