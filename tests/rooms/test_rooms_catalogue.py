"""A small library in the layout of the real ones is fetched, checked, unpacked, listed, loaded; built-in ones too."""

import dataclasses
import hashlib
import io
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from marigold_jax.rooms import assets, builtin, catalogue, meshes
from marigold_jax.rooms.assets import fetch, open_folder, read_properties
from marigold_jax.rooms.catalogue import KINDS, SPLITS, kind_of, open_catalogue

# A box of 2 x 1 x 4 units somewhere, its front (+z) in the texture's red, the rest green.
OBJ = """mtllib box.mtl
v 1 1 1
v 3 1 1
v 3 2 1
v 1 2 1
v 1 1 5
v 3 1 5
v 3 2 5
v 1 2 5
vt 0 0
vt 1 0
vt 1 1
vt 0 1
usemtl front
f 5/1 6/2 7/3 8/4
usemtl rest
f 2/1 1/2 4/3 3/4
f 1/1 5/2 8/3 4/4
f 6/1 2/2 3/3 7/4
f 8/1 7/2 3/3 4/4
f 1/1 2/2 6/3 5/4
usemtl pane
f 5/1 6/2 7/3 8/4
"""
MTL = """newmtl front
Kd 0.0 0.0 0.0
map_Kd red.png
newmtl rest
Kd 0.0 0.5 0.0
Ks 1 1 1
Ns 250
newmtl pane
Kd 1 1 1
d 0.2
"""
ENTRIES = (
    ("Living room", "Table", "160 80 75", {}),
    ("Living room", "Caf\\u00e9 table", "70 70 45", {"modelRotation": "0 0 1 0 1 0 -1 0 0"}),
    ("Bedroom", "Double bed", "150 200 90", {"dropOnTopElevation": "50", "creator": "A. Maker"}),
    ("Doors and windows", "Window", "100 20 120", {"elevation": "90"}),
    ("Lights", "Hanging lamp", "40 40 60", {"elevation": "180"}),
    ("Lights", "Lamp", "30 30 50", {}),
    ("Kitchen", "Cup", "10 10 10", {}),
    ("Miscellaneous", "Wall switch", "8 1 8", {"elevation": "115"}),
)


def library():
    lines = ["# a comment", "id=Test", "license=CC-BY 4.0", "provider=www.example.com"]
    for number, (category, name, size, more) in enumerate(ENTRIES, 1):
        width, depth, height = size.split()
        values = {"id": f"Test#{number}", "name": name, "category": category, "model": "/test/box/box.obj"}
        values |= {"width": width, "depth": depth, "height": height, **more}
        lines += [f"{key}#{number}={value}" for key, value in values.items()]
    picture = io.BytesIO()
    Image.new("RGB", (512, 300), (255, 0, 0)).save(picture, "PNG")
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(assets.TABLE, "\n".join(lines))
        archive.writestr("test/box/box.obj", OBJ)
        archive.writestr("test/box/box.mtl", MTL)
        archive.writestr("test/box/red.png", picture.getvalue())
    return content.getvalue()


