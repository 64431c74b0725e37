"""The reference of flowrace eval: opened where it is named, and taken for nothing that it is not of."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.config.spec import DataSpec
from harness.errors import UserError
from harness.evaluation.samples import cached_features as extract_room
from harness.evaluation.samples import score as score_room
from harness.evaluation.samples.sources import open_source, settled
from metrics import Moments, frechet_infinity, inception_score, load_extractor
from metrics.extractors.base import Extractor
from tests.harness.evaluation.samples.calls import refused, scored
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


def test_the_classifier_is_trained_on_the_reference_whatever_is_asked(here: Path) -> None:
    """Labels that are off by one: right by a classifier of the samples, wrong by one of the digits."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.round(bunch.images[:400] * (255 / 16)).astype(np.uint8)
    np.savez(here / "shifted.npz", arr_0=pixels[..., None], arr_1=(bunch.target[:400] + 1) % 10)
    call = [here / "shifted.npz", "--extractor", "local", "--metrics"]
    alone, beside = (
        scored(*call, names, "--against", "digits")["metrics"] for names in ("accuracy", "fd,accuracy")
    )
    assert alone["accuracy:local"] == beside["accuracy:local"] and alone["accuracy:local"]["mean"] < 0.1
    refused("'local' is trained on a reference of raw images, and there is none", *call, "accuracy")
    refused("nowhere: no such file or folder", *call, "accuracy", "--against", here / "nowhere")
    scored("digits", "--extractor", "local", "--save-stats", here / "digits.safetensors")
    says = "'local' is trained on a reference of raw images, and there is none"
    refused(says, *call, "fd", "--against", here / "digits.safetensors")


