"""HDF5 files of others: arrays are read, and no file leads to another or to more memory than there is."""

import os

import h5py
import numpy as np
import pytest

from marigold_jax.data.hdf5 import read_dataset

DEPTH = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def secret(tmp_path):
    """A file outside, as raw numbers and as HDF5."""
    (tmp_path / "secret.raw").write_bytes(DEPTH.tobytes())
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["dataset"] = DEPTH
        file["group/dataset"] = DEPTH
    return tmp_path


@pytest.mark.parametrize("options", [{}, {"chunks": (2, 2), "compression": "gzip"}], ids=["plain", "compressed"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8", "uint16", "int32", "bool"])
def test_arrays_are_read_from_files_and_from_bytes(tmp_path, dtype, options):
    path = tmp_path / "depth.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("group/depth", data=DEPTH.astype(dtype), **options)
        file["dataset"] = h5py.SoftLink("group/depth")
    for source in (path, str(path), path.read_bytes()):
        for key in ("group/depth", "/group/depth", "dataset", None):
            found = read_dataset(source, "depth.h5", key)
            assert found.dtype == dtype and np.array_equal(found, DEPTH.astype(dtype))


def external_link(file, folder):
    file["dataset"] = h5py.ExternalLink(str(folder / "secret.h5"), "/dataset")


def link_to_an_external_link(file, folder):
    file["elsewhere"] = h5py.ExternalLink(str(folder / "secret.h5"), "/group")
    file["dataset"] = h5py.SoftLink("/elsewhere/dataset")


def external_storage(file, folder):
    file.create_dataset("dataset", (3, 4), "f4", external=[(str(folder / "secret.raw"), 0, h5py.h5f.UNLIMITED)])


def virtual(file, folder):
    layout = h5py.VirtualLayout((3, 4), "f4")
    layout[:] = h5py.VirtualSource(str(folder / "secret.h5"), "dataset", (3, 4))
    file.create_virtual_dataset("dataset", layout)


def linked_to_itself(file, folder):
    file["dataset"] = h5py.SoftLink("/dataset")


def a_group(file, folder):
    file.create_group("dataset")


def words(file, folder):
    file["dataset"] = ["one", "two"]


def pairs(file, folder):
    file["dataset"] = np.zeros(3, [("a", "f4"), ("b", "i4")])


def empty(file, folder):
    file["dataset"] = h5py.Empty("f4")


def endless(file, folder):
    file.create_dataset("dataset", (10**7, 10**7), "f4", chunks=(16, 16))


def endless_chunks(file, folder):
    file.create_dataset("dataset", (4, 4), "f8", chunks=(2**14, 2**14), maxshape=(None, None))


def none(file, folder):
    file["other"] = h5py.SoftLink("nowhere")


REFUSED = {
    external_link: "a link to another file",
    link_to_an_external_link: "a link to another file",
    external_storage: "lies in other files",
    virtual: "lies in other files",
    linked_to_itself: "more than 8 links",
    a_group: "wanted a dataset",
    words: "wanted numbers",
    pairs: "wanted numbers",
    empty: "is empty",
    endless: "would take 400000000000000 bytes",
    endless_chunks: "would take 2147483648 bytes",
    none: "no dataset 'dataset'",
}


@pytest.mark.parametrize("make, reason", REFUSED.items(), ids=lambda value: getattr(value, "__name__", None))
def test_what_is_refused_costs_one_line(secret, make, reason):
    path = secret / "depth.h5"
    with h5py.File(path, "w") as file:
        make(file, secret)
    for source in (path, path.read_bytes()):
        for key in ("dataset", None):
            with pytest.raises(ValueError, match=r"^mine: ") as caught:
                read_dataset(source, "mine", key)
            assert "\n" not in str(caught.value)
            assert key is None or reason in str(caught.value)


def test_which_of_two_must_be_said(secret):
    with h5py.File(secret / "two.h5", "w") as file:
        file["a"], file["b"] = DEPTH, DEPTH
    with pytest.raises(ValueError, match=r"two\.h5: wanted one dataset, found 'a', 'b'$"):
        read_dataset(secret / "two.h5", "two.h5")


def test_files_that_are_no_hdf5(secret):
    os.mkfifo(secret / "fifo.h5")
    (secret / "empty.h5").write_bytes(b"")
    (secret / "garbage.h5").write_bytes(b"garbage\n" * 100)
    (secret / "cut.h5").write_bytes((secret / "secret.h5").read_bytes()[:1000])
    for name in ("fifo.h5", "empty.h5", "garbage.h5", "cut.h5", "missing.h5", ""):
        with pytest.raises(ValueError, match=r"^mine: ") as caught:
            read_dataset(secret / name, "mine", "dataset")
        assert "\n" not in str(caught.value)
    whole = bytearray((secret / "secret.h5").read_bytes())
    random = np.random.default_rng(0)
    for _ in range(100):  # read, or refused in one line
        damaged = bytearray(whole)
        for place in random.integers(0, len(whole), 8):
            damaged[place] = random.integers(256)
        try:
            read_dataset(bytes(damaged), "mine", "dataset")
        except ValueError as error:
            assert str(error).startswith("mine: ") and "\n" not in str(error)
