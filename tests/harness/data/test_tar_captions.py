"""Captions in webdataset's tar files: KEY.txt, or a field of KEY.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.assembly.resolve import load_spec
from harness.data.dataset import Capabilities, Dataset
from harness.data.found import found_in
from harness.errors import UserError
from tests.harness.data.captioned_tars import READ, TEXTS, members, texts
from tests.harness.data.containers import Members, tar_of
from tests.harness.data.pictures import opened

FIELDS = [["a cat"], ["ein Hund", "a dog"], "家", "", None, "a fox"]


def fields(name: str) -> list[bytes | None]:
    return [json.dumps({name: value, "url": "x", "width": 3}).encode() for value in FIELDS]


def captions_of(data: Dataset) -> list[tuple[str, ...]]:
    captions = Capabilities(data).captions
    assert captions is not None
    return [captions(index) for index in range(len(data))]


@pytest.mark.parametrize(
    ("given", "key", "source"),
    [
        (members("txt", texts()), "usual", "member .txt"),
        (members("text", texts()), "usual", "member .text"),
        (members("prompt.en", texts()), "prompt.en", "member .prompt.en"),
        (members("json", fields("caption")), "usual", "member .json, field 'caption'"),
        (members("json", fields("blip")), "blip", "member .json, field 'blip'"),
    ],
    ids=["txt", "text", "named", "json", "field"],
)
def test_captions_of_a_tar_file_are_those_of_its_members(
    tmp_path: Path, given: Members, key: str, source: str
) -> None:
    data = opened("webdataset", tar_of(tmp_path / "a.tar", given), caption_key=key)
    assert captions_of(data) == READ
    assert found_in(data).line().count(f"6 captions ({source})") == 1
    # The index is read from the cache.
    assert captions_of(opened("webdataset", tmp_path / "a.tar", caption_key=key)) == READ


def test_text_files_are_preferred_to_json_as_in_cc12m(tmp_path: Path) -> None:
    both = sorted(members("txt", texts()) + members("json", fields("caption"))[1::2])
    data = opened("webdataset", tar_of(tmp_path / "a.tar", both), caption_key="usual")
    assert captions_of(data) == READ


def test_samples_of_several_files_are_in_order_and_unusual_captions_are_named(tmp_path: Path) -> None:
    tar_of(tmp_path / "cc-train-0.tar", members("txt", texts()))
    tar_of(tmp_path / "cc-train-1.tar", members("txt", texts(["last"]), start=90))
    data = opened("webdataset", tmp_path, caption_key="usual")
    assert captions_of(data) == [*READ, ("last",)]
    line = found_in(data).line()
    assert "1 samples have none (first: " in line and "00004.png)" in line
    assert "1 are empty (first: " in line and "00003.png)" in line


def test_captions_are_part_of_the_fingerprint_only_if_they_are_read(tmp_path: Path) -> None:
    file = tar_of(tmp_path / "a.tar", members("txt", texts()))
    without = tar_of(tmp_path / "b.tar", members("txt", [None] * 6))
    other = tar_of(tmp_path / "c.tar", members("txt", texts([*TEXTS[:-1], "a wolf"])))
    plain = opened("webdataset", file)
    assert Capabilities(plain).captions is None
    assert plain.fingerprint == opened("webdataset", without).fingerprint
    read = {opened("webdataset", root, caption_key="usual").fingerprint for root in (file, other)}
    assert len({*read, plain.fingerprint}) == 3


@pytest.mark.parametrize(
    ("given", "key", "sentence"),
    [
        (members("txt", [None] * 6), "usual", "has no captions; expected members KEY.txt, or a field"),
        (members("txt", texts()), "alt", "data.caption_key in .*a.tar 'alt'"),
        (members("txt", [b"\xff\xfe\xfa"] * 6), "usual", r"00000.txt is not UTF-8"),
        (members("txt", [b"x" * 400_001] * 6), "usual", r"00000.txt has 400,001 bytes"),
        (members("json", [b'{"caption": 3}'] * 6), "usual", "field 'caption': a caption is '3'"),
        (members("json", [b'{"caption": '] * 6), "usual", r"00000.json is not JSON"),
        (members("json", [b'{"caption": "a", "text": "b"}'] * 6), "usual", "caption, text, which may each"),
        (members("json", [b'{"caption": "\\ud83d"}'] * 6), "usual", "half a character"),
    ],
    ids=["none", "unknown", "bytes", "long", "number", "broken", "several", "surrogate"],
)  # fmt: skip
def test_unusable_captions_are_one_sentence(tmp_path: Path, given: Members, key: str, sentence: str) -> None:
    file = tar_of(tmp_path / "a.tar", given)
    with pytest.raises(UserError, match=sentence):
        opened("webdataset", file, caption_key=key)


def test_files_with_captions_in_different_places_are_refused(tmp_path: Path) -> None:
    tar_of(tmp_path / "0.tar", members("txt", texts()))
    tar_of(tmp_path / "1.tar", members("json", fields("caption"), start=50))
    with pytest.raises(UserError, match=r"1\.tar has captions 'json caption', but .*0\.tar has 'txt'"):
        opened("webdataset", tmp_path, caption_key="usual")


@pytest.mark.parametrize("cut", [lambda size: size - 1024 * 11, lambda size: size // 2, lambda _: 700])
def test_tar_file_that_is_cut_short_is_one_sentence(tmp_path: Path, cut: Callable[[int], int]) -> None:
    file = tar_of(tmp_path / "a.tar", members("txt", texts()))
    content = file.read_bytes()
    file.write_bytes(content[: cut(len(content))])
    with pytest.raises(UserError, match=r"a\.tar"):
        opened("webdataset", file, caption_key="usual")


def test_run_with_a_text_encoder_reads_captions_of_tar_files(tmp_path: Path) -> None:
    file = tar_of(tmp_path / "a.tar", members("txt", texts()))
    spec = load_spec("prompts", ["data.name=webdataset", f'data.root="{file}"'])
    assert spec.data.caption_key == "usual"
