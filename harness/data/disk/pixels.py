"""Conversion of encoded images to uint8 (channels, height, width): decoding, colour, resizing, cropping."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from harness.errors import UserError
from harness.files.pictures import BROKEN, FORMATS, LARGEST, check_pixels

GREY = ("1", "L", "LA", "La")
COLOUR = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
_PNG, _DEPTH = b"\x89PNG\r\n\x1a\n", 24
"""Signature of a PNG, and the position of its bit depth. Pillow reduces 16 bits to 8 if there is colour or
alpha."""
_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
LONG_TEXT = 1024
"""Bytes of a text or colour profile from which it is not read; compressed ones expand a thousandfold."""
LARGE = 2**24
"""Pixels from which images are decoded one at a time, and in strips."""
_ONE_LARGE = threading.Lock()
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that turns each EXIF orientation upright (Exif 2.3, tag 0x0112); 1 is upright."""


def decode(encoded: bytes, where: str) -> Image.Image:
    """Decode a PNG, JPEG, WebP or BMP file to an 8-bit grey (L) or colour (RGB) image.

    Palettes become colours, transparent pixels are composited on white, and the camera's orientation is
    applied. Raises `UserError`, naming `where`, for damaged, animated or deeper images.
    """
    try:
        with Image.open(io.BytesIO(_without_texts(encoded)), formats=FORMATS) as image, _bounded(image):
            # Cameras store previews after the picture of a JPEG (CIPA DC-007, MPO).
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            if frames > 1:
                raise UserError(
                    f"{where} holds {frames} frames, expected one still image; extract a frame or remove it"
                )
            image.load()
            _check_depth(image, encoded, where)
            return flatten(upright(image))
    except Image.DecompressionBombError as error:
        raise UserError(f"{where} has more than {LARGEST:,} pixels; scale it down or remove it") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{where} is not an image of a supported format; convert it to PNG") from error
    except BROKEN as error:
        raise UserError(f"{where} is a broken image: {error}; replace or remove it") from error


@contextmanager
def _bounded(image: Image.Image) -> Iterator[None]:
    """Check the number of pixels of an opened image, and let one thread at a time decode a large one."""
    check_pixels(image)
    with _ONE_LARGE if image.width * image.height > LARGE else nullcontext():
        yield


def _check_depth(image: Image.Image, encoded: bytes, where: str) -> None:
    """Raise `UserError` for more than 8 bits a channel."""
    deep = encoded.startswith(_PNG) and encoded[_DEPTH] == 16
    if deep or image.mode not in GREY + COLOUR:
        depth = "16 bits per channel" if deep else f"type '{image.mode}'"
        raise UserError(f"{where} has pixels of {depth}, expected 8 bits per channel; convert it to 8 bits")


def _without_texts(encoded: bytes) -> bytes:
    """Return a PNG without its texts and colour profile, whose length Pillow limits; other files unchanged.

    Pixels do not depend on these chunks. A file that is cut short is returned unchanged.
    """
    if not encoded.startswith(_PNG) or len(encoded) < LONG_TEXT or not _has_long_text(encoded):
        return encoded
    kept = [encoded[begin:end] for kind, begin, end in _chunks(encoded) if kind not in _TEXTS]
    return b"".join([_PNG, *kept])


def _has_long_text(encoded: bytes) -> bool:
    return any(kind in _TEXTS and end - begin > LONG_TEXT for kind, begin, end in _chunks(encoded))


def _chunks(encoded: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield type, begin and end of each chunk of a PNG (PNG specification, 5.3)."""
    begin = len(_PNG)
    while begin < len(encoded):
        length = int.from_bytes(encoded[begin : begin + 4], "big")
        end = begin + 12 + length
        yield encoded[begin + 4 : begin + 8], begin, min(end, len(encoded))
        begin = end


def upright(image: Image.Image) -> Image.Image:
    """Return an image turned upright by its EXIF orientation. Other tags, which may be damaged, are not
    read."""
    turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 0))
    return image if turn is None else image.transpose(turn)


def flatten(image: Image.Image) -> Image.Image:
    """Convert an 8-bit image to L or RGB, with transparent pixels composited on white."""
    mode = "L" if image.mode in GREY else "RGB"
    if not image.has_transparency_data:
        return image.convert(mode)
    flat = Image.new(mode, image.size)
    # Strips, because a large image and its composite would need its memory four times.
    rows = max(1, LARGE // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        strip = image.crop(box).convert("RGBA")
        flat.paste(Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip).convert(mode), box)
    return flat


def fit(image: Image.Image, shape: tuple[int, int, int]) -> np.ndarray:
    """Convert an L or RGB image to uint8 of a shape (channels, height, width).

    Grey becomes colour by repeating the channel. Colour becomes grey as luma (ITU-R 601: 0.299 R + 0.587 G +
    0.114 B).
    """
    channels, height, width = shape
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = centre_crop(image, height)
    return np.ascontiguousarray(np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1))


def centre_crop(image: Image.Image, side: int) -> Image.Image:
    """Resize the shorter side to `side`, then crop the central square.

    The image is halved with a box filter while it is at least twice too large, then resized bicubically. This
    is ADM's crop (guided-diffusion image_datasets.py `center_crop_arr`), elsewhere called
    "center-crop-dhariwal".
    """
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