def package():
    """A Debian package: an ar archive of a version, control data that nobody reads here, and the files."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as archive:
        for name, content in (
            ("./usr/share/sweethome3d/furniture/Test.sh3f", library()),
            ("./usr/share/doc/sweethome3d-furniture/copyright", b"CC-BY"),
            ("./usr/share/doc/sweethome3d-furniture/changelog.gz", b"not wanted"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    parts = [("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), ("data.tar.xz", data.getvalue())]
    return b"!<arch>\n" + b"".join(
        f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content + b"\n" * (len(content) % 2)
        for name, content in parts
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("assets")
    content = package()  # once: it holds the time
    (root / "file.deb").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    urls = ((root / "missing.deb").as_uri(), (root / "file.deb").as_uri())
    return fetch(root / "furniture", urls, digest)


@pytest.fixture(scope="module")
def entries(folder):
    return {entry.title: entry for entry in open_folder(folder)}


def test_fetch(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["Test.sh3f", "copyright"]
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []
    assert fetch(folder, ()) == folder  # what is there is not fetched again


def test_fetch_refuses_what_is_damaged_and_what_does_not_answer(tmp_path):
    (tmp_path / "file.deb").write_bytes(package())
    url = (tmp_path / "file.deb").as_uri()
    with pytest.raises(ValueError, match="wanted SHA-256 0000"):
        fetch(tmp_path / "new", (url,), "0" * 64)
    with pytest.raises(OSError, match=r"could not download .* from any of: .*missing"):
        fetch(tmp_path / "new", ((tmp_path / "missing").as_uri(),))
    with pytest.raises(ValueError, match="not empty"):
        fetch(tmp_path, (url,))
    assert [path.name for path in tmp_path.iterdir()] == ["file.deb"]
    assert len(assets.SHA256) == 64 and all(address.endswith(assets.PACKAGE) for address in assets.URLS)


def test_open_folder(folder, tmp_path):
    names = [entry.name for entry in open_folder(folder)]
    assert names == sorted(names) and len(names) == len(ENTRIES)
    deb = tmp_path / "deb"
    deb.mkdir()
    (deb / "any.deb").write_bytes(package())
    assert [entry.name for entry in open_folder(deb)] == names
    assert [entry.name for entry in open_folder(deb)] == names  # unpacked by now

    plain = tmp_path / "plain"
    (plain / "deeper").mkdir(parents=True)
    (plain / "deeper" / "box.obj").write_text(OBJ)
    (plain / "small.obj").write_text("v 0 0 0\nv 0.1 0 0\nv 0 0.2 0.1\nf 1 2 3\n")
    kinds = {m.name: (m.kind, m.size) for e in open_folder(plain) if (m := catalogue.from_entry(e))}
    assert kinds["deeper/box.obj"] == ("floor_item", (2.0, 1.0, 4.0))
    assert kinds["small.obj"] == ("ornament", (0.1, 0.2, 0.1))
    mesh = catalogue.from_entry(open_folder(plain)[1]).load()
    np.testing.assert_allclose(meshes.bounds(mesh), [[-0.05, 0, -0.05], [0.05, 0.2, 0.05]], atol=1e-6)


def test_clear_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        open_folder(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="holds no furniture"):
        open_folder(tmp_path)
    (tmp_path / "bad.sh3f").write_bytes(b"hello")
    with pytest.raises(ValueError, match="not a furniture library"):
        open_folder(tmp_path)
    (tmp_path / "bad.sh3f").rename(tmp_path / "bad.deb")
    with pytest.raises(ValueError, match="does not begin as an ar archive"):
        open_folder(tmp_path)
    with pytest.raises(ValueError, match="split must be one of train, val, test; got 'all'"):
        open_catalogue(None, "all")


def test_properties():
    text = b"# c\n! c\nname#1 = Caf\\u00e9 \xe9\nlong=a\\\n  b\nempty=\n"
    assert read_properties(text) == {"name#1": "Café é", "long": "ab", "empty": ""}


def test_entries_become_models(entries):
    models = {title: catalogue.from_entry(entry) for title, entry in entries.items()}
    kinds = {title: model and model.kind for title, model in models.items()}
    assert kinds == {
        "Table": "table",
        "Café table": "low_table",
        "Double bed": "bed",
        "Window": "window",
        "Hanging lamp": "ceiling_lamp",
        "Lamp": "table_lamp",
        "Cup": "ornament",
        "Wall switch": None,
    }
    assert models["Table"].size == (1.6, 0.75, 0.8) and models["Table"].top == 0.75
    assert models["Window"].elevation == 0.9 and models["Double bed"].top is None
    assert (models["Table"].licence, models["Table"].creator) == ("CC-BY 4.0", "www.example.com")
    assert models["Double bed"].creator == "A. Maker"
    for unfit in ({"bytes": 10_000_000}, {"size": (0.01, 0.02, 0.03)}, {"size": (1.0, 0.0, 1.0)}):
        assert catalogue.from_entry(dataclasses.replace(entries["Table"], **unfit)) is None


def test_meshes_have_the_stated_size_front_and_colours(entries):
    mesh = catalogue.from_entry(entries["Table"]).load()
    np.testing.assert_allclose(meshes.bounds(mesh), [[-0.8, 0, -0.4], [0.8, 0.75, 0.4]], atol=1e-6)
    front = next(index for index, material in enumerate(mesh.materials) if material.texture is not None)
    assert mesh.materials[front].texture.shape == (150, 256, 3)
    assert (mesh.materials[front].texture[0, 0] == [255, 0, 0]).all()
    np.testing.assert_allclose(mesh.vertices[mesh.faces[mesh.material == front]][..., 2], 0.4, atol=1e-6)
    rest = next(m for m in mesh.materials if m.texture is None and m.gloss < 0.65)
    # 0.5 in sRGB is 0.2140 in linear light; black is lifted to coal.
    np.testing.assert_allclose(rest.color, [0.03, 0.2140, 0.03], atol=3e-3)
    assert rest.gloss > 0.3
    assert any(m.gloss == pytest.approx(0.7) for m in mesh.materials)  # the pane
    assert catalogue.from_entry(entries["Table"]).load() is mesh
    assert pickle.loads(pickle.dumps(catalogue.from_entry(entries["Table"]))).load() is mesh
    panes = catalogue.from_entry(entries["Window"]).load()
    assert len(panes.materials) == 2  # one sees through it

    turned = catalogue.from_entry(entries["Café table"]).load()
    np.testing.assert_allclose(np.ptp(meshes.bounds(turned), axis=0), [0.7, 0.45, 0.7], atol=1e-6)
    front = next(index for index, material in enumerate(turned.materials) if material.texture is not None)
    np.testing.assert_allclose(turned.vertices[turned.faces[turned.material == front]][..., 0], 0.35, atol=1e-6)


@pytest.mark.parametrize(
    ("title", "size", "elevation", "kind"),
    [
        ("living room/flowers", (0.4, 0.5, 0.4), 0, "plant"),
        ("bedroom/clock", (0.1, 0.1, 0.1), 0, "ornament"),
        ("exterior/wheelbarrow", (1.6, 0.6, 0.6), 0, "vehicle"),
        ("exterior/arrow turn right", (1, 0.0, 4), 0, None),
        ("lights/street light", (0.4, 7, 1.4), 0, "street_item"),
        ("living room/piano bench", (0.6, 0.5, 0.3), 0, "floor_item"),
        ("living room/upright piano", (1.4, 1.3, 0.5), 0, "piano"),
        ("living room/coffee table", (1.2, 0.45, 0.7), 0, "low_table"),
        ("miscellaneous/tablet", (0.17, 0.01, 0.24), 0, "ornament"),
        ("characters/sitting male", (0.6, 1.3, 0.9), 0, None),
        ("kitchen/upper cabinet", (0.6, 0.7, 0.4), 1.45, "wall_unit"),
        ("kitchen/lower cabinet", (0.6, 0.9, 0.6), 0, "kitchen_unit"),
    ],
)
def test_kinds(title, size, elevation, kind):
    assert kind_of(title, tuple(map(float, size)), float(elevation)) == kind


def test_rules_name_kinds():
    assert {kind for _, kind in catalogue.RULES} - {None} <= set(KINDS)
    assert set(builtin.PIECES) == set(KINDS)


@pytest.mark.parametrize("with_assets", [False, True])
def test_every_kind_is_in_every_split_and_no_model_in_two(folder, with_assets):
    catalogues = [open_catalogue(folder if with_assets else None, split) for split in SPLITS]
    for kind in KINDS:
        names = [[model.name for model in each.models(kind)] for each in catalogues]
        assert all(names) and all(each == sorted(each) for each in names)
        assert len(set().union(*names)) == sum(map(len, names))
    assert catalogues[0].models("bed") == open_catalogue(folder if with_assets else None, "train").models("bed")
    licences = [name for each in catalogues for name in each.licences()]
    assert ("CC-BY 4.0" in licences) == with_assets and "Apache-2.0" in licences


def test_few_models_are_shared():
    pieces = catalogue._builtin_models()
    shares = catalogue._share(pieces[:2])
    assert shares["train"] == shares["val"] == shares["test"] and len(shares["val"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_built_in_pieces_are_as_large_as_they_say(kind):
    for model in open_catalogue(None, "train").models(kind)[:3]:
        mesh = model.load()
        x, y, z = model.size
        np.testing.assert_allclose(meshes.bounds(mesh), [[-x / 2, 0, -z / 2], [x / 2, y, z / 2]], atol=1e-4)
        assert np.isfinite(mesh.vertices).all() and mesh.faces.max() < len(mesh.vertices)
        np.testing.assert_allclose(np.linalg.norm(mesh.normals, axis=1), 1, atol=1e-3)
        assert model.load() is mesh
        assert model.top is None or 0 < model.top <= y
