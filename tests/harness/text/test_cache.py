"""Cached features of captions: the same as without a cache, once for all, whatever is killed or damaged."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.backbone.condition import Text
from harness.errors import UserError
from harness.text import cache, store
from harness.text.cache import add_captions, open_store
from harness.text.store import Hashes, hashes_of
from metrics.files.hashing import sha256_of
from tests.conftest import ROOT
from tests.harness.text.counting import Counting
from tests.support.allocated import traced
from tests.support.forked import in_child


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWRACE_CACHE", str(tmp_path))


def numbered(count: int) -> Iterator[str]:
    return (f"caption {number}" + " and more" * (number % 3) for number in range(count))


def filled(encoder: Counting, captions: Sequence[str]) -> store.Store:
    found = open_store(encoder)
    add_captions(found, encoder, lambda: iter(captions))
    return found


def assert_same(found: Text, expected: Text) -> None:
    assert torch.equal(found.features, expected.features)
    assert (found.mask is None) == (expected.mask is None)
    assert found.mask is None or expected.mask is None or torch.equal(found.mask, expected.mask)


@pytest.mark.parametrize("masked", [True, False])
def test_stored_features_are_those_of_the_encoder(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "PART_BYTES", 1)
    captions = ["", *numbered(200), "a b c d e f g"]
    encoder = Counting(masked=masked)
    found = filled(encoder, captions)
    chosen = [captions[i] for i in (3, 0, 201, 199, 3, 77)]
    assert_same(found.read(chosen), encoder.encode(chosen))
    assert len(found.parts()) == 4 and len(found) == 202
    with pytest.raises(KeyError, match="unheard"):
        found.read(["unheard"])


def test_each_caption_is_encoded_once_for_all_data_sets() -> None:
    encoder = Counting()
    open_store(encoder)
    probe = encoder.encoded
    filled(encoder, ["one", "two", "one", *numbered(100)])
    assert encoder.encoded == 2 * probe + 102
    again = filled(encoder, ["two", "three", *numbered(130)])
    assert encoder.encoded == 3 * probe + 102 + 31
    assert_same(again.read(["three", "one"]), encoder.encode(["three", "one"]))


def test_captions_that_are_cut_are_counted_and_the_first_is_named() -> None:
    encoder = Counting()
    captions = ["a", "a", "a b c d", "a b c", *numbered(50), "a b c d"]
    found = open_store(encoder)
    added = add_captions(found, encoder, lambda: iter(captions))
    longer = [len(caption.split()) + 1 > 4 for caption in captions]
    assert added == (len(captions), len(set(captions)), len(set(captions)), sum(longer), longer.index(True))
    again = add_captions(found, encoder, lambda: iter(captions[:2]))
    assert again == (2, 1, 0, 0, None)
    assert add_captions(found, encoder, lambda: iter([])) == (0, 0, 0, 0, None)


def test_other_weights_or_features_have_another_store() -> None:
    first, other, moved = Counting(), Counting(), Counting()
    other.sha256 = "cd" * 32
    moved.dim = 2
    folders = {open_store(encoder).folder for encoder in (first, other, moved, Counting(masked=False))}
    assert len(folders) == 4 and open_store(Counting()).folder in folders


def test_captions_that_share_half_a_hash_are_distinguished(monkeypatch: pytest.MonkeyPatch) -> None:
    def colliding(captions: Sequence[str]) -> Hashes:
        real = hashes_of(captions)
        return Hashes(real.high % np.uint64(3), real.low)

    monkeypatch.setattr(store, "hashes_of", colliding)
    monkeypatch.setattr(cache, "hashes_of", colliding)
    encoder, captions = Counting(), [*numbered(150), *numbered(150)]
    found = filled(encoder, captions)
    assert len(found) == 150
    assert_same(found.read(captions[:150]), encoder.encode(captions[:150]))
    assert (found.find(colliding(["unheard", "also unheard"])) == -1).all()


@pytest.mark.parametrize("end", ["rows", "entries", "sha256"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damaged_part_is_written_again(end: str, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "PART_BYTES", 1)
    encoder, captions = Counting(), list(numbered(200))
    expected = encoder.encode(captions)
    file = filled(encoder, captions).folder / f"part-000001.{end}"
    content = file.read_bytes()
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(content[:-5] if damage == "cut" else bytes([content[0] ^ 1]) + content[1:])
    assert_same(filled(encoder, captions).read(captions), expected)


def test_checksums_are_compared_again_only_for_files_that_have_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The number of bytes in a store does not matter: a part of another stamp is never trusted."""
    monkeypatch.setattr(cache, "PART_BYTES", 1)
    encoder, captions = Counting(), list(numbered(200))
    found = filled(encoder, captions)
    # No file was changed so recently that its stamp is in doubt.
    monkeypatch.setattr(store, "stored", lambda stamp, _: stamp)
    filled(encoder, captions)
    compared: list[Path] = []
    monkeypatch.setattr(store, "sha256_of", lambda file: compared.append(file) or sha256_of(file))
    filled(encoder, captions)
    assert [file for file in compared if file.name.startswith("part")] == []
    rows = found.folder / "part-000002.rows"
    content = rows.read_bytes()
    # A cut at the end of a row.
    rows.write_bytes(content[: -4 * encoder.dim])
    assert_same(filled(encoder, captions).read(captions), encoder.encode(captions))
    assert rows in compared and found.folder / "part-000001.rows" not in compared


