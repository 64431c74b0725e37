"""Decoding and cropping, against Pillow's primitives by hand and ADM's released crop."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from harness.data.disk.pixels import centre_crop, decode, fit
from harness.errors import UserError
from tests.harness.data.pictures import pixels, png

COLOUR, GREY = pixels(1)[0], pixels(1, channels=1)[0, :, :, 0]


def saved(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def adm_center_crop(pil_image: Image.Image, image_size: int) -> np.ndarray:
    """As openai/guided-diffusion has it (image_datasets.py, center_crop_arr)."""
    while min(*pil_image.size) >= 2 * image_size:
        pil_image = pil_image.resize(tuple(x // 2 for x in pil_image.size), resample=Image.BOX)
    scale = image_size / min(*pil_image.size)
    pil_image = pil_image.resize(tuple(round(x * scale) for x in pil_image.size), resample=Image.BICUBIC)
    arr = np.array(pil_image)
    crop_y = (arr.shape[0] - image_size) // 2
    crop_x = (arr.shape[1] - image_size) // 2
    return arr[crop_y : crop_y + image_size, crop_x : crop_x + image_size]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40))
def test_crop_is_adms(height: int, width: int, side: int) -> None:
    image = Image.fromarray(pixels(1, height, width)[0])
    assert np.array_equal(np.asarray(centre_crop(image, side)), adm_center_crop(image, side))


@pytest.mark.parametrize("form", ["PNG", "BMP", "WEBP"])
def test_lossless_formats_keep_every_bit(form: str) -> None:
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    assert np.array_equal(np.asarray(decode(png(COLOUR, form, **options), "x")), COLOUR)


def test_grey_stays_grey() -> None:
    image = decode(png(GREY), "x")
    assert image.mode == "L"
    assert np.array_equal(fit(image, (1, 8, 8))[0], GREY)
    assert np.array_equal(fit(image, (3, 8, 8)), np.stack([GREY] * 3))


def test_colour_to_grey_is_luma() -> None:
    found = fit(decode(png(COLOUR), "x"), (1, 8, 8))[0]
    assert np.abs(found - COLOUR @ [0.299, 0.587, 0.114]).max() <= 0.5 + 1e-3


def test_transparency_lies_on_white() -> None:
    alpha = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    image = decode(png(np.dstack([COLOUR, alpha])), "x")
    share = alpha[..., None] / 255
    assert np.abs(np.asarray(image, float) - (COLOUR * share + 255 * (1 - share))).max() <= 1
    grey = decode(png(np.dstack([GREY, alpha])), "x")
    assert grey.mode == "L"
    assert np.abs(np.asarray(grey, float) - (GREY * share[..., 0] + 255 * (1 - share[..., 0]))).max() <= 1


def test_opaque_transparency_changes_nothing() -> None:
    image = decode(png(np.dstack([COLOUR, np.full((8, 8), 255, np.uint8)])), "x")
    assert np.array_equal(np.asarray(image), COLOUR)


def test_palettes_become_colours() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert np.asarray(decode(saved(image), "x")).tolist() == [[[10, 20, 30], [200, 100, 50]]]
    seen_through = np.asarray(decode(saved(image, transparency=1), "x")).tolist()
    assert seen_through == [[[10, 20, 30], [255, 255, 255]]]


def test_bits_and_cmyk() -> None:
    assert (
        np.asarray(decode(saved(Image.fromarray(GREY > 127)), "x")).tolist() == ((GREY > 127) * 255).tolist()
    )
    inks = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    red, green, blue = np.asarray(decode(saved(inks, "JPEG"), "x"))[4, 4]
    assert red < 40 < 200 < min(green, blue)


def test_the_cameras_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    wide = pixels(1, 4, 8)[0]
    found = decode(saved(Image.fromarray(wide), "PNG", exif=exif), "x")
    assert np.array_equal(np.asarray(found), np.rot90(wide, -1))


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_every_orientation_is_turned_as_pillow_turns_it(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(Image.fromarray(pixels(1, 4, 8)[0]), form, exif=exif, lossless=True)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    assert np.array_equal(np.asarray(decode(content, "x")), np.asarray(expected))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_turned_photo_with_a_malformed_tag_is_kept(form: str) -> None:
    """A horizontal resolution of type text: Pillow reads such a tag, and cannot write it again."""
    exif = Image.Exif()
    exif.endian, exif[0x0112], exif[0x011A] = ">", 6, 72.0
    rational, text = (b"\x01\x1a\x00" + bytes((kind, 0, 0, 0, 1)) for kind in (5, 2))
    whole = exif.tobytes()
    damaged = whole.replace(rational, text)
    assert damaged != whole
    wide = Image.fromarray(pixels(1, 4, 8)[0])
    content = saved(wide, form, exif=damaged)
    with pytest.raises((TypeError, AttributeError)):
        ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    upright = decode(saved(wide, form, exif=whole), "x")
    assert upright.size == (4, 8) and np.array_equal(np.asarray(decode(content, "x")), np.asarray(upright))


def deep_png(colour: int, channels: int) -> bytes:
    """16 bits a channel, by the PNG specification's own layout; Pillow writes none with colour or alpha."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = (b"\0" + bytes(range(8)) * channels) * 4
    header = struct.pack(">IIBBBBB", 4, 4, 16, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_colour_deeper_than_8_bits_is_refused(colour: int, channels: int) -> None:
    content = deep_png(colour, channels)
    Image.open(io.BytesIO(content)).load()  # whole
    with pytest.raises(UserError, match=r"^here has pixels of 16 bits a channel, expected 8 bits"):
        decode(content, "here")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an image"),
        (b"RIFF    WAVE", "not an image"),
        (png(COLOUR)[:100], "broken"),
        (png(COLOUR, "JPEG")[:400], "broken"),
        (saved(Image.fromarray(np.zeros((4, 4), np.uint16))), "expected 8 bits"),
        (
            saved(
                Image.new("RGB", (4, 4)),
                "WEBP",
                save_all=True,
                append_images=[Image.new("RGB", (4, 4), "red")],
            ),
            "2 frames",
        ),
    ],
)
def test_what_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=f"^here .*{message}"):
        decode(content, "here")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "BMP"]), st.data())
def test_damage_never_shows_a_traceback(form: str, data: st.DataObject) -> None:
    content = bytearray(png(COLOUR, form))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    with contextlib.suppress(UserError):
        assert decode(bytes(content), "x").mode in ("L", "RGB")
