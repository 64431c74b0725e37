"""Decoding and cropping, against Pillow's primitives and ADM's released crop."""

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
from PIL.PngImagePlugin import PngInfo

from harness.data.disk.pixels import centre_crop, decode, fit
from harness.errors import UserError
from tests.harness.data.pictures import pixels, png

COLOUR, GREY = pixels(1)[0], pixels(1, channels=1)[0, :, :, 0]


def saved(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def adm_center_crop(pil_image: Image.Image, image_size: int) -> np.ndarray:
    """Copy of center_crop_arr of openai/guided-diffusion (image_datasets.py)."""
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
def test_centre_crop_agrees_with_adm(height: int, width: int, side: int) -> None:
    image = Image.fromarray(pixels(1, height, width)[0])
    assert np.array_equal(np.asarray(centre_crop(image, side)), adm_center_crop(image, side))


@pytest.mark.parametrize("form", ["PNG", "BMP", "WEBP"])
def test_decode_is_exact_for_lossless_formats(form: str) -> None:
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    assert np.array_equal(np.asarray(decode(png(COLOUR, form, **options), "x")), COLOUR)


def test_decode_keeps_grey_images_grey() -> None:
    image = decode(png(GREY), "x")
    assert image.mode == "L"
    assert np.array_equal(fit(image, (1, 8, 8))[0], GREY)
    assert np.array_equal(fit(image, (3, 8, 8)), np.stack([GREY] * 3))


def test_fit_converts_colour_to_luma() -> None:
    found = fit(decode(png(COLOUR), "x"), (1, 8, 8))[0]
    assert np.abs(found - COLOUR @ [0.299, 0.587, 0.114]).max() <= 0.5 + 1e-3


def test_decode_composites_transparency_on_white() -> None:
    alpha = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    image = decode(png(np.dstack([COLOUR, alpha])), "x")
    share = alpha[..., None] / 255
    assert np.abs(np.asarray(image, float) - (COLOUR * share + 255 * (1 - share))).max() <= 1
    grey = decode(png(np.dstack([GREY, alpha])), "x")
    assert grey.mode == "L"
    assert np.abs(np.asarray(grey, float) - (GREY * share[..., 0] + 255 * (1 - share[..., 0]))).max() <= 1


def test_decode_ignores_an_opaque_alpha_channel() -> None:
    image = decode(png(np.dstack([COLOUR, np.full((8, 8), 255, np.uint8)])), "x")
    assert np.array_equal(np.asarray(image), COLOUR)


def test_decode_converts_palettes_to_colours() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert np.asarray(decode(saved(image), "x")).tolist() == [[[10, 20, 30], [200, 100, 50]]]
    transparent = np.asarray(decode(saved(image, transparency=1), "x")).tolist()
    assert transparent == [[[10, 20, 30], [255, 255, 255]]]


def test_decode_converts_bilevel_and_cmyk_images() -> None:
    assert (
        np.asarray(decode(saved(Image.fromarray(GREY > 127)), "x")).tolist() == ((GREY > 127) * 255).tolist()
    )
    inks = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    red, green, blue = np.asarray(decode(saved(inks, "JPEG"), "x"))[4, 4]
    assert red < 40 < 200 < min(green, blue)


def test_decode_applies_the_exif_orientation() -> None:
    exif = Image.Exif()
    # Upright after a clockwise rotation by 90 degrees.
    exif[0x0112] = 6
    wide = pixels(1, 4, 8)[0]
    found = decode(saved(Image.fromarray(wide), "PNG", exif=exif), "x")
    assert np.array_equal(np.asarray(found), np.rot90(wide, -1))


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_decode_agrees_with_pillow_for_every_orientation(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(Image.fromarray(pixels(1, 4, 8)[0]), form, exif=exif, lossless=True)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    assert np.array_equal(np.asarray(decode(content, "x")), np.asarray(expected))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_decode_applies_the_orientation_despite_a_malformed_tag(form: str) -> None:
    """Pillow reads a horizontal resolution of type text, but cannot write it again."""
    exif = Image.Exif()
    exif.endian, exif[0x0112], exif[0x011A] = ">", 6, 72.0
    rational, text = (b"\x01\x1a\x00" + bytes((kind, 0, 0, 0, 1)) for kind in (5, 2))
    valid = exif.tobytes()
    damaged = valid.replace(rational, text)
    assert damaged != valid
    wide = Image.fromarray(pixels(1, 4, 8)[0])
    content = saved(wide, form, exif=damaged)
    with pytest.raises((TypeError, AttributeError)):
        ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    upright = decode(saved(wide, form, exif=valid), "x")
    assert upright.size == (4, 8) and np.array_equal(np.asarray(decode(content, "x")), np.asarray(upright))


def deep_png(colour: int, channels: int) -> bytes:
    """Write 16 bits per channel by the PNG specification, because Pillow cannot with colour or alpha."""

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
def test_decode_raises_for_more_than_8_bits_per_channel(colour: int, channels: int) -> None:
    content = deep_png(colour, channels)
    # The file is valid.
    Image.open(io.BytesIO(content)).load()
    with pytest.raises(UserError, match=r"^here has pixels of 16 bits per channel, expected 8 bits"):
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
def test_decode_raises_for_unusable_images(content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=f"^here .*{message}"):
        decode(content, "here")


def test_first_picture_of_a_camera_jpeg_is_read() -> None:
    """Cameras append previews to a JPEG (CIPA DC-007)."""
    first, second = Image.fromarray(COLOUR), Image.new("RGB", (4, 4), "red")
    content = saved(first, "MPO", save_all=True, append_images=[second])
    with Image.open(io.BytesIO(content)) as image:
        assert (image.format, image.n_frames) == ("MPO", 2)
    expected = Image.open(io.BytesIO(content[: content.index(b"\xff\xd9") + 2])).convert("RGB")
    np.testing.assert_array_equal(np.asarray(decode(content, "here")), np.asarray(expected))


@pytest.mark.parametrize("kind", ["text", "international", "profile"])
def test_png_with_a_long_text_or_profile_is_read(kind: str) -> None:
    """Pillow limits what such chunks expand to; pixels do not depend on them."""
    options: dict[str, object] = {}
    if kind == "profile":
        options["icc_profile"] = bytes(3 * 2**20)
    else:
        info = PngInfo()
        add = info.add_text if kind == "text" else info.add_itxt
        add("workflow", "x" * 3 * 2**20, zip=True)
        options["pnginfo"] = info
    content = saved(Image.fromarray(COLOUR), **options)
    with pytest.raises(ValueError, match=r"too large|too much memory"):
        Image.open(io.BytesIO(content)).load()
    np.testing.assert_array_equal(np.asarray(decode(content, "here")), COLOUR)


def test_number_of_pixels_is_checked_before_decoding() -> None:
    """A header of 65,535 x 65,535 pixels, which would take 13 GB, needs no memory."""
    content = bytearray(png(COLOUR))
    content[16:24] = struct.pack(">II", 65_535, 65_535)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    with pytest.raises(UserError, match=r"^here has more than 134,217,728 pixels; scale it down"):
        decode(bytes(content), "here")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "BMP"]), st.data())
def test_decode_raises_only_user_errors_for_damaged_bytes(form: str, data: st.DataObject) -> None:
    content = bytearray(png(COLOUR, form))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    with contextlib.suppress(UserError):
        assert decode(bytes(content), "x").mode in ("L", "RGB")
