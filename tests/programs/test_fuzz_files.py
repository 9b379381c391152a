"""Hundreds of damaged pictures, data and maps: each costs at most a line, and whatever is good comes out as before."""

import io
import json
import shutil

import numpy as np
import pytest
from mutants import mutants
from PIL import Image
from standin import Brightness

import marigold_jax
from marigold_jax import evaluate, predict, prepare
from marigold_jax.data.prepared import PreparedSplit
from marigold_jax.runtime import compilation_cache

SIZE = (24, 36)


def pixels(seed):
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pictures():
    """Contents of good pictures of every kind, by name."""
    rgb, grey = Image.fromarray(pixels(0)), Image.fromarray(pixels(1)[..., 0].astype(np.uint16) * 257)
    return {
        "png8.png": encoded(rgb, "png"),
        "png16.png": encoded(grey, "png"),
        "jpg8.jpg": encoded(rgb, "jpeg"),
        "tif8.tif": encoded(rgb, "tiff", compression="tiff_lzw"),
        "tif16.tif": encoded(grey, "tiff"),
        "bmp8.bmp": encoded(rgb, "bmp"),
        "gif8.gif": encoded(rgb.convert("P"), "gif"),
        "webp8.webp": encoded(rgb, "webp"),
        "ppm8.ppm": encoded(rgb, "ppm"),
        "tga8.tga": encoded(rgb, "tga"),
    }


def array(values):
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def everything(folder):
    return {path.relative_to(folder) for path in folder.rglob("*")}


def one_line_each(text):
    """What a program said, one line for each thing that is wrong, none of it a traceback."""
    assert "Traceback" not in text and 'File "' not in text
    lines = text.splitlines()
    assert all(len(line) < 1000 and line.isprintable() for line in lines), lines
    return lines


