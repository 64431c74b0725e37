"""Images in a zip file, as EDM and EDM2 store them: uncompressed PNGs in folders, and `dataset.json`."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path

from harness.config.data_spec import DataSpec
from harness.data.disk.labels import NONE, Labels, named_classes, unlabelled
from harness.data.disk.npy import DAMAGED_ZIP, damaged
from harness.data.disk.packed import LARGEST_IMAGE, Packed, PackedImages, check_names, read_span
from harness.data.disk.tables import EDM, edm_table, in_table_order, labels_of
from harness.errors import UserError
from harness.files.files import decode_text
from metrics.files.listing import Skipped, is_clutter
from metrics.files.media import IMAGE

LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Signature, and the lengths of name and extra field, before the content of a member (APPNOTE 4.3.7)."""
SIGNATURE, ENCRYPTED = b"PK\x03\x04", 1
TABLE_BYTES = 2**30
"""Bytes of the largest dataset.json that is read."""


class ZippedImages(PackedImages):
    """Images of a zip file, labelled by its dataset.json (EDM, EDM2), else by class folders."""

    reads = ("root", "resolution", "channels", "label_key")
    expected = "a .zip file of images, with dataset.json or class folders"

    @staticmethod
    def open(spec: DataSpec, path: Path) -> Packed:
        if path.is_dir():
            raise UserError(f"data.root = {path} is a folder, expected {ZippedImages.expected}")
        entries, others = _members(path)
        names, labels, source = _labelled(spec, path, entries)
        if bad := next((n for n in others if Path(n).suffix.lower() in IMAGE.not_read), ""):
            raise UserError(f"{path} holds {bad!r}, an image that is not supported; convert it to PNG")
        skipped = (Skipped("other files", len(others), min(others)),) if others else ()
        chosen = [entries[name] for name in names]
        return Packed(
            [path], [len(names)], labels, source, lambda _, row: read_member(path, chosen[row]),
            lambda _, row: f"{path}: {names[row]}", skipped=skipped,
        )  # fmt: skip


def read_member(path: Path, entry: zipfile.ZipInfo, limit: int = LARGEST_IMAGE) -> bytes:
    """Return the content of a member, in any thread or process. Raises `UserError` if it is damaged.

    `limit` is the number of bytes that the member may have.
    """
    where = f"{path}: {entry.filename}"
    if max(entry.file_size, entry.compress_size) > limit:
        raise UserError(f"{where} has {entry.file_size:,} bytes, but at most {limit:,} are read; remove it")
    if entry.flag_bits & ENCRYPTED or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError(f"{where} is encrypted or compressed in another way than deflate; store it again")
    content = read_span(path, content_begin(path, entry), entry.compress_size, where, limit)
    if entry.compress_type == zipfile.ZIP_DEFLATED:
        try:
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, entry.file_size + 1)
        except zlib.error as error:
            raise damaged(where, "a member of a zip file", error) from error
    if len(content) != entry.file_size or zlib.crc32(content) != entry.CRC:
        raise UserError(f"{where} is damaged: its content does not match its checksum; replace the file")
    return content


def content_begin(path: Path, entry: zipfile.ZipInfo) -> int:
    """Return the position of a member's content in the file."""
    where = f"{path}: {entry.filename}"
    signature, name, extra = LOCAL_HEADER.unpack(
        read_span(path, entry.header_offset, LOCAL_HEADER.size, where)
    )
    if signature != SIGNATURE:
        raise UserError(
            f"{where} does not begin at the position in the zip file's directory; replace the file"
        )
    return entry.header_offset + LOCAL_HEADER.size + name + extra


def _members(path: Path) -> tuple[dict[str, zipfile.ZipInfo], list[str]]:
    """Return the images and the table of a zip file, and the names of other members."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [entry for entry in archive.infolist() if not entry.is_dir()]
    except DAMAGED_ZIP as error:
        raise damaged(str(path), "a zip file", error) from error
    check_names([entry.filename for entry in members], path)
    kept, others = {}, []
    for entry in members:
        name = entry.filename
        is_image = Path(name).suffix.lower() in IMAGE.suffixes and not any(map(is_clutter, name.split("/")))
        if is_image or name == EDM:
            kept[name] = entry
        else:
            others.append(name)
    return kept, others


def _labelled(
    spec: DataSpec, path: Path, entries: dict[str, zipfile.ZipInfo]
) -> tuple[list[str], Labels, str]:
    """Return the images in their order, their labels, and where these are from."""
    names = sorted(name for name in entries if name != EDM)
    if spec.label_key == NONE:
        return names, unlabelled(len(names)), f"none: data.label_key = {NONE}"
    if spec.label_key:
        raise UserError(
            f"data.label_key = {spec.label_key}, but a zip file has labels in {EDM}; leave it out"
        )
    if EDM in entries:
        file = path / EDM
        table = edm_table(file, decode_text(file, read_member(path, entries[EDM], TABLE_BYTES), "JSON"))
        if table is not None and not table.labels:
            return names, unlabelled(len(names)), table.source
        if table is not None:
            names = in_table_order(table, names)
            return names, labels_of(path, table, names, "images"), table.source
    if not all("/" in name for name in names):
        return names, unlabelled(len(names)), "none: no class folders and no dataset.json"
    return names, named_classes([name.partition("/")[0] for name in names]), "class folders"
