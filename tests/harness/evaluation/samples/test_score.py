"""`flowrace eval SAMPLES`: values by hand for every container, references, cache and errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from scipy import linalg

from harness.errors import UserError
from harness.evaluation.samples import cached_features
from harness.evaluation.samples import score as score_module
from metrics import frechet_distance, kernel_distance, load_extractor, precision_recall
from metrics.extractors.base import Extractor
from sweeps.cli.evaluate import evaluate as command
from tests.harness.evaluation.samples.networks import by_hand, bytes_of, save_means, save_plain

FAKE, REAL = bytes_of(1, 120, 8, 8, 3, top=230), bytes_of(2, 150, 8, 8, 3)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    save_means(folder)
    np.savez(folder / "fake.npz", arr_0=FAKE, arr_1=np.arange(120) % 4)
    np.savez(folder / "real.npz", arr_0=REAL)
    return folder


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLOWRACE_CACHE", str(tmp_path / "cache"))


def run(here: Path, samples: Any, against: Any = "real.npz", *words: str) -> dict[str, Any]:
    call = [str(here / samples), "--extractor", f"torchscript:{here / 'means.ts'}", "--json", *words]
    if against:
        call += ["--against", str(here / against)]
    result = CliRunner().invoke(command, call, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def assert_rejected(here: Path, match: str, samples: Any, against: Any = "real.npz", *words: str) -> None:
    with pytest.raises(UserError, match=match):
        run(here, samples, against, *words)


def textbook(real: np.ndarray, fake: np.ndarray) -> float:
    a, b = by_hand(real), by_hand(fake)
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(first @ second).real
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root)


def test_metrics_and_protocol_equal_those_by_hand(here: Path) -> None:
    found = run(here, "fake.npz", "real.npz", "--metrics", "fd,kid,accuracy")
    metrics, protocol = found["metrics"], found["protocol"]
    assert list(metrics) == ["fd:torchscript:means", "kid:torchscript:means", "accuracy:torchscript:means"]
    fd, kid, accuracy = metrics.values()
    assert fd["mean"] == pytest.approx(textbook(REAL, FAKE), rel=1e-4)
    assert kid["mean"] == pytest.approx(kernel_distance(by_hand(REAL), by_hand(FAKE)).mean, rel=1e-4)
    assert kid["low"] < kid["mean"] < kid["high"] and fd["low"] is None
    right = (by_hand(FAKE)[:, :4].argmax(1) == np.arange(120) % 4).mean()
    assert accuracy["mean"] == pytest.approx(right) and fd["n"] == 120
    inside = cached_features.subset_mask(150, 75)
    assert fd["floor"]["mean"] == pytest.approx(textbook(REAL[~inside], REAL[inside]), rel=1e-3)
    assert (fd["floor"]["n"], fd["floor"]["n_real"]) == (75, 75)
    assert (protocol["n_real"], protocol["n_fake"], protocol["fake_shape"]) == (150, 120, [3, 8, 8])
    assert (
        len(protocol["weights_sha256"]) == 64 and "120 samples are compared with 150" in found["warnings"][0]
    )


def test_precision_and_recall_equal_those_of_torch_fidelity(here: Path) -> None:
    fidelity = pytest.importorskip("torch_fidelity.metric_prc")
    found = run(here, "fake.npz", "real.npz", "--metrics", "pr_torch_fidelity")["metrics"]
    extract = load_extractor(f"torchscript:{here / 'means.ts'}")
    given = (extract(torch.from_numpy(x).permute(0, 3, 1, 2)) for x in (FAKE, REAL))
    metric = fidelity.prc_features_to_metric(
        *given, prc_neighborhood=3, prc_batch_size=10_000, save_cpu_ram=True, verbose=False
    )
    assert found["precision_torch_fidelity:torchscript:means"]["mean"] == pytest.approx(metric["precision"])
    assert found["recall_torch_fidelity:torchscript:means"]["mean"] == pytest.approx(metric["recall"])


@pytest.mark.parametrize("container", ["folder", "npy", "parquet", "shuffled"])
def test_value_does_not_depend_on_container_or_order(here: Path, tmp_path: Path, container: str) -> None:
    expected = run(here, "fake.npz")["metrics"]["fd:torchscript:means"]["mean"]
    path = tmp_path / container
    if container == "folder":
        path.mkdir()
        for i, pixels in enumerate(FAKE):
            Image.fromarray(pixels).save(path / f"{i:04d}.png")
    elif container == "npy":
        path = path.with_suffix(".npy")
        np.save(path, FAKE)
    elif container == "shuffled":
        path = path.with_suffix(".npz")
        np.savez_compressed(path, arr_0=FAKE[np.random.default_rng(5).permutation(len(FAKE))])
    else:
        path = path.with_suffix(".parquet")
        pq.write_table(pa.table({"image": [{"bytes": png(x), "path": ""} for x in FAKE]}), path)
    found = run(here, path, "real.npz", "--batch-size", "7")
    assert found["metrics"]["fd:torchscript:means"]["mean"] == pytest.approx(expected, rel=1e-5)


def png(pixels: np.ndarray) -> bytes:
    import io

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def test_streamed_moments_equal_those_of_stored_features(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = run(here, "fake.npz")["metrics"]["fd:torchscript:means"]
    monkeypatch.setattr(cached_features, "SMALL", 0)
    streamed = run(here, "fake.npz")["metrics"]["fd:torchscript:means"]
    assert streamed["mean"] == pytest.approx(stored["mean"], rel=1e-6)
    assert streamed["floor"]["mean"] == pytest.approx(stored["floor"]["mean"], rel=1e-5)
    assert streamed["protocol"] == stored["protocol"]


def test_saved_statistics_serve_as_reference(here: Path, tmp_path: Path) -> None:
    file = tmp_path / "real.safetensors"
    assert run(here, "real.npz", None, "--save-stats", str(file)) == {"statistics": str(file), "n": 150}
    direct, saved = (run(here, "fake.npz", x)["metrics"]["fd:torchscript:means"] for x in ("real.npz", file))
    assert saved["mean"] == pytest.approx(direct["mean"], rel=1e-6)
    assert saved["protocol"] == direct["protocol"] and saved["floor"] is None
    assert_rejected(
        here, "has statistics but no raw samples, which kid needs", "fake.npz", file, "--metrics", "kid"
    )
    assert_rejected(here, "already exists", "real.npz", None, "--save-stats", str(file))
    with pytest.raises(UserError, match="holds statistics of another network: extractor is"):
        other = ["--extractor", f"torchscript:{here / 'means.ts'}?size=4"]
        run(here, "fake.npz", file, *other)
    file.write_bytes(file.read_bytes()[:-9])
    assert_rejected(here, r"real\.safetensors is missing, truncated or altered", "fake.npz", file)


def test_cache_depends_on_content_and_replaces_damaged_files(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[str] = []
    extract = cached_features._extract

    def counted(source: Any, *rest: Any) -> Any:
        passes.append(Path(source.where).name)
        return extract(source, *rest)

    monkeypatch.setattr(cached_features, "_extract", counted)
    first = run(here, "fake.npz")
    np.savez(tmp_path / "copy.npz", arr_0=FAKE, arr_1=np.arange(120) % 4)
    assert run(here, tmp_path / "copy.npz")["metrics"] == first["metrics"]
    assert passes == ["fake.npz", "real.npz"]
    changed = FAKE.copy()
    changed[7, 0, 0, 0] ^= 1
    np.savez(tmp_path / "copy.npz", arr_0=changed)
    run(here, tmp_path / "copy.npz")
    assert passes.pop() == "copy.npz"
    for entry in (tmp_path / "cache" / "features").glob("*.safetensors"):
        entry.write_bytes(entry.read_bytes()[:-5])
    assert run(here, "fake.npz")["metrics"] == first["metrics"]
    assert passes == ["fake.npz", "real.npz"] * 2


def test_adm_batch_is_compared_by_its_images_with_another_network(here: Path, tmp_path: Path) -> None:
    file = tmp_path / "adm.npz"
    np.savez(file, arr_0=REAL, mu=np.zeros(2048), sigma=np.eye(2048))
    found = run(here, "fake.npz", file)
    assert found["metrics"]["fd:torchscript:means"]["mean"] == pytest.approx(textbook(REAL, FAKE), rel=1e-4)
    assert any("mu and sigma of the reference are Inception's" in text for text in found["warnings"])
    np.savez(file, mu=np.zeros(2048), sigma=np.eye(2048))
    assert_rejected(here, "statistics of the original Inception only", "fake.npz", file)


def test_grey_images_are_repeated_and_another_size_gives_a_warning(here: Path, tmp_path: Path) -> None:
    grey = bytes_of(3, 40, 6, 6, 1)
    np.savez(tmp_path / "grey.npz", arr_0=grey)
    found = run(here, tmp_path / "grey.npz")
    expected = textbook(REAL, np.repeat(grey, 3, axis=3))
    assert found["metrics"]["fd:torchscript:means"]["mean"] == pytest.approx(expected, rel=1e-3)
    assert any("samples are 6x6 pixels, the reference 8x8" in text for text in found["warnings"])


def test_transparent_images_are_composited_on_white(here: Path, tmp_path: Path) -> None:
    for i, pixels in enumerate(FAKE[:20]):
        image = Image.fromarray(pixels).convert("RGBA")
        image.putalpha(0)
        image.save(tmp_path / f"{i}.png")
    found = run(here, tmp_path)["metrics"]["fd:torchscript:means"]["mean"]
    assert found == pytest.approx(textbook(REAL, np.full((20, 8, 8, 3), 255, np.uint8)), rel=1e-3)


def test_fewer_samples_than_features_give_a_warning(here: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "few.npz", arr_0=FAKE[:5])
    assert any("5 samples do not span 6 features" in w for w in run(here, tmp_path / "few.npz")["warnings"])


def arrays(tmp_path: Path, **given: np.ndarray) -> Path:
    np.savez(tmp_path / "bad.npz", **given)
    return tmp_path / "bad.npz"


def test_invalid_arrays_are_rejected_by_name(here: Path, tmp_path: Path) -> None:
    assert_rejected(here, "bad.npz has no array 'arr_0' .it has: x, y", arrays(tmp_path, x=FAKE, y=FAKE))
    assert_rejected(here, "'arr_0' holds float32, not uint8", arrays(tmp_path, arr_0=FAKE.astype(np.float32)))
    assert_rejected(
        here, "composite transparent images on a background", arrays(tmp_path, arr_0=FAKE[..., [0, 1, 2, 0]])
    )
    assert_rejected(here, "has too few samples: 1; at least 2 are needed", arrays(tmp_path, arr_0=FAKE[:1]))
    assert_rejected(here, "labels have shape", arrays(tmp_path, arr_0=FAKE, arr_1=np.arange(3)))
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object))
    assert_rejected(here, "holds pickled objects, which are not loaded", tmp_path / "pickled.npy")
    np.save(tmp_path / "short.npy", FAKE)
    (tmp_path / "short.npy").write_bytes((tmp_path / "short.npy").read_bytes()[:-3])
    assert_rejected(here, "short.npy is cut short: 3 bytes", tmp_path / "short.npy")
    (tmp_path / "none.npz").write_bytes(b"no zip")
    assert_rejected(here, "none.npz is not a readable npz", tmp_path / "none.npz")
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_invalid_folders_are_rejected_by_file(here: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    assert_rejected(here, "is an empty folder", folder)
    for i, pixels in enumerate(FAKE[:4]):
        Image.fromarray(pixels).save(folder / f"{i}.png")
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:60])
    assert_rejected(here, r"2\.png is a broken image", folder)
    Image.fromarray(FAKE[2, :6]).save(folder / "2.png")
    assert_rejected(here, r"2\.png is 8x6 pixels, but .*0\.png is 8x8", folder)
    assert run(here, folder, "real.npz", "--set", "data.resolution=4")["protocol"]["fake_shape"] == [3, 4, 4]


def test_invalid_options_are_rejected(here: Path, tmp_path: Path) -> None:
    network = f"torchscript:{save_plain(tmp_path)}"
    assert_rejected(here, "Did you mean 'prdc'", "fake.npz", "real.npz", "--metrics", "prcd")
    assert_rejected(
        here,
        "the name 'fid' is reserved for the original weights",
        "fake.npz",
        "real.npz",
        "--metrics",
        "fid",
    )
    assert_rejected(here, "needs a reference; name one with --against", "fake.npz", None)
    assert_rejected(here, "no such file or folder", "absent.npz")
    assert_rejected(
        here, "has no logits, which is needs", "fake.npz", None, "--metrics", "is", "--extractor", network
    )
    assert_rejected(here, "accuracy needs samples with labels", "real.npz", None, "--metrics", "accuracy")
    assert_rejected(
        here, "is not a run; for samples only data.resolution", "fake.npz", "real.npz", "--set", "seed=1"
    )
    wrong = ["--extractor", f"torchscript:{here / 'means.ts'}?sha256=00ff00"]
    assert_rejected(here, "is not the expected file: its sha256", "fake.npz", "real.npz", *wrong)
    assert_rejected(here, "takes recordings", "fake.npz", "real.npz", "--extractor", "yamnet")


def test_missing_inception_error_names_file_and_download(here: Path, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    call = [str(here / "fake.npz"), "--against", str(here / "real.npz"), "--metrics", "fid"]
    with pytest.raises(UserError, match=r"weights-inception-2015-12-05-6726825d\.pth.*download https"):
        CliRunner().invoke(command, call, catch_exceptions=False)


@pytest.mark.slow
def test_digits_against_themselves_reach_the_ideal_values(
    monkeypatch: pytest.MonkeyPatch, session_cache: Path
) -> None:
    monkeypatch.setenv("FLOWRACE_CACHE", str(session_cache))
    call = ["digits", "--against", "digits", "--extractor", "local", "--metrics", "fd,accuracy,memorisation"]
    found = json.loads(CliRunner().invoke(command, [*call, "--json"], catch_exceptions=False).output)
    values = found["metrics"]
    assert values["fd:local"]["mean"] < 1e-6 < values["fd:local"]["floor"]["mean"]
    assert values["accuracy:local"]["mean"] > 0.9 and values["memorisation:local"]["mean"] == 1
    assert found["warnings"] == []


def test_text_output_has_value_interval_number_and_protocol(here: Path) -> None:
    call = [str(here / "fake.npz"), "--against", str(here / "real.npz"), "--metrics", "fd,recall"]
    result = CliRunner().invoke(command, [*call, "--extractor", f"torchscript:{here / 'means.ts'}"])
    fd, recall = result.stdout.splitlines()[:2]
    assert "n = 120" in fd and "real against real" in fd and "protocol" in fd and "[" in recall
    assert "weights_sha256: " in result.stdout and "warning: 120 samples are compared" in result.stderr


@pytest.mark.slow
def test_mobilenet_distance_increases_with_noise(
    shared_weights: Path, shared_data: Path, tmp_path: Path
) -> None:
    """The distance of real images to others is far below that of noisy ones."""
    rows = pq.ParquetFile(shared_data / "cifar10" / "test.parquet").read_row_group(0).slice(0, 80)
    from harness.data.disk.pixels import decode

    pixels = np.stack([np.asarray(decode(x["bytes"], "")) for x in rows["image"].to_pylist()])
    noisy = np.clip(pixels + np.random.default_rng(0).normal(0, 90, pixels.shape), 0, 255).astype(np.uint8)
    for name, content in (("real", pixels[:40]), ("clean", pixels[40:]), ("noisy", noisy[40:])):
        np.savez(tmp_path / f"{name}.npz", arr_0=content)
    network = f"torchscript:{shared_weights / 'mobilenetv2_imagenet.ts'}?size=96&dim=1280"
    values = [
        run(tmp_path, f"{name}.npz", "real.npz", "--extractor", network)["metrics"]
        for name in ("clean", "noisy")
    ]
    clean, noise = (value["fd:torchscript:mobilenetv2_imagenet@96"]["mean"] for value in values)
    assert noise > 1.5 * clean


class OriginalInception:
    """A replacement for Inception with its original weights: a tiny network with all three outputs."""

    @staticmethod
    def load(*_: Any, **__: Any) -> Extractor:
        def network(images: torch.Tensor) -> dict[str, torch.Tensor]:
            x = images.float() / 127.5 - 1
            features = torch.cat([x.mean((2, 3)), (x * x).mean((2, 3))], 1)
            return {"features": features, "spatial": 2 * features[:, :3], "logits": features}

        beside, device = {"spatial": 3, "logits": 6}, torch.device("cpu")
        return Extractor("inception", 6, "0" * 64, "none", 3, device, network, beside=beside)


def test_adm_batch_with_inception_uses_each_of_its_parts(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FID comes from mu and sigma, sFID from mu_s and sigma_s, precision from the fewer images of arr_0."""
    monkeypatch.setattr(score_module, "load_extractor", OriginalInception.load)
    features = by_hand(REAL)
    mu, sigma = features.mean(0), np.cov(features, rowvar=False)
    few = {"arr_0": REAL[:60], "mu": mu, "sigma": sigma}
    np.savez(tmp_path / "adm.npz", **few, mu_s=2 * mu[:3], sigma_s=4 * sigma[:3, :3])
    call = [str(here / "fake.npz"), "--against", str(tmp_path / "adm.npz"), "--json", "--metrics"]
    result = CliRunner().invoke(command, [*call, "fid,sfid,pr,is,kid"], catch_exceptions=False)
    found = json.loads(result.output)["metrics"]
    assert list(found) == ["fid", "sfid", "precision", "recall", "is", "kid"]
    assert found["fid"]["mean"] == pytest.approx(textbook(REAL, FAKE), rel=1e-4)
    fake = by_hand(FAKE)
    spatial = frechet_distance(2 * features[:, :3], 2 * fake[:, :3]).mean
    assert found["sfid"]["mean"] == pytest.approx(spatial, rel=1e-4)
    precision = precision_recall(features[:60].astype(np.float32), fake.astype(np.float32)).precision
    assert found["precision"]["mean"] == pytest.approx(precision.mean, abs=0.01)
    assert found["fid"]["floor"] is None
    np.savez(tmp_path / "adm.npz", **few)
    with pytest.raises(UserError, match=r"adm\.npz has no mu_s and sigma_s, which sfid needs"):
        CliRunner().invoke(command, [*call, "sfid"], catch_exceptions=False)
