"""The TFDS builder of every RGB-D dataset: the features of a record, and how a list of frames becomes shards."""

import dataclasses
import io
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from marigold_jax.data.depth_format import DepthFormat
from marigold_jax.data.raw_frame import BadFrame
from marigold_jax.data.record import Feature, Record
from marigold_jax.data.record_reader import FEATURES, VERSION, shards_of
from marigold_jax.runtime import extras
from marigold_jax.runtime.files import printable

with extras.needed("prepare"):
    import tensorflow_datasets as tfds


@dataclasses.dataclass
class RgbdConfig(tfds.core.BuilderConfig):
    """One dataset to be prepared.

    Attributes:
        depth_format: unit, valid range and crop of the depth.
        depth_encoding: how depth is stored, "png16" or "float32".
        maps: what records hold besides name, rgb and depth: keys of `data.record_reader.FEATURES`.
        frames: split name to its frames, in any form that `read` accepts.
        read: reads a frame into a record; raises BadFrame for one that cannot be used.
        card: Markdown about the origin of a split, such as its authors and licences; may be empty.
        flags: the flags of `prepare` that decide the result, as text.
        unused: raw files that no frame uses: (path, reason).
    """

    depth_format: DepthFormat | None = None
    depth_encoding: str = "png16"
    maps: tuple[str, ...] = ()
    frames: dict[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    read: Callable[[Any], Record] | None = None
    card: str = ""
    flags: dict[str, str] = dataclasses.field(default_factory=dict)
    unused: list[tuple[str, str]] = dataclasses.field(default_factory=list)


def features_of(config: RgbdConfig) -> dict[str, Feature]:
    """The features of a dataset with this configuration, as `data.record_reader` reads them from `features.json`."""
    depth = dict(zip(("png16", "float32"), FEATURES["depth"], strict=True))[config.depth_encoding]
    return {key: FEATURES[key][0] for key in ("name", "rgb", *config.maps)} | {"depth": depth}


def _tfds_feature(feature: Feature) -> tfds.features.FeatureConnector:
    """Grey pictures are written as PNG; colour keeps the format of its file."""
    if feature.kind == "Text":
        return tfds.features.Text()
    shape, dtype = (None, None, feature.channels), np.dtype(feature.dtype).type
    if feature.kind == "Image":
        return tfds.features.Image(shape=shape, dtype=dtype, encoding_format="png" if feature.channels == 1 else None)
    return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="zlib")


class Builder(tfds.core.ShardBasedBuilder):
    """`python -m marigold_jax.prepare` writes the same shards as `download_and_prepare`, in parallel and resumably."""

    VERSION = tfds.core.Version(VERSION)

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        features = {key: _tfds_feature(feature) for key, feature in features_of(config).items()}
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{config.name}: RGB images with depth; metadata.json tells how to read the depth.",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(dataclasses.asdict(config.depth_format)),
        )

    def _shard_iterators_per_split(self, dl_manager) -> dict[str, list[Callable[[], Iterator[tuple[str, dict]]]]]:
        read = self.builder_config.read
        splits = self.builder_config.frames.items()
        return {split: [partial(examples, read, shard, []) for shard in shards_of(frames)] for split, frames in splits}


def examples(
    read: Callable[[Any], Record], frames: Sequence[Any], remarks: list[dict[str, Any]]
) -> Iterator[tuple[str, dict]]:
    """Yields (name, TFDS example) for each usable frame; appends a line of the report for each other frame and note.

    Args:
        read: see `RgbdConfig`.
        frames: to read, in order.
        remarks: receives dictionaries with the keys frame, left_out, reason and detail.
    """
    for frame in frames:
        try:
            record = read(frame)
        except BadFrame as error:
            remarks.append({"frame": frame.name, "left_out": True, "reason": error.kind, "detail": error.detail})
            continue
        except ModuleNotFoundError:
            raise
        except Exception as error:  # one unusual file must not end a day's work; it is reported
            kind, detail = f"unexpected {type(error).__name__}", printable(f"{frame.name}: {error}")
            remarks.append({"frame": frame.name, "left_out": True, "reason": kind, "detail": detail})
            continue
        if note := record.pop("note", None):
            remarks.append({"frame": frame.name, "left_out": False, "reason": "note", "detail": note})
        yield record["name"], {key: io.BytesIO(v) if isinstance(v, bytes) else v for key, v in record.items()}
