"""The TFDS builder of every RGB-D dataset: what a record looks like on disk, and how lists of frames become shards."""

import dataclasses
import io
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from marigold_jax.data.array_record import FEATURES, VERSION, Feature, shards_of
from marigold_jax.data.prepared import Source
from marigold_jax.data.raw_frame import BadFrame, Record
from marigold_jax.runtime import extras
from marigold_jax.runtime.files import printable

with extras.needed("prepare"):
    import tensorflow_datasets as tfds


@dataclasses.dataclass
class RgbdConfig(tfds.core.BuilderConfig):
    """One dataset. `frames` are the frames of each split, in any form that `read` turns into a `data.raw_frame.Record`.

    `card` is Markdown on what a split is made of, where there is something to say, such as whose work it is. `flags`
    are those of `prepare` that decide what comes out, as text; `unused` are files that no frame makes use of, and why.
    """

    source: Source | None = None
    depth_encoding: str = "png16"  # or float32
    mask: bool = False
    normals: bool = False
    frames: dict[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    read: Callable[[Any], Record] | None = None
    card: str = ""
    flags: dict[str, str] = dataclasses.field(default_factory=dict)
    unused: list[tuple[str, str]] = dataclasses.field(default_factory=list)


def features_of(config: RgbdConfig) -> dict[str, Feature]:
    """What `features.json` says of a dataset that this configuration makes, as `data.array_record` reads it."""
    depth = dict(zip(("png16", "float32"), FEATURES["depth"], strict=True))[config.depth_encoding]
    more = [key for key in ("mask", "normals") if getattr(config, key)]
    return {key: FEATURES[key][0] for key in ("name", "rgb", *more)} | {"depth": depth}


class Builder(tfds.core.ShardBasedBuilder):
    """`python -m marigold_jax.prepare` writes the same shards as `download_and_prepare`, in parallel and resumably."""

    VERSION = tfds.core.Version(VERSION)

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        depth = {
            "png16": tfds.features.Image(shape=(None, None, 1), dtype=np.uint16, encoding_format="png"),
            "float32": tfds.features.Tensor(shape=(None, None, 1), dtype=np.float32, encoding="zlib"),
        }
        features = {
            "name": tfds.features.Text(),
            "rgb": tfds.features.Image(shape=(None, None, 3)),
            "depth": depth[config.depth_encoding],
        }
        if config.mask:
            features["mask"] = tfds.features.Image(shape=(None, None, 1), encoding_format="png")
        if config.normals:
            features["normals"] = tfds.features.Tensor(shape=(None, None, 3), dtype=np.int16, encoding="zlib")
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{config.name}: RGB images with depth; metadata.json tells how to read the depth.",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(dataclasses.asdict(config.source)),
        )

    def _shard_iterators_per_split(self, dl_manager) -> dict[str, list[Callable[[], Iterator[tuple[str, dict]]]]]:
        read = self.builder_config.read
        splits = self.builder_config.frames.items()
        return {split: [partial(examples, read, shard, []) for shard in shards_of(frames)] for split, frames in splits}


def examples(
    read: Callable[[Any], Record], frames: Sequence[Any], remarks: list[dict[str, Any]]
) -> Iterator[tuple[str, dict]]:
    """Name and TFDS example of each frame that can be used; what there is to say about frames goes to `remarks`."""
    for frame in frames:
        try:
            record = read(frame)
        except BadFrame as error:
            remarks.append({"frame": frame.name, "left_out": True, "reason": error.kind, "detail": error.detail})
            continue
        except ModuleNotFoundError:
            raise
        except Exception as error:  # one odd file must not end a day's work; the report tells
            kind, detail = f"unexpected {type(error).__name__}", printable(f"{frame.name}: {error}")
            remarks.append({"frame": frame.name, "left_out": True, "reason": kind, "detail": detail})
            continue
        if note := record.pop("note", None):
            remarks.append({"frame": frame.name, "left_out": False, "reason": "note", "detail": note})
        yield record["name"], {key: io.BytesIO(v) if isinstance(v, bytes) else v for key, v in record.items()}
