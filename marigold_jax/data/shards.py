"""Writing a split shard by shard, so that work can stop anywhere and go on later, and nothing half-written is ever
seen.

Shards grow in a folder beside the dataset, each under a temporary name until it is whole. When all are there, the
folder becomes the dataset; or its files join the splits that are already there, the index `dataset_info.json` last.
"""

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from absl import logging
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from marigold_jax.data.records import INDEX, read_index
from marigold_jax.data.rgbd.rgbd_dataset_builder import Builder, RgbdConfig, examples, shards_of
from marigold_jax.data.sources import dataset_folder
from marigold_jax.runtime.files import read_json, write, write_json

PLAN = "plan.txt"
# One record a chunk gives random access; images are compressed already.
WRITER_OPTIONS = "group_size:1,uncompressed"


@dataclasses.dataclass(frozen=True)
class Shard:
    """How many records a finished shard holds, and what is to be said about its frames."""

    records: int
    remarks: list[dict[str, Any]]


def open_builder(data_dir: str | Path, config: RgbdConfig) -> Builder:
    """The builder of the dataset `config.name` below `data_dir`; it knows the splits that are there already.

    Raises ValueError where the dataset that is there is damaged, or not one of ours.
    """
    folder = dataset_folder(data_dir, config.name)
    if folder.exists():
        read_index(folder)  # TFDS believes what it reads
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # TFDS warns of every configuration that is not listed in the builder's code
    try:
        return Builder(data_dir=str(data_dir), config=config, file_format="array_record")
    finally:
        logging.set_verbosity(verbosity)


def begin(builder: Builder, split: str) -> list[tuple[Path, Sequence[Any]]]:
    """Where each shard of the split is to be written, and its frames.

    Shards that an earlier run finished are kept if it was for the same frames.
    """
    config, staging = builder.builder_config, _staging(builder, split)
    shards = shards_of(config.frames[split])
    contents = (config.source, config.depth_encoding, config.mask, config.normals, shards)
    fingerprint = hashlib.sha256(repr(contents).encode()).hexdigest()
    plan = staging / PLAN
    if not plan.exists() or plan.read_text() != fingerprint:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        write(plan, fingerprint.encode())
    return [(staging / f"{number:05d}.array_record", frames) for number, frames in enumerate(shards)]


def write_shard(path: Path, frames: Sequence[Any], config: RgbdConfig) -> Shard:
    """Writes one shard, unless it is finished already. Runs in a process of its own."""
    finished = path.with_suffix(".json")
    if finished.exists():
        return Shard(**read_json(finished))
    features = open_builder(path.parent, config).info.features
    serializer = ExampleSerializer(features.get_serialized_info())
    unfinished = path.with_suffix(".unfinished")
    writer = ArrayRecordWriter(str(unfinished), WRITER_OPTIONS)
    remarks: list[dict[str, Any]] = []
    records = 0
    for _, example in examples(config.read, frames, remarks):
        message = serializer.get_tf_example(features.encode_example(example))
        writer.write(message.SerializeToString(deterministic=True))  # or every process would order the fields anew
        records += 1
    writer.close()
    os.replace(unfinished, path)
    shard = Shard(records, remarks)
    write_json(finished, dataclasses.asdict(shard))
    return shard


def publish(builder: Builder, split: str, shards: list[Shard]) -> None:
    """Turns the finished shards of a split (with at least one record) into a TFDS dataset, or a part of one."""
    staging, folder = _staging(builder, split), Path(builder.data_dir)
    names = tfds.core.ShardedFileTemplate(
        data_dir=builder.data_path, dataset_name=builder.name, split=split, filetype_suffix="array_record"
    )
    full = [number for number, shard in enumerate(shards) if shard.records]
    size = 0
    for position, number in enumerate(full):
        path = staging / f"{number:05d}.array_record"
        name = names.sharded_filepath(shard_index=position, num_shards=len(full)).name
        if path.exists():  # or else an earlier run came this far
            os.replace(path, staging / name)
        size += next(path.stat().st_size for path in (staging / name, folder / name) if path.exists())
    lengths = [shards[number].records for number in full]
    info = tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=size, filename_template=names)
    builder.info.set_splits(tfds.core.splits.SplitDict([*builder.info.splits.values(), info]))
    builder.info.write_to_directory(staging)
    bookkeeping = [path for path in staging.iterdir() if path.stem.isdigit() or path.name == PLAN]
    if folder.exists():
        contents = set(staging.iterdir()) - set(bookkeeping)
        for path in sorted(contents, key=lambda path: path.name == INDEX):
            os.replace(path, folder / path.name)
        shutil.rmtree(staging)
    else:
        os.rename(staging, folder)
        for path in bookkeeping:
            (folder / path.name).unlink()


def discard(builder: Builder, split: str) -> None:
    """Forgets the shards of a split that were finished, so that a later run reads every file again."""
    shutil.rmtree(_staging(builder, split))


def _staging(builder: Builder, split: str) -> Path:
    folder = Path(builder.data_dir)
    return folder.with_name(f"{folder.name}.incomplete-{split}")
