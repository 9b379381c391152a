"""Furniture models: Sweet Home 3D's libraries, as packaged by Debian, or any folder of OBJ files.

    fetch(folder)        downloads the package, checks it, and unpacks its libraries into the folder
    open_folder(folder)  lists the models in a folder of any accepted kind

A library (`.sh3f`) is a zip archive of OBJ models with a table of names and sizes. Models are read from the archive
directly, which takes milliseconds each.
"""

import hashlib
import io
import re
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path, PurePosixPath

import numpy as np
from tqdm import tqdm

from marigold_jax.rooms.scene import Vector

PACKAGE = "sweethome3d-furniture_1.8-1_all.deb"
SHA256 = "3ccb90c63f9525e887a767b9cd5c8b6933b8b6b2973a615a5359ee68a2118668"
URLS = (
    f"https://deb.debian.org/debian/pool/main/s/sweethome3d-furniture/{PACKAGE}",
    f"https://snapshot.debian.org/archive/debian/20250101T000000Z/pool/main/s/sweethome3d-furniture/{PACKAGE}",
)
TABLE = "PluginFurnitureCatalog.properties"
KEPT = (".sh3f", "copyright")  # only files of the package with these endings are unpacked
UNKNOWN = "not stated"


@dataclass(frozen=True)
class Entry:
    """A model in a library.

    Attributes:
        name: unique over all libraries.
        category, title: from the library, in English.
        size: width x, height y and depth z in metres.
        elevation: metres above the floor.
        drop: metres above its base at which objects may stand on it; None if not stated, negative if they may not.
        rotation: a 3 x 3 matrix, row by row, to be applied to the model in its file; None for none.
        licence, creator: from the library.
        path: of the OBJ file.
        bytes: the size of the OBJ file.
        read: returns the content of a file, by its path; raises KeyError if it does not exist.
    """

    name: str
    category: str
    title: str
    size: Vector
    elevation: float
    drop: float | None
    rotation: tuple[float, ...] | None
    licence: str
    creator: str
    path: str
    bytes: int
    read: Callable[[str], bytes] = field(repr=False, compare=False)


# ------------------------------------------------------------------------------------------------------------- fetching


def fetch(folder: Path, urls: Sequence[str] = URLS, sha256: str = SHA256) -> Path:
    """Downloads the package (120 MB) from the first URL that works, and unpacks its libraries.

    Args:
        folder: to create, by renaming a complete one. A folder that has libraries already is left unchanged.
        urls: of the package, in order of preference.
        sha256: checksum of the package.

    Returns:
        The folder.

    Raises:
        ValueError: the checksum is wrong, or the folder holds other files.
        OSError: every URL failed.
    """
    folder = Path(folder)
    if sorted(folder.rglob("*.sh3f")):
        return folder
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty and has no .sh3f libraries: name a new folder to download into")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        package = Path(temporary) / PACKAGE
        _download(urls, package)
        digest = hashlib.file_digest(package.open("rb"), "sha256").hexdigest()
        if digest != sha256:
            raise ValueError(f"{PACKAGE}: wanted SHA-256 {sha256}, got {digest}; the download is damaged, try again")
        unpacked = Path(temporary) / "unpacked"
        unpack(package, unpacked)
        if folder.exists():
            folder.rmdir()
        unpacked.rename(folder)
    return folder


def _download(urls: Sequence[str], target: Path) -> None:
    failures = []
    for url in urls:
        try:
            with urllib.request.urlopen(url, timeout=60) as answer, target.open("wb") as file:
                total = int(answer.headers.get("Content-Length") or 0) or None
                with tqdm(
                    total=total, unit="B", unit_scale=True, desc=f"downloading {target.name}", disable=None
                ) as bar:
                    while block := answer.read(1 << 20):
                        file.write(block)
                        bar.update(len(block))
            return
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            failures.append(f"{url} ({getattr(error, 'reason', error)})")
    raise OSError(
        f"could not download {PACKAGE} from any of: {'; '.join(failures)}. "
        "Download it on another machine and copy the file to the folder"
    )


def unpack(package: Path, folder: Path) -> None:
    """Unpacks the libraries and licences of a Debian package into a new folder. Raises ValueError for another file."""
    folder.mkdir(parents=True)
    for name, content in _ar_members(package):
        if name.startswith("data.tar"):
            try:
                archive = tarfile.open(fileobj=io.BytesIO(content))
            except tarfile.ReadError as error:
                raise ValueError(f"{package}: cannot unpack {name} with this Python ({error})") from error
            with archive:
                for member in archive:
                    if member.isfile() and member.name.endswith(KEPT):
                        with (
                            archive.extractfile(member) as source,
                            (folder / Path(member.name).name).open("wb") as file,
                        ):
                            shutil.copyfileobj(source, file)
            return
    raise ValueError(f"{package} is a Debian package without data.tar")


