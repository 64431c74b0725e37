"""References of `flowrace eval`: raw samples and statistics, and the networks that they suit."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.config.data_spec import DataSpec
from harness.errors import UserError
from harness.evaluation.samples import cached_features
from harness.evaluation.samples import score as score_module
from harness.evaluation.samples.sources import open_source, settled
from metrics import Moments, frechet_infinity, inception_score, load_extractor
from metrics.extractors.base import Extractor
from tests.harness.evaluation.samples.calls import assert_rejected, scored
from tests.harness.evaluation.samples.networks import by_hand, bytes_of, save_means

FAKE, REAL = bytes_of(1, 120, 8, 8, 3, top=230), bytes_of(2, 150, 8, 8, 3)


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLOWRACE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def here(tmp_path: Path) -> Path:
    save_means(tmp_path)
    np.savez(tmp_path / "fake.npz", arr_0=FAKE, arr_1=np.arange(120) % 4)
    np.savez(tmp_path / "real.npz", arr_0=REAL)
    return tmp_path


def network(here: Path, options: str = "") -> tuple[str, str]:
    return "--extractor", f"torchscript:{here / 'means.ts'}{options}"


@pytest.mark.slow
def test_local_classifier_is_trained_on_the_reference(
    here: Path, monkeypatch: pytest.MonkeyPatch, session_cache: Path
) -> None:
    """Samples with labels off by one are all wrong by a classifier of the reference, whatever the metrics."""
    monkeypatch.setenv("FLOWRACE_CACHE", str(session_cache))
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.round(bunch.images[:400] * (255 / 16)).astype(np.uint8)
    np.savez(here / "shifted.npz", arr_0=pixels[..., None], arr_1=(bunch.target[:400] + 1) % 10)
    call = [here / "shifted.npz", "--extractor", "local", "--metrics"]
    accuracy, both = (
        scored(*call, names, "--against", "digits")["metrics"] for names in ("accuracy", "fd,accuracy")
    )
    assert accuracy["accuracy:local"] == both["accuracy:local"] and accuracy["accuracy:local"]["mean"] < 0.1
    assert_rejected("'local' is trained on the raw images of a reference", *call, "accuracy")
    assert_rejected("nowhere: no such file or folder", *call, "accuracy", "--against", here / "nowhere")
    scored("digits", "--extractor", "local", "--save-stats", here / "digits.safetensors")
    message = "'local' is trained on the raw images of a reference"
    assert_rejected(message, *call, "fd", "--against", here / "digits.safetensors")


def test_fd_infinity_does_not_depend_on_other_metrics(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It equals its definition on separately extracted features, of a streamed or a stored reference."""
    extract = load_extractor(network(here)[1])
    real, fake = (extract(torch.from_numpy(x).permute(0, 3, 1, 2)) for x in (REAL, FAKE))
    moments = Moments()
    moments.add(real)
    expected = frechet_infinity(moments, fake)
    call = [here / "fake.npz", "--against", here / "real.npz", *network(here), "--metrics"]
    found = []
    for small in (1000, 0):
        monkeypatch.setattr(cached_features, "SMALL", small)
        found += [
            scored(*call, names)["metrics"]["fd_infinity:torchscript:means"]
            for names in ("fd_infinity", "fd_infinity,recall")
        ]
    for value in found:
        assert value["mean"] == pytest.approx(expected.mean, rel=1e-4)
        assert value["settings"] == {"points": 15, "seed": 0, "real": "moments"}
    assert len({value["protocol"] for value in found}) == 1


def test_inception_score_depends_on_the_number_of_logits(here: Path) -> None:
    """Another number of logits means another cache entry and another protocol."""
    found = {}
    for count in (6, 2):
        call = [here / "fake.npz", *network(here, f"?logits={count}"), "--metrics", "is"]
        found[count] = scored(*call)["metrics"]["is:torchscript:means"]
        expected = inception_score(by_hand(FAKE)[:, -count:])
        assert found[count]["mean"] == pytest.approx(expected.mean, rel=1e-5), count
    assert found[6]["protocol"] != found[2]["protocol"]
    values = [
        scored(here / "fake.npz", "--against", here / "real.npz", *network(here, options))["metrics"]
        for options in ("", "?logits=2")
    ]
    # A Frechet distance does not depend on the logits.
    assert values[0] == values[1]


def clips(here: Path) -> list[Any]:
    np.save(here / "fake.npy", bytes_of(3, 20, 18, 6, 6, 3))
    np.save(here / "real.npy", bytes_of(4, 24, 18, 6, 6, 3, top=200))
    return [here / "fake.npy", "--extractor", f"video:{network(here)[1]}"]


def test_statistics_are_rejected_when_clips_differ_in_length(here: Path) -> None:
    call, file = clips(here), here / "four.safetensors"
    scored(here / "real.npy", *call[1:], "--frames", "4", "--save-stats", file)
    assert_rejected(
        "holds statistics of clips of 4 frames, but the samples have 16; use --frames 4",
        *call,
        "--against",
        file,
    )
    assert_rejected("clips of 4 frames, but the samples have 8", *call, "--against", file, "--frames", "8")
    saved, direct = (
        scored(*call, "--against", x, "--frames", "4")["metrics"] for x in (file, here / "real.npy")
    )
    (found,), (expected,) = saved.values(), direct.values()
    assert found["mean"] == pytest.approx(expected["mean"], rel=1e-6)
    assert found["protocol"] == expected["protocol"]


