"""Runs on latents of videos and sounds: encoding, training and evaluation on decoded samples."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from harness.assembly.resolve import load_spec
from harness.cli.main import cli
from harness.config.data_spec import DataSpec
from harness.data.log_mel import RATE, mel_bytes
from harness.data.open import images, open_dataset, outlined
from harness.errors import UserError
from harness.latents.codec import decoder_of
from harness.records.record import Record
from harness.runtime.random_streams import Streams
from tests.harness.data.recorded import frames, sound, tone, video
from tests.harness.latents.vae import save_dac, save_oobleck, save_vae, save_wan
from tests.support.runs import events, losses, tiny, trained

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("quick_networks")
VIDEO = ("data.name=latents", "backbone.patch=1", "eval.metrics=['fd:video:local']")
AUDIO = ("data.name=latents", "backbone.patch=2", "eval.metrics=['fd:local']")
SHORT = ("train.steps=4", "eval.every=4", "eval.samples=6", "eval.grid=4", "data.held_out=0.2")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 32 videos of two classes, with five random frames each."""
    root = tmp_path_factory.mktemp("videos")
    for number in range(32):
        file = root / f"{number % 2}" / f"{number}.mkv"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(video(frames(5, seed=number)))
    return root


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 32 tones of two classes at 16 kHz, with 16 log-mel frames each."""
    root = tmp_path_factory.mktemp("sounds")
    for number in range(32):
        file = root / f"{number % 2}" / f"{number}.wav"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(sound(tone(4096, 16_000, hertz=300 + 500 * (number % 2) + number), 16_000))
    return root


def encode(source: Path | str, codec: str, out: Path, *options: str) -> dict:
    words = ["data", "encode", str(source), "--codec", codec, "--out", str(out), "--json", *options]
    return json.loads(CliRunner().invoke(cli, words, catch_exceptions=False).output)


def error_of(*words: str) -> str:
    result = CliRunner().invoke(cli, ["data", "encode", *words])
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


def sampled(record: Record, out: Path) -> np.ndarray:
    words = ["sample", str(record.path), "-n", "4", "--output", str(out)]
    assert CliRunner().invoke(cli, words, catch_exceptions=False).exit_code == 0
    return np.asarray(Image.open(out))


@pytest.mark.slow
def test_run_on_latents_of_videos_agrees_with_diffusers(tmp_path: Path, videos: Path) -> None:
    from diffusers import AutoencoderKLWan

    wan, folder = save_wan(tmp_path / "wan", channels=3), tmp_path / "l"
    about = encode(
        videos, f"wan-vae:{wan}", folder, "--set", "data.frames=5", "--rows", "16", "--batch", "5", "--flip"
    )
    assert (about["shape"], about["pixels"], about["samples"]) == ([3, 2, 2, 2], [3, 5, 8, 8], 32)
    data = open_dataset(DataSpec(name="latents", root=str(folder), flip=True))
    assert (data.modality, data.pictures.modality, data.pictures.shape) == ("video", "video", (3, 5, 8, 8))

    place, flipped = np.array([31, 1, 1]), torch.tensor([False, False, True])
    noise = Streams(0).normal("posterior", place, data.shape)
    x = torch.from_numpy(images(data, place)[0]).float() / 127.5 - 1
    network = AutoencoderKLWan.from_pretrained(wan).eval()
    with torch.no_grad():
        posterior = network.encode(torch.where(flipped.reshape(-1, 1, 1, 1, 1), x.flip(-1), x)).latent_dist
    mean, std = (
        torch.tensor(row).reshape(1, 3, 1, 1, 1)
        for row in (network.config.latents_mean, network.config.latents_std)
    )
    expected = (posterior.mean + posterior.std * noise - mean) / std
    torch.testing.assert_close(data.draws(place, flipped, noise), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        torch.from_numpy(data.sample(31).x), ((posterior.mean - mean) / std)[0], rtol=1e-4, atol=1e-5
    )
    with torch.no_grad():
        decoded = network.decode(expected * std + mean).sample
    torch.testing.assert_close(decoder_of(data, CPU).decode(expected), decoded, rtol=1e-4, atol=1e-4)

    where = (f"data.root={folder}", "data.flip=true", "method.name=sra")
    record = trained(tiny(*VIDEO, *SHORT, *where), tmp_path / "runs")
    assert record.of("eval")[-1]["metrics"]["fd:video:local"]["mean"] > 0
    assert record.environment[0]["evaluation"]["protocol"]["shape"] == [3, 5, 8, 8]
    picture = sampled(record, tmp_path / "s.png")
    assert picture.shape == (8 * (4 * 9 - 1), 8 * 5 * 8, 3) and picture.std() > 0


@pytest.mark.parametrize(
    ("family", "save"),
    [("oobleck", save_oobleck), pytest.param("dac", save_dac, marks=pytest.mark.slow)],
)
def test_latents_of_sounds_are_encoded_and_decoded_as_waveforms(
    tmp_path: Path, sounds: Path, family: str, save: Callable[[Path], Path]
) -> None:
    """Metrics read log-mel spectrograms of the decoded waveforms."""
    weights, folder = save(tmp_path / "codec"), tmp_path / "l"
    options = ("--set", "data.frames=16", "--rows", "16", "--batch", "8")
    about = encode(sounds, f"{family}:{weights}", folder, *options)
    # 4,096 samples in frames of 320 or 40, rounded up.
    shape = {"oobleck": [4, 13], "dac": [32, 103]}[family]
    assert (about["shape"], about["pixels"], about["samples"]) == (shape, [32, 16], 32)
    data = open_dataset(DataSpec(name="latents", root=str(folder)))
    assert (data.modality, data.pictures.shape) == ("audio", (32, 16))

    waves = torch.from_numpy(np.stack([data.pictures.wave(i, 16_000) for i in (3, 4)]))[:, None].float()
    codec = data.codec(CPU)
    mean, std = codec.encode(waves)
    noise = Streams(0).normal("posterior", [3, 4], data.shape)
    drawn = data.draws(np.array([3, 4]), None, noise)
    torch.testing.assert_close(drawn, mean + std * noise, rtol=1e-4, atol=1e-5)
    assert bool(std.any()) == (family == "oobleck")
    from scipy.signal import resample_poly

    decoded = resample_poly(codec.decode(drawn)[:, 0].double().numpy(), RATE, 16_000, axis=-1)
    decoded = np.pad(decoded, ((0, 0), (0, 128)))[:, : 16 * 128]
    spectrograms = ((decoder_of(data, CPU).decode(drawn) + 1) * 127.5).round().numpy()
    np.testing.assert_array_equal(spectrograms, mel_bytes(decoded))


@pytest.mark.slow
def test_run_on_latents_of_sounds_is_evaluated_on_log_mel_spectrograms(tmp_path: Path, sounds: Path) -> None:

    encode(sounds, f"oobleck:{save_oobleck(tmp_path / 'o')}", tmp_path / "l", "--set", "data.frames=16")
    where = (f"data.root={tmp_path / 'l'}", "backbone.patch=13", "data.posterior=mean")
    record = trained(tiny(*AUDIO, *SHORT, *where), tmp_path / "runs")
    assert record.of("eval")[-1]["metrics"]["fd:local"]["mean"] > 0
    assert record.environment[0]["evaluation"]["protocol"]["shape"] == [32, 16]
    assert sampled(record, tmp_path / "s.png").shape == (4 * 32, 4 * (4 * 17 - 1))


@pytest.mark.parametrize("kind", ["video", pytest.param("audio", marks=pytest.mark.slow)])
def test_training_with_identity_is_training_on_the_samples(
    tmp_path: Path, videos: Path, sounds: Path, kind: str
) -> None:
    """Losses, metrics and sample grids agree bit for bit."""
    name, root, n = {"video": ("videos", videos, 5), "audio": ("sounds", sounds, 16)}[kind]
    settings = {"video": (*VIDEO, "backbone.patch=4"), "audio": AUDIO}[kind]
    options = ("--set", f"data.name={name}", "--set", f"data.frames={n}")
    encode(root, "identity", tmp_path / "l", *options, "--rows", "30")
    latent = tiny(*settings, *SHORT, f"data.root={tmp_path / 'l'}")
    plain = tiny(*settings, *SHORT, f"data.name={name}", f"data.root={root}", f"data.frames={n}")
    one, other = trained(plain, tmp_path / "one"), trained(latent, tmp_path / "other")
    assert losses(one) == losses(other)
    values = [[event["metrics"] for event in events(r) if event["kind"] == "eval"] for r in (one, other)]
    assert values[0] == values[1] and values[0]
    grids = [(r.path / "samples" / "step-00000004.png").read_bytes() for r in (one, other)]
    assert grids[0] == grids[1]


def test_encode_raises_for_samples_that_the_codec_cannot_encode(
    tmp_path: Path, videos: Path, sounds: Path
) -> None:
    out = ("--out", str(tmp_path / "l"))
    wan = f"wan-vae:{save_wan(tmp_path / 'wan', channels=3)}"
    dac = f"dac:{save_dac(tmp_path / 'dac')}"
    assert "a multiple of 4 plus 1 frames, but the samples have 4; set data.frames=5" in error_of(
        str(videos), "--codec", wan, "--set", "data.frames=4", *out
    )
    assert "needs 3 channels, but the samples have 1" in error_of(
        "moving_digits", "--codec", wan, "--set", "data.frames=5", *out
    )
    assert "'wan-vae' encodes video, but these samples are image; use identity or rae or sd-vae" in (
        error_of("digits", "--codec", wan, *out)
    )
    assert "'dac' encodes audio, but these samples are video" in error_of(
        "moving_digits", "--codec", dac, *out
    )
    assert "--flip mirrors images and videos" in error_of(
        str(sounds), "--codec", dac, "--set", "data.frames=16", "--flip", *out
    )
    short = ("--set", "data.frames=2")
    assert "encodes waveforms, but these samples only have log-mel spectrograms" in error_of(
        "bounce", "--codec", dac, "--set", "data.video_weight=0", *short, *out
    )
    assert "these samples are joint; no codec encodes them" in error_of(
        "bounce", "--codec", dac, *short, *out
    )
    assert not (tmp_path / "l").exists()


def test_single_part_of_joint_data_is_encoded_with_its_modality(tmp_path: Path) -> None:
    encode("bounce", "identity", tmp_path / "l", "--set", "data.audio_weight=0", "--set", "data.frames=2")
    data = open_dataset(DataSpec(name="latents", root=str(tmp_path / "l")))
    assert data.modality == data.pictures.modality == "video" and data.shape == data.pictures.shape
    np.testing.assert_allclose(data.sample(7).x, data.pictures.sample(7).x / 127.5 - 1, atol=1e-6)


def test_spec_reads_the_modality_from_the_manifest(tmp_path: Path, videos: Path) -> None:
    encode(videos, "identity", tmp_path / "l", "--set", "data.name=videos", "--set", "data.frames=5")
    given = ("data.name=latents", f"data.root={tmp_path / 'l'}")
    assert load_spec("digits", (*given, "eval.metrics=['fd:video:local']")).data.name == "latents"
    with pytest.raises(UserError, match="this run generates videos"):
        load_spec("digits", given)
    with pytest.raises(
        UserError, match=r"encoder 'timm:vit_tiny_patch16_224' reads images, and these data are video"
    ):
        load_spec("digits", (*given, "method.name=repa", "method.encoder.name=timm:vit_tiny_patch16_224"))
    for fields, message in (
        ({"frames": 9}, "data.frames = 9, but .* was encoded from videos with 5"),
        ({"resolution": 16}, "data.resolution = 16, but .* was encoded from videos with 8"),
    ):
        with pytest.raises(UserError, match=message):
            open_dataset(DataSpec(name="latents", root=str(tmp_path / "l"), **fields))


def test_outline_has_the_shapes_of_the_published_weights(tmp_path: Path) -> None:
    """The sizes are those of Self-Flow: videos of 45 frames at 192p, and ten seconds of music."""
    fields = {"name": "latents", "classes": 10}
    video = outlined(DataSpec(**fields, codec="wan-vae@00000000", resolution=192, frames=45))
    assert (video.modality, video.shape, video.pictures.shape) == (
        "video",
        (48, 12, 12, 12),
        (3, 45, 192, 192),
    )
    music = outlined(DataSpec(**fields, codec="oobleck@00000000", frames=625))
    assert (music.modality, music.shape, music.pictures.shape) == ("audio", (64, 250), (32, 625))
    assert load_spec(
        "digits",
        (
            "data.name=latents",
            "data.classes=10",
            "data.frames=625",
            f"data.codec=oobleck:{save_oobleck(tmp_path / 'o')}",
        ),
    ).data.codec.startswith("oobleck@")
    with pytest.raises(UserError, match=r"needs data.resolution, data.frames and data.classes of the videos"):
        outlined(DataSpec(**fields, codec="wan-vae@00000000", frames=45))


def test_sd_vae_normalises_by_its_configuration(tmp_path: Path) -> None:
    """SD3 and FLUX publish a shift and a factor, derivatives of SDXL a mean and deviation per channel."""
    from harness.latents.codec import open_codec

    z = torch.randn(2, 4, 4, 4)
    shifted = open_codec(
        "sd-vae", str(save_vae(tmp_path / "s", shift_factor=0.5, scaling_factor=2.0)), CPU
    ).affine
    assert torch.equal(shifted.normalised(z), (z - 0.5) * 2)
    rows = {"latents_mean": (1.0, 2.0, 3.0, 4.0), "latents_std": (0.5, 1.0, 2.0, 4.0)}
    each = open_codec("sd-vae", str(save_vae(tmp_path / "c", scaling_factor=0.5, **rows)), CPU).affine
    mean, std = (torch.tensor(row).reshape(4, 1, 1) for row in rows.values())
    torch.testing.assert_close(each.normalised(z), (z - mean) * 0.5 / std)
    torch.testing.assert_close(each.restored(each.normalised(z)), z)
