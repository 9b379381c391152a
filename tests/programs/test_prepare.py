"""The program around the readers: parallel, resumable, nothing half-written, and readable by TFDS as it stands."""

import os
import pickle
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

import marigold_jax.data
from marigold_jax import prepare
from marigold_jax.data import folder, prepare_split, split_writer
from marigold_jax.data.depth_format import DepthFormat
from marigold_jax.data.prepared import PreparedSplit
from marigold_jax.data.raw_frame import BadFrame
from marigold_jax.data.rgbd.rgbd_dataset_builder import RgbdConfig, shards_of
from marigold_jax.data.split_writer import open_builder

COUNT = 40


@pytest.fixture
def raw(tmp_path):
    """Enough frames for three shards; two of them cannot be used."""
    root = tmp_path / "mine"
    random = np.random.default_rng(0)
    for name in ("rgb", "depth"):
        (root / name).mkdir(parents=True)
    for index in range(COUNT):
        Image.fromarray(random.integers(0, 256, (8, 9, 3), dtype=np.uint8)).save(root / "rgb" / f"{index:02d}.png")
        Image.fromarray(random.integers(1, 9000, (8, 9), dtype=np.uint16)).save(root / "depth" / f"{index:02d}.png")
    (root / "depth" / "03.png").unlink()
    (root / "rgb" / "20.png").write_bytes(b"")
    return root


def run(raw, data_dir, *flags, workers=1):
    flags = ["--raw_dir", str(raw), "--data_dir", str(data_dir), "--unit", "mm", "--workers", str(workers), *flags]
    return prepare.main(["folder", *flags])


def contents(data_dir):
    return {str(path.relative_to(data_dir)): path.read_bytes() for path in data_dir.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_worker_processes_change_nothing(raw, tmp_path):
    assert run(raw, tmp_path / "one") == run(raw, tmp_path / "two", workers=2) == 0
    one = contents(tmp_path / "one")
    assert one == contents(tmp_path / "two")
    assert sorted(one) == [
        "rgbd/mine/1.0.0/dataset_info.json",
        "rgbd/mine/1.0.0/features.json",
        "rgbd/mine/1.0.0/metadata.json",
        *(f"rgbd/mine/1.0.0/rgbd-train.array_record-{number:05d}-of-00003" for number in range(3)),
        "rgbd/mine/contact-train.png",
        "rgbd/mine/report-train.jsonl",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [5, 20, 39])
def test_a_killed_run_goes_on_and_ends_the_same(raw, tmp_path, capsys, monkeypatch, stop_at):
    assert run(raw, tmp_path / "straight") == 0
    reads = []
    read = folder.read_frame

    def read_or_die(frame, **options):
        reads.append(frame.name)
        if len(reads) == stop_at:
            raise KeyboardInterrupt
        return read(frame, **options)

    monkeypatch.setattr(folder, "read_frame", read_or_die)
    assert run(raw, tmp_path / "killed") == 130
    assert "run the same command again to continue" in capsys.readouterr().err
    assert not (tmp_path / "killed" / "rgbd" / "mine" / "1.0.0").exists()
    before = len(reads)
    assert run(raw, tmp_path / "killed") == 0
    finished = (before - 1) // 16 * 16
    assert len(reads) - before == COUNT - finished
    assert contents(tmp_path / "killed") == contents(tmp_path / "straight")


def test_a_run_killed_while_publishing_goes_on(raw, tmp_path, monkeypatch):
    for data_dir in ("straight", "killed"):
        assert run(raw, tmp_path / data_dir, "--split", "val", "--limit", "17") == 0
    assert run(raw, tmp_path / "straight") == 0
    replace, moves = split_writer.os.replace, []

    def replace_or_die(source, target):
        if "array_record-" in str(target) and "incomplete" not in str(target):
            moves.append(target)
            if len(moves) == 2:
                raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(split_writer.os, "replace", replace_or_die)
    assert run(raw, tmp_path / "killed") == 130
    assert len(PreparedSplit(f"{tmp_path}/killed/mine/val")) == 16
    with pytest.raises(ValueError, match="has the splits val; not 'train'"):
        PreparedSplit(f"{tmp_path}/killed/mine/train")
    monkeypatch.undo()
    assert run(raw, tmp_path / "killed") == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "straight")