def test_fd_infinity_is_the_same_whatever_is_asked_beside(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The definition, on features extracted apart; the reference is streamed or kept."""
    extract = load_extractor(network(here)[1])
    real, fake = (extract(torch.from_numpy(x).permute(0, 3, 1, 2)) for x in (REAL, FAKE))
    moments = Moments()
    moments.add(real)
    expected = frechet_infinity(moments, fake)
    call = [here / "fake.npz", "--against", here / "real.npz", *network(here), "--metrics"]
    found = []
    for small in (1000, 0):
        monkeypatch.setattr(extract_room, "SMALL", small)
        found += [
            scored(*call, names)["metrics"]["fd_infinity:torchscript:means"]
            for names in ("fd_infinity", "fd_infinity,recall")
        ]
    for value in found:
        assert value["mean"] == pytest.approx(expected.mean, rel=1e-4)
        assert value["settings"] == {"points": 15, "seed": 0, "real": "moments"}
    assert len({value["protocol"] for value in found}) == 1


def test_values_of_logits_know_how_many_there_are(here: Path) -> None:
    """Not the cache's of another number, and not one protocol."""
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
    assert values[0] == values[1]  # a distance has nothing to do with logits


def clips(here: Path) -> list[Any]:
    np.save(here / "fake.npy", bytes_of(3, 20, 18, 6, 6, 3))
    np.save(here / "real.npy", bytes_of(4, 24, 18, 6, 6, 3, top=200))
    return [here / "fake.npy", "--extractor", f"video:{network(here)[1]}"]


def test_statistics_of_clips_of_another_length(here: Path) -> None:
    call, file = clips(here), here / "four.safetensors"
    scored(here / "real.npy", *call[1:], "--frames", "4", "--save-stats", file)
    refused("clips of another length: frames 4, here 16; see --frames", *call, "--against", file)
    refused("frames 4, here 8", *call, "--against", file, "--frames", "8")
    saved, direct = (
        scored(*call, "--against", x, "--frames", "4")["metrics"] for x in (file, here / "real.npy")
    )
    (one,), (other,) = saved.values(), direct.values()
    assert one["mean"] == pytest.approx(other["mean"], rel=1e-6) and one["protocol"] == other["protocol"]


def test_the_usual_length_of_clips_is_said_or_not(here: Path) -> None:
    call = [*clips(here), "--against", here / "real.npy"]
    usual, said, other = (scored(*call, *words) for words in ((), ("--frames", "16"), ("--frames", "8")))
    assert usual == said and usual["protocol"]["frames"] == 16
    assert (
        usual["metrics"]["fd:video:torchscript:means"]["protocol"]
        != other["metrics"]["fd:video:torchscript:means"]["protocol"]
    )


def test_a_network_with_a_length_of_its_own(here: Path) -> None:
    clips(here)
    fixed = type("Fixed", (), {"name": "i3d", "frames": 16})
    source = open_source(str(here / "fake.npy"), "video", DataSpec(), 8)
    with pytest.raises(
        UserError, match="--frames 8: extractor 'i3d' takes clips of 16 frames; remove the option"
    ):
        settled(source, fixed)
    assert settled(open_source(str(here / "fake.npy"), "video", DataSpec(), None), fixed).frames == 16


class Inception:
    """A stand-in for Inception: the tiny network under its name, or that of other weights, with what lies
    beside."""

    def __init__(self, name: str, spatial: bool = False) -> None:
        self.name, self.spatial = name, spatial

    def load(self, *_: Any, **__: Any) -> Extractor:
        def outputs(images: torch.Tensor) -> dict[str, torch.Tensor]:
            x = images.float() / 127.5 - 1
            found = torch.cat([x.mean((2, 3)), (x * x).mean((2, 3))], 1)
            return {"features": found, "logits": found} | ({"spatial": found[:, :3]} if self.spatial else {})

        beside = {"logits": 6} | ({"spatial": 3} if self.spatial else {})
        return Extractor(self.name, 6, "0" * 64, "none", 3, torch.device("cpu"), outputs, beside=beside)


def test_adms_statistics_are_the_original_networks(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = here / "adm.npz"
    np.savez(file, arr_0=REAL, mu=np.zeros(6), sigma=np.eye(6))
    call = [here / "fake.npz", "--against"]
    monkeypatch.setattr(score_room, "load_extractor", Inception("inception@5db8f29a").load)
    by_images = scored(*call, file)
    direct = scored(*call, here / "real.npz")["metrics"]
    assert by_images["metrics"] == direct and by_images["protocol"]["n_real"] == 150
    assert any("mu and sigma of the reference are Inception's" in text for text in by_images["warnings"])
    np.savez(file, mu=np.zeros(6), sigma=np.eye(6))
    refused(
        "statistics of the original Inception only, not of 'inception@5db8f29a': it holds no images",
        *call,
        file,
    )
    monkeypatch.setattr(score_room, "load_extractor", Inception("inception").load)
    assert scored(*call, file)["protocol"]["n_real"] is None


def test_accuracy_by_inception_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its weights are looked for; what its outputs are good for stays."""
    call = [here / "fake.npz", "--weights", here / "absent.pth", "--metrics"]
    refused("accuracy needs a classifier of this data set's classes", *call, "fid,accuracy")
    refused("cannot read weights .*absent.pth", *call, "is")
    monkeypatch.setattr(score_room, "load_extractor", Inception("inception").load)
    assert list(scored(*call, "is")["metrics"]) == ["is"]


def test_statistics_of_few_images_keep_what_lies_beside(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sFID from a file is sFID from the images."""
    monkeypatch.setattr(score_room, "load_extractor", Inception("inception", spatial=True).load)
    file, call = here / "s.safetensors", [here / "fake.npz", "--metrics", "fid,sfid", "--against"]
    assert scored(here / "real.npz", "--save-stats", file)["n"] == 150
    saved, direct = (scored(*call, x)["metrics"] for x in (file, here / "real.npz"))
    for name in ("fid", "sfid"):
        assert saved[name]["mean"] == pytest.approx(direct[name]["mean"], rel=1e-5)
        assert saved[name]["protocol"] == direct[name]["protocol"]


def test_a_protocol_is_the_hash_of_what_has_always_made_it(here: Path) -> None:
    """What is told of some values alone moves no other hash."""
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
        own = name.partition(":")[0]
        keys = shared + (("n_real", "real") if own in ("fd", "kid") else ())
        told = {"value": own, "settings": value["settings"], **{key: found["protocol"][key] for key in keys}}
        text = json.dumps(told, sort_keys=True).encode()
        assert value["protocol"] == hashlib.sha256(text).hexdigest()[:12], name
