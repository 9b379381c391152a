"""Prepares one split of a dataset: runs the workers, writes the report and the contact sheet, and publishes the files.

Beside the dataset DATA_DIR/rgbd/NAME/1.0.0 appear, for each split:

    DATA_DIR/rgbd/NAME/report-SPLIT.jsonl     one line per frame that was left out or changed, and per unused file
    DATA_DIR/rgbd/NAME/contact-SPLIT.png      some of the frames
    DATA_DIR/rgbd/NAME/card-SPLIT.md          the origin of the data, where `RgbdConfig.card` describes it
"""

import dataclasses
import json
import multiprocessing
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from marigold_jax.data.depth_format import METADATA, depth_format_from
from marigold_jax.data.prepared import PreparedSplit
from marigold_jax.data.record_reader import read_index
from marigold_jax.data.rgbd.rgbd_dataset_builder import Builder, RgbdConfig, features_of
from marigold_jax.data.split_writer import (
    Shard,
    begin,
    discard,
    open_builder,
    origin,
    origin_of,
    publish,
    write_shard,
)
from marigold_jax.data.transforms import PERCENTILES
from marigold_jax.runtime import terminal
from marigold_jax.runtime.files import printable, read_json, write

SHOWN = 24  # frames on the contact sheet
NAMED = 5  # unused files that are named for each reason on the terminal

DrawSheet = Callable[[Sequence[dict[str, np.ndarray]]], bytes]  # examples to the content of a PNG file


def prepare_split(config: RgbdConfig, split: str, data_dir: str, workers: int, draw_sheet: DrawSheet) -> int:
    """Prepares a split, or finishes a preparation that was interrupted.

    Args:
        config: the dataset; `config.frames[split]` are the frames to store.
        split: its name.
        data_dir: the folder of all prepared datasets.
        workers: number of processes.
        draw_sheet: draws the contact sheet.

    Returns:
        The exit status: 0, or 1 if no frame could be used and no dataset was made.

    Raises:
        ValueError: the split exists already and was made with other flags or from other files, or the dataset exists
            with another format.
        BrokenProcessPool: a worker process died.
    """
    path = f"{data_dir}/{config.name}/{split}"
    builder = open_builder(data_dir, config)
    folder = Path(builder.data_dir)
    if split in builder.info.splits:
        _refuse_other_flags(builder, split, path)
        frames = builder.info.splits[split].num_examples
        terminal.say(f"{path} is prepared already: {frames} frames. To make it again, delete {folder} first")
        _describe(config, split, path, draw_sheet)  # an interrupted run may not have done so
        return 0
    _refuse_other_format(builder)

    tasks = begin(builder, split)
    total = len(config.frames[split])
    shards: list[Shard | None] = [None] * len(tasks)
    with tqdm(total=total, desc=path, unit=" frames", disable=None) as bar:
        for number, shard in _run_workers(tasks, config, workers):
            shards[number] = shard
            bar.update(len(tasks[number][1]))

    _report(config, split, [remark for shard in shards for remark in shard.remarks], folder.parent)
    if not any(shard.records for shard in shards):
        discard(builder, split)
        terminal.say(f"no dataset was made: not one of the {total} frames can be used", sys.stderr)
        return 1
    for old in _descriptions(folder.parent, split):
        old.unlink(missing_ok=True)
    publish(builder, split, shards)
    prepared = _describe(config, split, path, draw_sheet)
    terminal.say(f"{path}: {len(prepared)} frames; {_typical_range(prepared)}")
    return 0


# -------------------------------------------------------------------------------------------------------------- workers