def test_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(marigold_jax, "Marigold", Brightness(), raising=False)
    monkeypatch.setattr(compilation_cache, "enable_cache", lambda: None)
    photos = tmp_path / "photos"
    photos.mkdir()
    good = pictures()
    for name, content in good.items():
        (photos / f"good_{name}").write_bytes(content)
    arguments = ["--input", str(photos), "--color_map", "None", "--output_dir"]
    assert predict.main([*arguments, str(tmp_path / "alone")]) == 0
    for name, content in good.items():
        for number, mutant in enumerate(mutants(content, 20, seed=len(name))):
            (photos / f"bad{number}_{name}").write_bytes(mutant)
    before = everything(tmp_path)
    capsys.readouterr()
    assert predict.main([*arguments, str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    records = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert len(records) == len(list(photos.iterdir()))
    failed = [record for record in records if "error" in record]
    assert len(one_line_each(captured.err)) == len(failed) > 50
    assert {path.parts[0] for path in everything(tmp_path) - before} == {"out"}
    for path in everything(tmp_path / "alone"):
        if path.suffix == ".npy":
            assert (tmp_path / "out" / path).read_bytes() == (tmp_path / "alone" / path).read_bytes()
    for record in records:
        for output in record.get("outputs", ()):
            assert (tmp_path / "out" / output).is_file()


def depth_of(seed):
    return np.random.default_rng(seed).integers(500, 9000, SIZE, dtype=np.uint16)


def raw_folder(root, count):
    for folder in ("rgb", "depth"):
        (root / folder).mkdir(parents=True)
    for number in range(count):
        (root / "rgb" / f"good{number}.png").write_bytes(encoded(Image.fromarray(pixels(number)), "png"))
        (root / "depth" / f"good{number}.png").write_bytes(encoded(Image.fromarray(depth_of(number)), "png"))
    return root


def prepared(raw, data_dir, split="test"):
    flags = ["--data_dir", str(data_dir), "--name", "mine", "--split", split, "--unit", "mm", "--workers", "1"]
    return prepare.main(["folder", "--raw_dir", str(raw), *flags])


def test_raw_data(tmp_path, capsys):
    raw = raw_folder(tmp_path / "raw", 3)
    depths = {"png": encoded(Image.fromarray(depth_of(0)), "png"), "npy": array(depth_of(0).astype(np.float32))}
    damaged = 0
    for kind, content in depths.items():
        for number, mutant in enumerate(mutants(content, 15, seed=1)):
            (raw / "rgb" / f"depth{number}{kind}.png").write_bytes(encoded(Image.fromarray(pixels(0)), "png"))
            (raw / "depth" / f"depth{number}{kind}.{kind}").write_bytes(mutant)
            damaged += 1
    for number, mutant in enumerate(mutants(encoded(Image.fromarray(pixels(0)), "jpeg"), 15, seed=2)):
        (raw / "rgb" / f"rgb{number}.jpg").write_bytes(mutant)
        (raw / "depth" / f"rgb{number}.png").write_bytes(depths["png"])
        damaged += 1
    before = everything(tmp_path)
    assert prepared(raw, tmp_path / "data") == 0
    captured = capsys.readouterr()
    one_line_each(captured.out + captured.err)
    assert {path.parts[0] for path in everything(tmp_path) - before} == {"data"}
    split = PreparedSplit(f"{tmp_path}/data/mine/test")
    names = [split.name_of(index) for index in range(len(split))]
    assert {f"rgb/good{number}.png" for number in range(3)} <= set(names)
    report = (tmp_path / "data" / "rgbd" / "mine" / "report-test.jsonl").read_text().splitlines()
    left_out = [json.loads(line) for line in report]
    assert len(names) + sum(remark["left_out"] for remark in left_out) == damaged + 3
    for index, name in enumerate(names):
        if "good" in name:
            number = int(name.removeprefix("rgb/good").removesuffix(".png"))
            np.testing.assert_array_equal(split[index]["rgb"], pixels(number))
            np.testing.assert_array_equal(split[index]["depth"][..., 0], (depth_of(number) / 1000).astype(np.float32))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    assert prepared(raw_folder(folder / "raw", 4), folder / "data") == 0
    return folder / "data"


def scored(data_dir, out, *flags):
    return evaluate.main(["--dataset", "mine", "--data_dir", str(data_dir), "--output_dir", str(out), *map(str, flags)])


def test_prepared_data(data_dir, tmp_path, capsys):
    """Opened by `evaluate`: either it scores, or it says in one line what is broken; no code of the dataset is run."""
    maps = tmp_path / "maps" / "rgb"
    maps.mkdir(parents=True)
    for number in range(4):
        np.save(maps / f"good{number}.npy", depth_of(number).astype(np.float32))
    folder = data_dir / "rgbd" / "mine" / "1.0.0"
    for file in sorted(folder.iterdir()):
        for number, mutant in enumerate(mutants(file.read_bytes(), 9, seed=3)):
            copy = shutil.copytree(data_dir, tmp_path / "copy" / f"{file.name}{number}")
            (copy / "rgbd" / "mine" / "1.0.0" / file.name).write_bytes(mutant)
            status = scored(copy, tmp_path / "out" / f"{file.name}{number}", "--predictions", tmp_path / "maps")
            lines = one_line_each(capsys.readouterr().err)
            assert status == (1 if lines else 0), (file, number, lines)
            assert len(lines) <= 1, lines


def test_saved_maps(data_dir, tmp_path, capsys):
    split = PreparedSplit(f"{data_dir}/mine/test")
    good = array(np.random.default_rng(5).random(SIZE, np.float32))
    for number, mutant in enumerate(mutants(good, 30, seed=4)):
        maps = tmp_path / f"maps{number}" / "rgb"
        maps.mkdir(parents=True)
        for index in range(4):
            (maps / f"good{index}.npy").write_bytes(good)
        (maps / "good2.npy").write_bytes(mutant)
        out = tmp_path / "out" / str(number)
        status = scored(data_dir, out, "--predictions", maps.parent)
        lines = one_line_each(capsys.readouterr().err)
        if status:
            assert status == 1 and len(lines) == 1 and "good2" in lines[0], lines
            assert scored(data_dir, out, "--predictions", maps.parent, "--allow_missing") == 0
            capsys.readouterr()
        names = (out / "mine" / "per_sample.csv").read_text()
        wanted = [split.name_of(index) for index in range(4) if not (status and "good2" in split.name_of(index))]
        assert all(name in names for name in wanted)
        assert (out / "mine" / "metrics.json").is_file()


def test_references(tmp_path, monkeypatch, capsys):
    """`--align_to`: a broken reference costs its picture's line, the other pictures get their metres."""
    monkeypatch.setattr(marigold_jax, "Marigold", Brightness(), raising=False)
    monkeypatch.setattr(compilation_cache, "enable_cache", lambda: None)
    photos, known = tmp_path / "photos", tmp_path / "known"
    photos.mkdir()
    known.mkdir()
    truth = {"npy": array(pixels(0).mean(axis=2).astype(np.float32) / 50 + 1)}
    points = [
        (column, row, pixels(0)[row, column].mean() / 50 + 1) for row in range(0, 24, 4) for column in range(0, 36, 5)
    ]
    truth["csv"] = "".join(f"{column},{row},{metres:.3f}\n" for column, row, metres in points).encode()
    for kind, content in truth.items():
        for number, mutant in enumerate([content, *mutants(content, 18, seed=6)]):
            (photos / f"{kind}{number}.png").write_bytes(encoded(Image.fromarray(pixels(0)), "png"))
            (known / f"{kind}{number}.{kind}").write_bytes(mutant)
    flags = ["--input", str(photos), "--output_dir", str(tmp_path / "out"), "--align_to", str(known)]
    assert predict.main(flags) == 1
    one_line_each(capsys.readouterr().err)
    records = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert len(records) == 2 * 19
    done = {record["input"].rpartition("/")[2] for record in records if "outputs" in record}
    assert {"npy0.png", "csv0.png"} <= done
    for name in done:
        assert np.isfinite(np.load(tmp_path / "out" / "depth_metres_npy" / name.replace(".png", "_depth.npy"))).all()
