"""Media files that name other files or addresses, or that unpack to much more than they are, are refused."""

from __future__ import annotations

import io
import socket
import struct
from pathlib import Path

import numpy as np
import pytest

from metrics.files import containers
from metrics.files.media import Encoded
from metrics.files.recordings import decoded, read_audio, resampled
from metrics.files.videos import inspected
from metrics.value import MetricError
from tests.harness.data.recorded import film, frames, sound, tone, video

SDP = b"""v=0
o=- 0 0 IN IP4 127.0.0.1
s=No Name
c=IN IP4 127.0.0.1
t=0 0
m=video 5004 RTP/AVP 96
a=rtpmap:96 H264/90000
"""
PLAYLIST = b"""#EXTM3U
#EXT-X-TARGETDURATION:1
#EXTINF:1,
http://127.0.0.1:9/a.ts
#EXT-X-ENDLIST
"""
DASH = b"""<?xml version="1.0"?>
<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet><Representation id="0">
<BaseURL>http://127.0.0.1:9/a.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>
"""


@pytest.mark.parametrize("container", [SDP, PLAYLIST, DASH], ids=["sdp", "hls", "dash"])
@pytest.mark.parametrize("stored", ["file", "row"])
def test_formats_that_name_addresses_are_refused_and_reach_no_address(
    tmp_path: Path, container: bytes, stored: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        content = container.replace(b"127.0.0.1:9", b"127.0.0.1:%d" % server.getsockname()[1])
        file = tmp_path / "a.mp4"
        file.write_bytes(content)
        for read in (inspected, decoded):
            with pytest.raises(MetricError, match=r"a\.mp4 cannot be decoded as"):
                read(Encoded(str(file), file if stored == "file" else content))
        with pytest.raises(BlockingIOError):
            server.accept()


def test_lists_of_files_do_not_open_the_files(tmp_path: Path) -> None:
    (tmp_path / "secret.mkv").write_bytes(video(frames()))
    listed = f"ffconcat version 1.0\nfile '{tmp_path / 'secret.mkv'}'\n".encode()
    (tmp_path / "a.mp4").write_bytes(listed)
    for source in (tmp_path / "a.mp4", listed):
        with pytest.raises(MetricError, match="cannot be decoded as video"):
            inspected(Encoded("a.mp4", source))


def test_file_that_is_named_as_an_address_is_read_as_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FFmpeg would take the name for a protocol and its argument."""
    monkeypatch.chdir(tmp_path)
    name = Path("concat:a|b.mkv")
    name.write_bytes(video(frames()))
    assert len(inspected(Encoded(str(name), name)).times) == 16


def with_rate(content: bytes, rate: int) -> bytes:
    """Return a WAV whose header states another rate."""
    return content[:24] + struct.pack("<II", rate, 2 * rate) + content[32:]


def test_recording_of_one_sample_a_second_is_refused_before_it_is_resampled(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(with_rate(sound(tone(160_000)), 1))
    with pytest.raises(MetricError, match=r"rate of 1 Hz, which is 1,280,000,000 samples at 8000 Hz"):
        list(read_audio(tmp_path, 8000))


def test_recording_is_not_longer_than_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A FLAC of silence unpacks a thousandfold; neither decoder reads it beyond the bound."""
    samples = np.concatenate([tone(8000), np.zeros(200_000)])
    content = sound(samples, format="FLAC")
    assert len(decoded(Encoded("a.flac", content)).samples) == len(samples)
    monkeypatch.setattr(containers, "MOST_VALUES", 100_000)
    monkeypatch.setattr("metrics.files.recordings.MOST_VALUES", 100_000)
    with pytest.raises(MetricError, match=r"a\.flac has more than 100,000 samples"):
        decoded(Encoded("a.flac", content))
    with pytest.raises(MetricError, match="at most 100,000 are read"):
        resampled(decoded(Encoded("b.wav", sound(tone(8000)))), 200_000)


def test_frame_is_not_larger_than_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    content = video(frames(16, 32, 32), "avi")
    monkeypatch.setattr(containers, "LARGEST_FRAME", 1023)
    with pytest.raises(MetricError, match=r"frames of 32x32 pixels, at most 1,023"):
        inspected(Encoded("a.avi", content))


def test_gif_of_65535_pixels_a_side_is_refused() -> None:
    content = bytearray(io.BytesIO(video(frames(4, 8, 8), "gif", "gif", "rgb8")).getvalue())
    content[6:10] = struct.pack("<HH", 65_535, 65_535)
    with pytest.raises(MetricError, match=r"a\.gif (has frames of 65535x65535|cannot be decoded)"):
        inspected(Encoded("a.gif", bytes(content)))


def test_video_is_not_longer_than_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "LONGEST_VIDEO", 8 * 64)
    with pytest.raises(MetricError, match="more than 512 pixels in all its frames"):
        inspected(Encoded("a.mkv", video(frames(16, 8, 8))))


def test_sound_without_a_rate_is_refused() -> None:
    content = film(frames(), tone(8192))
    # The sampling frequency of the track, as a float of 8 bytes (Matroska, 0xB5).
    place = content.index(b"\xb5\x88" + struct.pack(">d", 8000.0))
    content = content[: place + 2] + bytes(8) + content[place + 10 :]
    with pytest.raises(
        MetricError, match=r"a\.mkv (states no sampling rate|cannot be decoded|has a sampling)"
    ):
        decoded(Encoded("a.mkv", content))
