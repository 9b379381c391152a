"""Reads a test set of the papers, as Marigold's authors packed it: a tar archive or a folder, and a filename list."""

import io
import math
import tarfile
from functools import cached_property
from pathlib import Path
from typing import SupportsIndex

import numpy as np
from jaxtyping import Bool

from marigold_jax.data import images
from marigold_jax.data.filename_list import read_filename_list
from marigold_jax.data.prepared import decode
from marigold_jax.data.raw_frame import BadFrame, Part, check_sizes, open_image
from marigold_jax.evaluation.benchmarks import BENCHMARKS, Columns, Rows, npy
from marigold_jax.runtime.files import below, printable, regular


class OfficialSplit:
    """Random access to a test set: `split[i]` is an example as in `data.prepared.PreparedSplit`.

    Reading an image raises BadFrame if one of its files is missing or broken.
    """

    def __init__(self, name: str, data_dir: str | Path, lists: str | Path):
        """Opens a test set.

        Args:
            name: a key of `BENCHMARKS`.
            data_dir: the folder of the containers.
            lists: the folder of the official filename lists.

        Raises:
            ValueError: the container or the list is missing, or a name in the list leads out of the container. The
                message is one line.
        """
        self.name, self.protocol = name, BENCHMARKS[name]
        self.features = frozenset({"rgb", self.protocol.truth})
        self.source = self.protocol.source
        self.alignment_width = self.protocol.alignment_width
        self.limits = self.protocol.limits or (self.source.min_depth, self.source.max_depth)
        folder = Path(data_dir) / self.protocol.container
        self.path = str(folder if folder.is_dir() else folder.with_name(f"{folder.name}.tar"))
        if not Path(self.path).exists():
            raise ValueError(f"{name}: wanted {self.path} or a folder {folder}; found neither")
        found = sorted(Path(lists).glob(self.protocol.filename_list))
        if len(found) != 1:
            raise ValueError(
                f"{name}: wanted one filename list {Path(lists) / self.protocol.filename_list}, found {len(found)}; "
                "point --lists at the folder data_split of Marigold's official repository"
            )
        self._lines = read_filename_list(regular(found[0]))
        columns = [0, 1, *([self.protocol.mask_column] if self.protocol.mask_column else [])]
        for line in self._lines:
            if len(line) <= max(columns):
                raise ValueError(
                    f"{found[0]}: wanted {max(columns) + 1} columns; {printable(line[0])[:200]!r} has fewer"
                )
            for column in columns:
                try:
                    below(folder, line[column])
                except ValueError as error:
                    raise ValueError(f"{found[0]}: {error}") from None

    def __len__(self) -> int:
        return len(self._lines)

    def name_of(self, index: SupportsIndex) -> str:
        """The path of the image, as the filename list spells it."""
        return self._lines[index][0]

    def __getitem__(self, index: SupportsIndex) -> dict[str, np.ndarray]:
        rgb = self._lines[index][0]
        # Opened here, so that the error says which file it is.
        return self._example(index, {"rgb": np.asarray(open_image(self._part(rgb).read(), rgb).convert("RGB"))})

    def truth(self, index: SupportsIndex) -> dict[str, np.ndarray]:
        """The same without the image, because decoding it takes longer than scoring."""
        return self._example(index, {})

    def count_pixels(self, index: SupportsIndex) -> int:
        """The number of pixels of the image, from its header alone."""
        return math.prod(images.open_image(io.BytesIO(self._part(self._lines[index][0]).read())).size)

    def _example(self, index: SupportsIndex, record: dict) -> dict[str, np.ndarray]:
        paths, column, what = self._lines[index], self.protocol.mask_column, self.protocol.truth
        truth = paths[1]
        record[what] = self._part(truth).read()
        try:
            record[what] = self.protocol.read(record[what])
            mask = None if column is None else npy(self._part(paths[column]).read()) > 0
            example = decode(record, self.source)
        except BadFrame:
            raise
        except Exception as error:  # decoders raise nearly anything on a damaged file
            raise BadFrame(f"unreadable {what}", f"{truth}: {error}") from None
        if mask is not None:
            example["mask"] = mask
        check_sizes((key, value.shape[:2]) for key, value in example.items())
        example["mask"] = example["mask"] & inside(self.protocol.window, example["mask"].shape[:2])
        return example

    def _part(self, path: str) -> Part:
        if self._members is None:
            part = f"{self.path}/{path}"
            try:
                regular(part)
            except FileNotFoundError:
                raise BadFrame("missing file", part) from None
            except ValueError as error:
                raise BadFrame("unreadable file", str(error)) from None
            return Part(part)
        if path not in self._members:
            raise BadFrame("missing file", f"{self.path}: {path}")
        part = self._members[path]
        if part.offset + part.size > Path(self.path).stat().st_size:
            raise BadFrame("truncated file", part.name)
        return part

    @cached_property
    def _members(self) -> dict[str, Part] | None:
        """The files in the archive by name; None for a folder."""
        if Path(self.path).is_dir():
            return None
        try:
            with tarfile.open(regular(self.path), "r:") as archive:
                return {
                    member.name.removeprefix("./"): Part(self.path, member.name, member.offset_data, member.size)
                    for member in archive
                    if member.isfile()
                }
        except Exception as error:  # tarfile parses the text in PAX headers, which may fail in any way
            raise ValueError(f"{self.path}: not a complete tar archive ({error})") from None


def inside(window: tuple[Rows, Columns] | None, shape: tuple[int, int]) -> Bool[np.ndarray, "h w 1"]:
    """True in the rows and columns of the window; if it is None, everywhere."""
    mask = np.zeros((*shape, 1), bool)
    (top, bottom), (left, right) = window or ((0, shape[0]), (0, shape[1]))
    mask[top:bottom, left:right] = True
    return mask