def test_damaged_note_of_verified_parts_is_ignored() -> None:
    encoder, captions = Counting(), list(numbered(100))
    (filled(encoder, captions).folder / "verified.json").write_bytes(b"[1")
    assert_same(filled(encoder, captions).read(captions), encoder.encode(captions))


def test_open_index_keeps_its_features_while_another_process_repairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "PART_BYTES", 1)
    encoder, captions = Counting(), list(numbered(200))
    older = filled(encoder, captions)
    (older.folder / "part-000001.entries").unlink()
    # The parts are written again with other captions in them.
    filled(encoder, [*numbered(20), *(f"another {number}" for number in range(200))])
    assert_same(older.read(captions), encoder.encode(captions))


def test_store_with_more_parts_than_a_process_may_open_files_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "BLOCK", 1)
    monkeypatch.setattr(cache, "PART_BYTES", 1)
    captions = list(numbered(100))

    def check() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        encoder = Counting()
        found = filled(encoder, captions)
        assert len(found.parts()) == 100
        assert_same(found.read(captions), encoder.encode(captions))

    assert in_child(check) == 0


def test_parts_are_as_large_as_their_real_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caption of one word has two of four tokens of three numbers, so a block of 64 has 1,536 bytes."""
    monkeypatch.setattr(cache, "PART_BYTES", 3 * 1536)
    found = filled(Counting(), [f"word{number}" for number in range(64 * 4)])
    sizes = [(found.folder / f"part-{part:06d}.rows").stat().st_size for part in found.parts()]
    assert sizes == [3 * 1536, 1536]


def test_damaged_index_is_merged_again() -> None:
    encoder, captions = Counting(), list(numbered(100))
    (file,) = filled(encoder, captions).folder.glob("index-*.entries")
    content = bytearray(file.read_bytes())
    content[17] ^= 1
    file.write_bytes(content)
    assert_same(filled(encoder, captions).read(captions), encoder.encode(captions))


KILLED = """
import sys
from harness.text import cache
from tests.harness.text.counting import Counting
from tests.harness.text.test_cache import filled, numbered
cache.PART_BYTES = 1
class Slow(Counting):
    def encode(self, captions):
        print(self.encoded, flush=True)
        return super().encode(captions)
filled(Slow(), list(numbered(1000)))
"""


@pytest.mark.slow
def test_killed_process_leaves_what_it_has_and_the_next_one_continues() -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) > 400:
                process.send_signal(signal.SIGKILL)
                break
    encoder, captions = Counting(), list(numbered(1000))
    open_store(encoder)
    probe = encoder.encoded
    found = filled(encoder, captions)
    assert 0 < encoder.encoded - 2 * probe <= 700
    expected = Counting().encode(captions)
    assert_same(found.read(captions), expected)
    assert not list(found.folder.glob(".*"))


def test_full_disk_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    encoder = Counting()
    found = open_store(encoder)
    monkeypatch.setattr(store, "write_atomic", full)
    with pytest.raises(UserError, match=r"cannot write .*captions.*: No space left on device"):
        add_captions(found, encoder, lambda: numbered(10))


def peak_bytes(count: int) -> int:
    """Return the memory that indexing this number of captions takes, beyond the encoder's."""

    def index(number: int) -> None:
        encoder = Counting()
        encoder.sha256 = f"{count:032d}{number:032d}"
        assert add_captions(open_store(encoder), encoder, lambda: numbered(count)).new == count

    return traced(index)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The texts of 20,000 captions alone take more than 1.5 MB."""
    monkeypatch.setattr(cache, "PART_BYTES", 16 << 10)
    monkeypatch.setattr(cache, "CHUNK", 256)
    monkeypatch.setattr(cache, "ROWS", 512)
    assert peak_bytes(20_000) < peak_bytes(2_000) + 500_000


class Cheap(Counting):
    """An encoder that costs almost nothing: features are the number in a caption."""

    length, longest = 2, 2

    def token_counts(self, captions: Sequence[str]) -> np.ndarray:
        return np.full(len(captions), 2)

    def encode(self, captions: Sequence[str]) -> Text:
        numbers = [float(caption[8:16] or 0) if caption[:1] == "c" else 0.0 for caption in captions]
        features = torch.tensor(numbers)[:, None, None].expand(-1, self.length, self.dim)
        return Text(features, torch.ones(features.shape[:2], dtype=torch.bool))


def anonymous_bytes() -> int:
    """Return the memory of this process without the pages of mapped files, which the system may drop."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in line)
    return int(line.split()[1]) * 1024


@pytest.mark.slow
def test_twelve_million_captions_are_indexed_in_bounded_memory() -> None:
    """The texts alone are about 0.9 GB in memory, and the entries of the index 480 MB."""
    encoder, count, seen = Cheap(), 12_000_000, []
    found, before = open_store(encoder), anonymous_bytes()

    def texts() -> Iterator[str]:
        for number in range(count):
            if number % 200_000 == 0:
                seen.append(anonymous_bytes())
            yield f"caption {number:08d}"

    added = add_captions(found, encoder, texts)
    assert added.captions == added.new == added.distinct == len(found) == count and added.cut == 0
    chosen = [0, 7_654_321, count - 1]
    text = found.read([f"caption {number:08d}" for number in chosen])
    assert text.features[:, 0, 0].tolist() == [float(number) for number in chosen]
    # One byte per caption states whether it is new, and a part holds 65,536 texts.
    assert max(*seen, anonymous_bytes()) - before < 200e6