def test_an_interrupted_run_with_other_frames_starts_again(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_split, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run(raw, tmp_path) == 130
    monkeypatch.setattr(prepare_split, "publish", split_writer.publish)
    assert run(raw, tmp_path, "--limit", "3") == 0
    assert len(PreparedSplit(f"{tmp_path}/mine/train")) == 3


def test_splits_join_one_dataset(raw, tmp_path, capsys):
    assert run(raw, tmp_path) == 0
    before = contents(tmp_path / "rgbd")
    assert run(raw, tmp_path, "--split", "val", "--limit", "2") == 0
    after = contents(tmp_path / "rgbd")
    assert all(after[name] == content for name, content in before.items() if "train" in name)
    assert len(PreparedSplit(f"{tmp_path}/mine/train")) == 38 and len(PreparedSplit(f"{tmp_path}/mine/val")) == 2
    capsys.readouterr()
    assert run(raw, tmp_path) == 0
    assert "is prepared already: 38 frames" in capsys.readouterr().out
    assert run(raw, tmp_path, "--split", "test", "--max_depth", "3") == 2
    assert "choose another --name" in capsys.readouterr().err


def test_raw_and_data_folders_have_short_flags(raw, tmp_path):
    short = ["folder", "-i", str(raw), "-o", str(tmp_path), "--unit", "mm", "--workers", "1", "--limit", "2"]
    assert prepare.main(short) == 0
    assert len(PreparedSplit(f"{tmp_path}/mine/train")) == 2


def test_a_shard_without_usable_frames_disappears(raw, tmp_path):
    for index in range(16):
        (raw / "rgb" / f"{index:02d}.png").write_bytes(b"")
    assert run(raw, tmp_path) == 0
    split = PreparedSplit(f"{tmp_path}/mine/train")
    assert len(split) == 23 and split.name_of(0) == "rgb/16.png" and split.name_of(22) == "rgb/39.png"
    assert sorted(path.name for path in (tmp_path / "rgbd" / "mine" / "1.0.0").glob("rgbd-*")) == [
        "rgbd-train.array_record-00000-of-00002",
        "rgbd-train.array_record-00001-of-00002",
    ]


def test_the_end_of_a_run_tells_what_was_made(raw, tmp_path, capsys):
    assert run(raw, tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    report = tmp_path / "rgbd" / "mine" / "report-train.jsonl"
    assert lines[0] == f"left out 2 of 40 frames (1 missing file, 1 truncated file): see {report}"
    assert lines[1].startswith(f"{tmp_path}/mine/train: 38 frames; a typical one has depth from ")
    near, far = float(lines[1].split()[-4]), float(lines[1].split()[-2])
    assert 0 < near < 1 < 8 < far < 9


def test_tfds_reads_the_dataset_without_tensorflow(raw, tmp_path):
    assert run(raw, tmp_path) == 0
    builder = tfds.builder_from_directory(tmp_path / "rgbd" / "mine" / "1.0.0")
    assert builder.info.splits["train"].num_examples == 38 and builder.info.splits["train"].num_bytes > 0
    records = builder.as_data_source("train", decoders={"depth": tfds.decode.SkipDecoding()})
    assert records[0]["name"] == b"rgb/00.png"
    np.testing.assert_array_equal(records[0]["rgb"], np.asarray(Image.open(raw / "rgb" / "00.png")))
    assert records[0]["depth"] == (raw / "depth" / "00.png").read_bytes()
    assert "tensorflow" not in sys.modules


def test_the_builder_is_a_tfds_builder(raw, tmp_path):
    """`download_and_prepare`, TFDS's own way, gives the same dataset."""
    assert run(raw, tmp_path / "ours") == 0
    depth_format = DepthFormat(1000.0, 1e-5, float("inf"))
    config = RgbdConfig(
        name="mine",
        depth_format=depth_format,
        frames={"train": folder.list_frames(str(raw), None)},
        read=lambda frame: folder.read_frame(frame, depth_format, "png16"),
    )
    builder = open_builder(tmp_path / "theirs", config)
    builder.download_and_prepare(file_format="array_record")
    ours, theirs = (PreparedSplit(f"{tmp_path}/{whose}/mine/train") for whose in ("ours", "theirs"))
    assert len(ours) == len(theirs) == 38
    for index in range(38):
        assert ours.name_of(index) == theirs.name_of(index)
        for key, value in ours[index].items():
            np.testing.assert_array_equal(theirs[index][key], value)


@pytest.mark.parametrize(
    "count, shards, largest", [(1, 1, 1), (16, 1, 16), (17, 2, 16), (2048, 128, 16), (53885, 128, 421)]
)
def test_splits_have_at_most_128_shards(count, shards, largest):
    parts = shards_of(range(count))
    assert len(parts) == shards and max(map(len, parts)) == largest
    assert [frame for part in parts for frame in part] == list(range(count))


def test_a_dead_worker_process_is_explained(raw, tmp_path, capsys, monkeypatch):
    class Pool(prepare_split.ProcessPoolExecutor):
        def submit(self, function, *args, **options):
            return super().submit(os._exit, 1)

    monkeypatch.setattr(prepare_split, "ProcessPoolExecutor", Pool)
    assert run(raw, tmp_path, workers=2) == 2
    assert "a worker process died" in capsys.readouterr().err


def test_missing_optional_packages_are_named(raw, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    for module in ("hypersim", "hdf5"):
        monkeypatch.delitem(sys.modules, f"marigold_jax.data.{module}", raising=False)
        monkeypatch.delattr(marigold_jax.data, module, raising=False)
    assert prepare.main(["hypersim", "--raw_dir", str(raw), "--data_dir", str(tmp_path)]) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("prepare: needs what pip install 'marigold_jax[prepare]' brings (") and "h5py" in error


def test_an_odd_file_does_not_end_the_work(raw, tmp_path, capsys, monkeypatch):
    read = folder.read_frame

    def read_or_fail(frame, **options):
        return {}["surprise"] if "11" in frame.name else read(frame, **options)

    monkeypatch.setattr(folder, "read_frame", read_or_fail)
    assert run(raw, tmp_path) == 0
    assert (
        "left out 3 of 40 frames (1 missing file, 1 unexpected KeyError, 1 truncated file)" in capsys.readouterr().out
    )


def test_repaired_files_are_read_again_after_a_run_that_made_nothing(raw, tmp_path):
    hidden = (raw / "depth").rename(raw / "elsewhere")
    (raw / "depth").mkdir()
    assert run(raw, tmp_path) == 1
    (raw / "depth").rmdir()
    hidden.rename(raw / "depth")
    assert run(raw, tmp_path) == 0


def test_bad_frames_travel_between_processes():
    error = pickle.loads(pickle.dumps(BadFrame("size mismatch", "rgb 1 x 2, depth 3 x 4")))
    assert (error.kind, error.detail) == ("size mismatch", "rgb 1 x 2, depth 3 x 4")


@pytest.mark.parametrize("kind", prepare.KINDS)
def test_help_explains_the_layout(capsys, kind):
    with pytest.raises(SystemExit) as caught:
        prepare.main([kind, "--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0 and "--limit" in text
    assert ("RAW_DIR" in text and "--filename_list" in text) or kind == "rooms"