def test_default_clip_length_equals_the_same_length_given(here: Path) -> None:
    call = [*clips(here), "--against", here / "real.npy"]
    default, given, other = (scored(*call, *words) for words in ((), ("--frames", "16"), ("--frames", "8")))
    assert default == given and default["protocol"]["frames"] == 16
    assert (
        default["metrics"]["fd:video:torchscript:means"]["protocol"]
        != other["metrics"]["fd:video:torchscript:means"]["protocol"]
    )


def test_network_with_fixed_clip_length_rejects_another(here: Path) -> None:
    clips(here)
    fixed = type("Fixed", (), {"name": "i3d", "frames": 16})
    source = open_source(str(here / "fake.npy"), "video", DataSpec(), 8)
    with pytest.raises(
        UserError, match="--frames 8: extractor 'i3d' takes clips of 16 frames; remove the option"
    ):
        settled(source, fixed)
    assert settled(open_source(str(here / "fake.npy"), "video", DataSpec(), None), fixed).frames == 16


class Inception:
    """A replacement for Inception: a tiny network under a given name, with logits and spatial features."""

    def __init__(self, name: str, spatial: bool = False) -> None:
        self.name, self.spatial = name, spatial

    def load(self, *_: Any, **__: Any) -> Extractor:
        def outputs(images: torch.Tensor) -> dict[str, torch.Tensor]:
            x = images.float() / 127.5 - 1
            found = torch.cat([x.mean((2, 3)), (x * x).mean((2, 3))], 1)
            return {"features": found, "logits": found} | ({"spatial": found[:, :3]} if self.spatial else {})

        beside = {"logits": 6} | ({"spatial": 3} if self.spatial else {})
        return Extractor(self.name, 6, "0" * 64, "none", 3, torch.device("cpu"), outputs, beside=beside)


def test_adm_statistics_are_used_only_with_the_original_inception(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = here / "adm.npz"
    np.savez(file, arr_0=REAL, mu=np.zeros(6), sigma=np.eye(6))
    call = [here / "fake.npz", "--against"]
    monkeypatch.setattr(score_module, "load_extractor", Inception("inception@5db8f29a").load)
    by_images = scored(*call, file)
    direct = scored(*call, here / "real.npz")["metrics"]
    assert by_images["metrics"] == direct and by_images["protocol"]["n_real"] == 150
    assert any("mu and sigma of the reference are Inception's" in text for text in by_images["warnings"])
    np.savez(file, mu=np.zeros(6), sigma=np.eye(6))
    assert_rejected(
        "statistics of the original Inception only, not of 'inception@5db8f29a': it holds no images",
        *call,
        file,
    )
    monkeypatch.setattr(score_module, "load_extractor", Inception("inception").load)
    assert scored(*call, file)["protocol"]["n_real"] is None


def test_accuracy_by_inception_is_rejected_before_weights_are_read(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Inception score, which needs no class names, is still computed."""
    call = [here / "fake.npz", "--weights", here / "absent.pth", "--metrics"]
    assert_rejected("accuracy needs a classifier of this data set's classes", *call, "fid,accuracy")
    assert_rejected("cannot read weights .*absent.pth", *call, "is")
    monkeypatch.setattr(score_module, "load_extractor", Inception("inception").load)
    assert list(scored(*call, "is")["metrics"]) == ["is"]


def test_saved_statistics_include_spatial_features(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sFID from saved statistics equals sFID from the images."""
    monkeypatch.setattr(score_module, "load_extractor", Inception("inception", spatial=True).load)
    file, call = here / "s.safetensors", [here / "fake.npz", "--metrics", "fid,sfid", "--against"]
    assert scored(here / "real.npz", "--save-stats", file)["n"] == 150
    saved, direct = (scored(*call, x)["metrics"] for x in (file, here / "real.npz"))
    for name in ("fid", "sfid"):
        assert saved[name]["mean"] == pytest.approx(direct[name]["mean"], rel=1e-5)
        assert saved[name]["protocol"] == direct[name]["protocol"]


def test_protocol_hash_covers_the_same_fields_as_before(here: Path) -> None:
    """Fields that only some metrics have do not change the hashes of the others."""
    call = [
        here / "fake.npz",
        "--against",
        here / "real.npz",
        *network(here),
        "--metrics",
        "fd,is,accuracy,kid",
    ]
    found = scored(*call)
    shared = ("weights_sha256", "dim", "preprocessing", "n_fake", "fake_shape")
    for name, value in found["metrics"].items():
        metric = name.partition(":")[0]
        keys = shared + (("n_real", "real") if metric in ("fd", "kid") else ())
        fields = {key: found["protocol"][key] for key in keys}
        hashed = {"value": metric, "settings": value["settings"], **fields}
        text = json.dumps(hashed, sort_keys=True).encode()
        assert value["protocol"] == hashlib.sha256(text).hexdigest()[:12], name
