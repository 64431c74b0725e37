"""Demonstrations on disk: their layout, the replay of their actions, and interrupted commands."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from harness.data.disk.lerobot import read_episodes
from harness.environments import demonstrations
from harness.environments.base import open_task
from harness.environments.demonstrations import MOST_EPISODES, write_demonstrations
from harness.environments.episode_file import episode_facts
from harness.errors import UserError
from tests.support.commands import flowrace
from tests.support.forked import die, in_child

TASK, COUNT = "open-and-place:open", 5


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demos") / "set"
    write_demonstrations(open_task(TASK), COUNT, out)
    return out


def files_of(out: Path) -> dict[str, bytes]:
    return {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()}


def tables(out: Path) -> list[pa.Table]:
    return [pq.read_table(file) for file in sorted(out.glob("data/chunk-000/*.parquet"))]


def test_columns_have_the_names_types_and_shapes_of_the_info(demos: Path) -> None:
    info = json.loads((demos / "meta" / "info.json").read_text())
    types = {
        "int64": pa.int64(),
        "bool": pa.bool_(),
        "float32": pa.float32(),
        "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
    }
    for table in tables(demos):
        assert set(table.column_names) == set(info["features"])
        for name, about in info["features"].items():
            kind, scalar = table.schema.field(name).type, about["shape"] == [1]
            many = about["dtype"] == "float32" and not scalar
            assert kind == (pa.list_(pa.float32()) if many else types[about["dtype"]]), name
            if many:
                assert {len(row) for row in table[name].to_pylist()} == {about["shape"][0]}
                assert len(about["names"]) == about["shape"][0]


def test_rows_of_all_episodes_are_numbered_without_a_gap(demos: Path) -> None:
    info = json.loads((demos / "meta" / "info.json").read_text())
    table = pa.concat_tables(tables(demos))
    assert table["index"].to_pylist() == list(range(info["total_frames"]))
    assert set(table["episode_index"].to_pylist()) == set(range(COUNT))
    ends = [row for row, done in enumerate(table["next.done"].to_pylist()) if done]
    lines = (demos / "meta" / "episodes.jsonl").read_text().splitlines()
    lengths = [json.loads(line)["length"] for line in lines]
    assert np.cumsum(lengths).tolist() == [row + 1 for row in ends]
    assert table["next.success"].to_pylist() == table["next.done"].to_pylist()
    assert (info["task"], info["stages"], info["successes"]) == (TASK, ["opened"], COUNT)


def test_replayed_actions_reproduce_states_and_frames_bit_for_bit(demos: Path) -> None:
    environments = open_task(TASK)
    for index, table in enumerate(tables(demos)):
        environments.reset([index])
        for row in table.to_pylist():
            seen = environments.observe()
            for name in ("state", "environment_state"):
                stored = np.array(row[f"observation.{name}"], dtype=np.float32)
                assert stored.tobytes() == seen[name][0].tobytes()
            frame = np.array(Image.open(io.BytesIO(row["observation.image"]["bytes"])))
            np.testing.assert_array_equal(frame, seen["image"][0])
            environments.step(np.array([row["action"]], dtype=np.float32), np.array([True]))
            assert environments.stages().all() == row["next.success"]


def test_statistics_of_an_episode_are_those_of_its_rows(demos: Path) -> None:
    line = json.loads((demos / "meta" / "episodes_stats.jsonl").read_text().splitlines()[2])
    table = tables(demos)[2]
    for name in ("action", "observation.state"):
        values = np.array(table[name].to_pylist())
        stats = line["stats"][name]
        np.testing.assert_allclose(stats["mean"], values.mean(0), rtol=1e-5)
        np.testing.assert_allclose(stats["max"], values.max(0), rtol=1e-6)
        assert stats["count"] == [len(values)]
    images = line["stats"]["observation.image"]
    assert np.shape(images["mean"]) == (3, 1, 1) and 0 <= np.min(images["min"]) < np.max(images["max"]) <= 1


@pytest.mark.parametrize("call", [0, 1, 3, COUNT + 3])
def test_killed_command_is_repeated_to_the_same_files(
    demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """It is killed before the recipe, an episode, and the last file is renamed."""
    calls, write = [0], demonstrations.write_atomic

    def killed(path: Path, content: bytes) -> None:
        if calls[0] == call:
            path.with_name(f".{path.name}.tmp").write_bytes(content[:9])
            die()
        calls[0] += 1
        write(path, content)

    monkeypatch.setattr(demonstrations, "write_atomic", killed)
    assert in_child(lambda: write_demonstrations(open_task(TASK), COUNT, tmp_path)) == -9
    monkeypatch.undo()
    write_demonstrations(open_task(TASK), COUNT, tmp_path)
    assert files_of(tmp_path) == files_of(demos)


def test_recording_that_is_continued_is_not_read_until_it_is_complete(
    demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "set"
    shutil.copytree(demos, out)
    assert len(read_episodes(out).episodes) == COUNT
    monkeypatch.setattr(demonstrations, "write_atomic", lambda path, content: die())
    assert in_child(lambda: write_demonstrations(open_task(TASK), COUNT + 1, out)) == -9
    with pytest.raises(UserError, match=r"is an unfinished recording, without meta/info\.json; rerun"):
        read_episodes(out)


def test_set_with_another_number_of_episodes_than_it_states_is_refused(demos: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    shutil.copytree(demos, out)
    demonstrations.episode_file(out, COUNT - 1).unlink()
    with pytest.raises(UserError, match=r"has 4 episodes, but .*info\.json states total_episodes = 5"):
        read_episodes(out)


def test_set_that_is_continued_equals_one_that_was_made_at_once(demos: Path, tmp_path: Path) -> None:
    for count in (2, COUNT):
        found = flowrace("data", "demos", TASK, "-n", count, "--out", tmp_path, "--json")
        assert found.exit_code == 0 and json.loads(found.output)["episodes"] == count
    assert files_of(tmp_path) == files_of(demos)


def test_last_line_of_the_command_is_the_folder(demos: Path) -> None:
    found = flowrace("data", "demos", TASK, "-n", COUNT, "--out", demos)
    *_, summary, last = found.output.splitlines()
    assert last == str(demos) and summary.startswith("5 episodes, ") and summary.endswith(", 5 succeed")


def test_folder_of_other_demonstrations_is_not_written(demos: Path, tmp_path: Path) -> None:
    before = files_of(demos)
    for task, count, match in (
        (TASK, 3, "holds more than 3 episodes; give a larger -n"),
        ("open-and-place", COUNT, "demonstrations of another task or version"),
    ):
        with pytest.raises(UserError, match=match):
            write_demonstrations(open_task(task), count, demos)
    assert files_of(demos) == before
    (tmp_path / "data" / "mine").mkdir(parents=True)
    with pytest.raises(UserError, match="holds other demonstrations; give another folder"):
        write_demonstrations(open_task(TASK), COUNT, tmp_path)


def test_damaged_episode_is_named(demos: Path, tmp_path: Path) -> None:
    for content in (b"PAR1", next(demos.glob("data/*/*0001.parquet")).read_bytes()[:-20]):
        (file := tmp_path / "episode.parquet").write_bytes(content)
        with pytest.raises(UserError, match=r"episode.parquet is no complete demonstration; delete it"):
            episode_facts(file)


def test_option_and_rollouts_agree_on_the_largest_number_of_episodes() -> None:
    found = flowrace("data", "demos", TASK, "-n", MOST_EPISODES + 1, "--out", "nowhere")
    assert found.exit_code == 2 and "100000" in found.output