def _begin_worker() -> None:
    """Ctrl-C ends a worker silently; the next run repeats the shard that was in progress."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    terminal.quieten()


def _run_workers(tasks: list[tuple[Path, Any]], config: RgbdConfig, workers: int) -> Iterator[tuple[int, Shard]]:
    """Writes the shards, and yields (number, shard) as each is finished. Raises BrokenProcessPool if a process dies."""
    write_one = partial(write_shard, config=dataclasses.replace(config, frames={}, card="", unused=[]))
    if workers == 1:
        yield from ((number, write_one(*task)) for number, task in enumerate(tasks))
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=spawn, initializer=_begin_worker) as pool:
        futures = {pool.submit(write_one, *task): number for number, task in enumerate(tasks)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            problem = "a worker process died, perhaps for lack of memory; run again with fewer --workers to continue"
            raise BrokenProcessPool(problem) from None
        finally:
            pool.shutdown(cancel_futures=True)


# --------------------------------------------------------------------------------------------------------------- report


def _report(config: RgbdConfig, split: str, remarks: list[dict[str, Any]], folder: Path) -> None:
    """Writes the report of a split, and summarises it on the terminal."""
    unused = config.unused if split == next(iter(config.frames)) else []
    not_used = [{"frame": name, "left_out": True, "reason": "not used", "detail": why} for name, why in unused]
    report = folder / f"report-{split}.jsonl"
    write(report, "".join(json.dumps(remark) + "\n" for remark in remarks + not_used).encode())
    terminal.say(_summary(remarks, len(config.frames[split]), report))
    if unused:
        terminal.say(f"files not used: {_by_reason(unused)}: see {report}")


def _summary(remarks: list[dict[str, Any]], total: int, report: Path) -> str:
    """One line about the frames that were left out, by reason."""
    if not remarks:
        return f"all {total} frames can be used"
    reasons = Counter(remark["reason"] for remark in remarks if remark["left_out"])
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    notes = len(remarks) - reasons.total()
    return (
        f"left out {reasons.total()} of {total} frames"
        + (f" ({counts})" if counts else "")
        + (f", kept {notes} with a note" if notes else "")
        + f": see {report}"
    )


def _by_reason(unused: list[tuple[str, str]]) -> str:
    """One line about the unused files: how many for each reason, with the names of the first few."""
    reasons: dict[str, list[str]] = {}
    for name, why in unused:
        reasons.setdefault(why, []).append(printable(name))
    return "; ".join(
        f"{len(names)} {why} ({', '.join([*names[:NAMED], *['...'] * (len(names) > NAMED)])})"
        for why, names in reasons.items()
    )


def _typical_range(split: PreparedSplit) -> str:
    """The median range of depth in metres, read back from a few frames. It shows when the unit was wrong."""
    some = np.unique(np.linspace(0, len(split) - 1, 16).astype(int))
    valid = [example["depth"][example["mask"]] for example in map(split.__getitem__, some)]
    limits = [np.quantile(depth, PERCENTILES) for depth in valid if depth.size]
    if not limits:
        return "none of those read back has valid depth"
    near, far = np.median(limits, axis=0)
    return f"a typical one has depth from {near:.3g} to {far:.3g} m"


def _descriptions(folder: Path, split: str) -> tuple[Path, Path]:
    """The paths of the contact sheet and the card of a split."""
    return folder / f"contact-{split}.png", folder / f"card-{split}.md"


def _describe(config: RgbdConfig, split: str, path: str, draw_sheet: DrawSheet) -> PreparedSplit:
    """Writes the contact sheet and the card, unless they exist, and returns the opened split."""
    prepared = PreparedSplit(path)
    sheet, card = _descriptions(prepared.folder.parent, split)
    if not sheet.exists():
        some = [prepared[int(index)] for index in np.unique(np.linspace(0, len(prepared) - 1, SHOWN).astype(int))]
        write(sheet, draw_sheet(some))
    if config.card and not card.exists():
        write(card, config.card.encode())
    return prepared


# ------------------------------------------------------------------------------------------------------ existing splits


def _refuse_other_flags(builder: Builder, split: str, path: str) -> None:
    """Raises ValueError, which says what differs, if an existing split is not the one that was asked for."""
    there, now = origin_of(builder, split), origin(builder.builder_config, split)
    again = f"To make it again, delete {builder.data_dir} first, or choose another --name"
    if there is None:  # made by a version that did not record the flags
        _refuse_other_format(builder)
        if builder.info.splits[split].num_examples > now["frames"]:
            raise ValueError(f"{path} is prepared already, from more frames than the {now['frames']} here. {again}")
        return
    flags = [
        f"{flag} was {printable(there['flags'].get(flag, 'absent'))}, is {now['flags'].get(flag, 'absent')}"
        for flag in dict.fromkeys((*there["flags"], *now["flags"]))
        if there["flags"].get(flag) != now["flags"].get(flag)
    ]
    if flags:
        raise ValueError(f"{path} is prepared already, with other flags: {'; '.join(flags)}. {again}")
    if there.get("files") != now["files"]:
        counts = f"{printable(there.get('frames'))} frames then, {now['frames']} now"
        raise ValueError(f"{path} is prepared already, from files of other names or sizes: {counts}. {again}")


def _refuse_other_format(builder: Builder) -> None:
    """Raises ValueError if the dataset has splits of another format: all splits of a dataset share one."""
    if not builder.info.splits:
        return
    folder, config = Path(builder.data_dir), builder.builder_config
    depth_format = depth_format_from(read_json(folder / METADATA), folder / METADATA)
    if depth_format != config.depth_format or read_index(folder).features != features_of(config):
        raise ValueError(f"{builder.data_dir} has another unit, depth range or kind of files: choose another --name")
