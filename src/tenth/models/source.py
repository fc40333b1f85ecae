"""What the word MODEL on the command line means: a folder, the bundled model, or a name on the hub."""

from __future__ import annotations

import re
from contextlib import suppress
from importlib import resources
from pathlib import Path

from tenth.core.errors import InputError
from tenth.core.progress import one_line

BUNDLED = "bundled"
WEIGHTS = ["*.safetensors", "*.safetensors.index.json"]
SMALL_FILES = ["config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json"]
SMALL_FILES += ["added_tokens.json", "vocab.json", "merges.txt", "chat_template*"]
# Subfolders and "consolidated" hold second copies of the weights; pickles and code are never wanted.
LEFT_OUT = ["*/*", "consolidated*", "*.py", "*.bin", "*.pt", "*.pth"]

CACHED = re.compile(r"models--([^/]+?)--([^/]+)")  # a model's folder in the hub's cache
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def model_name(path: Path) -> str:
    """What a model is called: its folder's name, or ORG/NAME where the folder is a snapshot in the hub's
    cache, which is named after a commit. What steers a terminal, or is no UTF-8, is written out.
    """
    folder = path.resolve()
    snapshot, parent = folder.parents[:2] if len(folder.parents) > 1 else (folder, folder)
    if snapshot.name == "snapshots" and (cached := CACHED.fullmatch(parent.name)):
        return "/".join(cached.groups())
    if cached := CACHED.fullmatch(folder.name):
        return "/".join(cached.groups())
    return one_line(folder.name)


def _snapshot(folder: Path) -> Path:
    """The snapshot in a model's folder of the hub's cache (models--ORG--NAME): the one that refs/main names,
    or the only one. InputError where that is not clear.
    """
    held = sorted(path for path in (folder / "snapshots").iterdir() if path.is_dir())
    with suppress(OSError, ValueError):
        main = folder / "snapshots" / (folder / "refs" / "main").read_text(encoding="utf-8").strip()
        if main in held:
            return main
    if len(held) == 1:
        return held[0]
    raise InputError(
        f"{folder} holds {len(held)} snapshots and refs/main names none of them; give one of them"
    )


def is_remote(model: str) -> bool:
    """Whether MODEL is a name on the hub rather than a folder."""
    return not Path(model).expanduser().exists() and HUB_NAME.fullmatch(model) is not None


def resolve(model: str, *, config_only: bool = False) -> Path:
    """The folder of MODEL: an existing folder, `bundled`, or a hub name such as "Qwen/Qwen3-0.6B".

    A hub name is downloaded to the hub's own cache: safetensors, configuration and tokenizer files only,
    and no weights when config_only. InputError when there is no such folder, or the hub cannot be reached.
    """
    folder = Path(model).expanduser()
    if not model:
        raise InputError("no folder ''; MODEL is empty")
    if folder.is_dir():
        cached = CACHED.fullmatch(folder.resolve().name) and (folder / "snapshots").is_dir()
        return _snapshot(folder) if cached and not (folder / "config.json").exists() else folder
    if model == BUNDLED:
        return bundled()
    if folder.exists():
        raise InputError(f"{model} is a file; give the folder that holds config.json and *.safetensors")
    if HUB_NAME.fullmatch(model):
        return _download(model, SMALL_FILES if config_only else SMALL_FILES + WEIGHTS)
    raise InputError(f"no folder {model!r}; give a Hugging Face folder, a hub name or {BUNDLED!r}")


def bundled() -> Path:
    """The folder of the model that comes with the package, for machines without a hub."""
    folder = Path(str(resources.files("tenth") / "data" / "tiny-7m"))
    if not (folder / "config.json").is_file():
        raise InputError("this installation of tenth lacks its bundled model; install the wheel again")
    return folder


def _download(name: str, patterns: list[str]) -> Path:
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise InputError(
            f"no folder {name!r}, and fetching it needs huggingface_hub: pip install 'tenth[fit]'"
        ) from error
    try:
        path = huggingface_hub.snapshot_download(name, allow_patterns=patterns, ignore_patterns=LEFT_OUT)
    except Exception as error:  # the client raises its own, its HTTP library's and the system's errors alike
        cause = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise InputError(f"no folder {name!r} here, and the hub did not give it: {cause[:200]}") from error
    return Path(path)