def _ar_members(package: Path) -> Iterator[tuple[str, bytes]]:
    """The members of an `ar` archive: for each, a 60-byte header and the content, padded to even length."""
    with Path(package).open("rb") as file:
        if file.read(8) != b"!<arch>\n":
            raise ValueError(f"{package} is not a Debian package: it does not begin as an ar archive")
        while len(header := file.read(60)) == 60:
            length = int(header[48:58])
            yield header[:16].decode().strip().rstrip("/"), file.read(length)
            file.seek(length % 2, io.SEEK_CUR)


# -------------------------------------------------------------------------------------------------------------- opening


def open_folder(folder: Path) -> list[Entry]:
    """Lists the models in a folder, sorted by name.

    The folder or its subfolders may hold `.sh3f` libraries (as `fetch` unpacks them, or like
    /usr/share/sweethome3d/furniture); the Debian package, which is then unpacked beside it; or OBJ files, in metres and
    upright, y up. Raises FileNotFoundError if the folder is missing or holds none of these.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: name one with .sh3f libraries, {PACKAGE} or OBJ files")
    libraries = sorted(folder.rglob("*.sh3f"))
    if not libraries and (packages := sorted(folder.glob("*.deb"))):
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            unpack(packages[0], Path(temporary) / "unpacked")
            (Path(temporary) / "unpacked").rename(folder / packages[0].stem)
        libraries = sorted(folder.rglob("*.sh3f"))
    if libraries:
        entries = [entry for library in libraries for entry in read_library(library)]
    else:
        entries = [_plain(folder, path) for path in sorted(folder.rglob("*.obj"))]
    if not entries:
        raise FileNotFoundError(f"{folder} holds no furniture: wanted .sh3f libraries, {PACKAGE} or OBJ files")
    return sorted(entries, key=lambda entry: entry.name)


def read_library(path: Path) -> list[Entry]:
    """The models of a `.sh3f` library. Raises ValueError if the file is not a library."""
    try:
        archive = zipfile.ZipFile(path)
        table = read_properties(archive.read(TABLE))
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{path} is not a furniture library: wanted a zip archive with {TABLE} ({error})") from error
    read = partial(_read_member, path)
    numbers = sorted({int(match[1]) for key in table if (match := re.fullmatch(r"name#(\d+)", key))})
    entries = []
    for number in numbers:
        values = {key: table[f"{key}#{number}"] for key in _FIELDS if f"{key}#{number}" in table}
        model = values["model"].lstrip("/")
        if not model.lower().endswith(".obj") or model not in archive.NameToInfo:
            continue
        drop = values.get("dropOnTopElevation")
        entries.append(
            Entry(
                name=f"{path.stem}/{values.get('id', number)}",
                category=values.get("category", ""),
                title=values["name"],
                size=tuple(float(values[side]) / 100 for side in ("width", "height", "depth")),
                elevation=float(values.get("elevation", 0)) / 100,
                drop=None if drop is None else float(drop) / 100,
                rotation=tuple(map(float, values["modelRotation"].split())) if "modelRotation" in values else None,
                licence=table.get("license", UNKNOWN),
                creator=values.get("creator", table.get("provider", UNKNOWN)),
                path=model,
                bytes=archive.getinfo(model).file_size,
                read=read,
            )
        )
    archive.close()
    return entries


_FIELDS = (
    *("id", "name", "category", "model", "width", "height", "depth", "elevation", "dropOnTopElevation"),
    *("modelRotation", "creator"),
)


def read_properties(text: bytes) -> dict[str, str]:
    """Parses a Java properties file: `key=value` lines in Latin-1, with escapes, comments and continued lines."""
    lines = re.sub(r"\\\r?\n\s*", "", text.decode("latin-1")).splitlines()
    pairs = (re.match(r"\s*([^#!=:\s][^=:\s]*)\s*[=:]\s*(.*)", line) for line in lines)
    return {
        pair[1]: re.sub(r"\\u([0-9a-fA-F]{4})", lambda code: chr(int(code[1], 16)), pair[2]) for pair in pairs if pair
    }


def _read_member(path: Path, name: str) -> bytes:
    """Opens the archive once in each process, when it is first read, so that entries can be pickled."""
    return _zip(path).read(name)


@cache
def _zip(path: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def _plain(folder: Path, path: Path) -> Entry:
    """An OBJ file without a table: its own size decides whether it is an ornament or stands on the floor."""
    lines = (line.split()[1:4] for line in path.open(errors="replace") if line.startswith("v "))
    vertices = np.array(list(lines), np.float64).reshape(-1, 3)
    size = np.ptp(vertices, axis=0) if len(vertices) else np.zeros(3)
    return Entry(
        name=str(path.relative_to(folder)),
        category="folder",
        title="ornament" if size.max() <= 0.4 else "floor item",
        size=tuple(map(float, size)),
        elevation=0.0,
        drop=None,
        rotation=None,
        licence=UNKNOWN,
        creator=UNKNOWN,
        path=path.name,
        bytes=path.stat().st_size,
        read=partial(_read_beside, path.parent),
    )


def _read_beside(folder: Path, name: str) -> bytes:
    path = folder / PurePosixPath(name)
    if not path.is_file():
        raise KeyError(name)
    return path.read_bytes()
