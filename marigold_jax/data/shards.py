"""Writing a split shard by shard, so that work can stop anywhere and go on later, and nothing half-written is ever
seen.

Shards grow in a folder beside the dataset, each under a temporary name until it is whole. When all are there, the
folder becomes the dataset; or its files join the splits that are already there, the index `dataset_info.json` last.
`metadata.json` keeps what each split was made from, so that the same command can be told from another.
"""

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from marigold_jax.data.array_record import INDEX, WRITER_OPTIONS, read_index, shards_of
from marigold_jax.data.prepared import dataset_folder
from marigold_jax.data.raw_frame import Part
from marigold_jax.data.rgbd.rgbd_dataset_builder import Builder, RgbdConfig, examples
from marigold_jax.runtime import extras
from marigold_jax.runtime.files import read_json, write, write_json

with extras.needed("prepare"):
    import tensorflow_datasets as tfds
    from absl import logging
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

PREPARED = "prepared"  # the key of metadata.json
PLAN = "plan.txt"


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
    except OSError:
        raise
    except Exception as error:  # TFDS, protobuf and JSON raise nearly anything for a damaged dataset
        reason = " ".join(str(error).split()) or type(error).__name__
        folder = dataset_folder(data_dir, config.name)
        raise ValueError(f"{folder}: this dataset cannot be read: {reason}; delete it to make it again") from None
    finally:
        logging.set_verbosity(verbosity)


def begin(builder: Builder, split: str) -> list[tuple[Path, Sequence[Any]]]:
    """Where each shard of the split is to be written, and its frames.

    Shards that an earlier run finished are kept if it was for the same frames.
    """
    config, staging = builder.builder_config, _staging(builder, split)
    shards = shards_of(config.frames[split])
    contents = (config.source, config.depth_encoding, config.mask, config.normals, shards, origin(config, split))
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
    remarks: list[dict[str, Any]] = []
    records = 0
    try:
        writer = ArrayRecordWriter(str(unfinished), WRITER_OPTIONS)
        for _, example in examples(config.read, frames, remarks):
            message = serializer.get_tf_example(features.encode_example(example))
            writer.write(message.SerializeToString(deterministic=True))  # or every process would order the fields anew
            records += 1
        writer.close()
    except RuntimeError as error:  # of ArrayRecord, as for a full disk
        unfinished.unlink(missing_ok=True)
        raise OSError(f"{path.parent}: {error}; make room and give the same command again to go on") from None
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
    metadata = builder.info.metadata
    metadata[PREPARED] = metadata.get(PREPARED, {}) | {split: origin(builder.builder_config, split)}
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


def origin(config: RgbdConfig, split: str) -> dict[str, Any]:
    """What a split is made from: the flags, how many frames, and a fingerprint of their files' names and sizes.

    Folders may move; contents of the same size are not told apart.
    """
    digest = hashlib.sha256()
    for frame in config.frames[split]:
        files = [(os.path.basename(part.path), part.member, _size(part)) for part in getattr(frame, "parts", ())]
        digest.update(repr((frame.name, files)).encode())
    return {"flags": config.flags, "frames": len(config.frames[split]), "files": digest.hexdigest()[:16]}


def _size(part: Part) -> int | None:
    """Bytes, or None where there is no file."""
    try:
        return os.stat(part.path).st_size if part.size is None else part.size
    except (OSError, ValueError):
        return None


def origin_of(builder: Builder, split: str) -> dict[str, Any] | None:
    """What a split that is there was made from; None for one that was made before that was kept."""
    kept = builder.info.metadata.get(PREPARED)
    found = kept.get(split) if isinstance(kept, dict) else None
    return found if isinstance(found, dict) and isinstance(found.get("flags"), dict) else None


def discard(builder: Builder, split: str) -> None:
    """Forgets the shards of a split that were finished, so that a later run reads every file again."""
    shutil.rmtree(_staging(builder, split))


def _staging(builder: Builder, split: str) -> Path:
    folder = Path(builder.data_dir)
    return folder.with_name(f"{folder.name}.incomplete-{split}")
