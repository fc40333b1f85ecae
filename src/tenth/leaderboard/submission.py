"""A submission: a folder with an artifact and submission.toml. Opened as a stranger's, or made from a bundle.

The artifact is one GGUF, or config.json, safetensors and tokenizer files. Nothing else may lie there but a
README.md and a LICENSE: no folders, no links, no code, no pickles. The judge copies the files, and hashes and
judges the copies: what happens to the originals meanwhile changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from tenth import __version__
from tenth.core.errors import InputError
from tenth.core.format import megabytes
from tenth.core.records import Plan
from tenth.leaderboard.records import DIVISIONS, SCRATCH, Division, Manifest, Settings
from tenth.runtime.bundle import FOLDER, new, open_bundle

MANIFEST = "submission.toml"
MANIFEST_AT_MOST = 64 * 1024  # bytes
FILES_AT_MOST = 500
WORDS = ("README.md", "LICENSE")  # for people; no part of the artifact
BESIDE = {
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
}
_BLOCK = 1 << 20  # bytes copied at a time
_BESIDE_WEIGHTS = 256 << 20  # bytes of tokenizers and the like, which need not be in memory
UNSAID = "not declared"

TEMPLATE = f"""\
# A submission is a folder: this file and model.gguf (or config.json, *.safetensors, tokenizer files).
name = "my model in 3 bits"
base = "SmolLM2-135M"        # the original's name; "{SCRATCH}" if there is none
# SHA-256 of the original's weights: sha256sum model.safetensors (of shards: cat *.safetensors | sha256sum),
# or of a GGUF. May be left out.
base_hash = ""
division = "bits"            # {" | ".join(DIVISIONS)}
method = "llama-quantize, Q3_K_M, imatrix from 100 chunks"
data = "calibrated on wikitext-2 train"   # all data that calibration or training saw
licence = "Apache-2.0"

[runtime]                    # how to start llama.cpp; all of it may be left out
n_ubatch = 512
type_k = "f16"
type_v = "f16"
flash_attention = true
"""


@dataclass(frozen=True)
class Submission:
    """A folder that was looked at. trouble: why it cannot be judged; empty where it can."""

    folder: Path
    manifest: Manifest | None = None
    manifest_hash: str = ""
    files: tuple[Path, ...] = ()  # of the artifact; copies where open_submission was given a place for them
    artifact: str = ""  # SHA-256 of what `sha256sum FILES` prints
    bytes: int = 0  # of the artifact
    form: Literal["gguf", "folder", ""] = ""
    trouble: str = ""

    @property
    def name(self) -> str:
        """The name of the submission's folder; what cannot be printed is spelt with backslashes."""
        return printable(self.folder.name)


def find_submissions(places: list[Path]) -> list[Path]:
    """Submissions: the given folders that hold a submission.toml, and those inside the others.

    Raises InputError where there is none, or two have one name.
    """
    folders: list[Path] = []
    for place in places:
        if not place.is_dir():
            raise InputError(f"no folder {str(place)!r}; give a submission, or a folder of submissions")
        if printable(str(place.resolve().parent)) != str(place.resolve().parent):
            raise InputError(f"the path {str(place)!r} is no printable UTF-8; rename its folders")
        try:
            inside = sorted(entry for entry in place.iterdir() if entry.is_dir() and not entry.is_symlink())
            whole = (place / MANIFEST).exists() or not inside
        except OSError:  # a submission that cannot be read, which `open_submission` says
            whole = True
        if whole:
            folders.append(place.resolve())
        else:
            folders += [entry.resolve() for entry in inside if not entry.name.startswith(".")]
    names = [folder.name for folder in folders]
    if not folders:
        raise InputError("no submissions there; a submission is a folder with a submission.toml")
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"two submissions are called {min(twice)!r}; rename one of the folders")
    return folders


def printable(name: str) -> str:
    """A file's name in letters that a terminal shows and UTF-8 knows."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def open_submission(folder: Path, budget: int, copies: Path | None = None) -> Submission:
    """Look at a folder; whatever is wrong with it is its `trouble`, never an exception.

    copies: an empty folder that the artifact is copied to; `files`, `artifact` and `bytes` are then those of
    the copies. Files that are far over the budget (bytes) are not even read: they may be endless.
    """
    submission = Submission(folder.resolve())
    try:
        if submission.name != folder.name:
            raise InputError(f"the name of its folder, {submission.name}, is no printable UTF-8; rename it")
        raw = _read(folder / MANIFEST)
        submission = replace(submission, manifest_hash=hashlib.sha256(raw).hexdigest())
        files, total = _listed(folder)
        submission = replace(submission, files=tuple(files), bytes=total)
        if total > budget + _BESIDE_WEIGHTS:
            raise InputError(
                f"over the budget: its files are {megabytes(total)} MB, of {megabytes(budget)} MB"
            )
        if copies is not None:
            files, total = _copied(files, copies, total)
            submission = replace(submission, files=tuple(files), bytes=total)
        submission = replace(submission, artifact=_digest(files), manifest=read_manifest(raw))
        return replace(submission, form=_form(files))
    except InputError as error:
        return replace(submission, trouble=str(error))
    except OSError as error:
        return replace(submission, trouble=f"a file cannot be read: {error.strerror or error}")
    except (ArithmeticError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as error:
        # Nothing of the kind is known; one submission must not end the round for all others.
        return replace(submission, trouble=f"it cannot be read: {type(error).__name__}: {error!s:.200}")


@contextmanager
def _opened(file: Path) -> Iterator[BufferedReader]:
    """A plain file, opened; InputError where it is by now a link, a pipe or a device, which could hang."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with os.fdopen(os.open(file, flags), "rb") as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise InputError(f"{file.name!r:.100} is no plain file")
        yield stream


def _copied(files: list[Path], into: Path, most: int) -> tuple[list[Path], int]:
    """(copies of the files, their bytes together); InputError where they grow beyond `most` bytes."""
    copies, total = [], 0
    for file in files:
        with _opened(file) as source, (into / file.name).open("xb") as copy:
            while block := source.read(_BLOCK):
                total += len(block)
                if total > most:
                    raise InputError(f"{file.name!r:.100} changed while it was read")
                copy.write(block)
        copies.append(into / file.name)
    return copies, total


def _listed(folder: Path) -> tuple[list[Path], int]:
    """(files of the artifact by name, their bytes together)."""
    files, total = [], 0
    for count, entry in enumerate(folder.iterdir()):
        name, status = entry.name, entry.lstat()
        if count >= FILES_AT_MOST:
            raise InputError(f"it holds more than {FILES_AT_MOST} files")
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{name!r:.100} is no plain file; folders and links have no place here")
        if name == MANIFEST or name in WORDS:
            continue
        if name not in BESIDE and entry.suffix not in (".gguf", ".safetensors"):
            raise InputError(
                f"{name!r:.100} has no place in a submission: GGUF, or safetensors and tokenizer"
            )
        files.append(entry)
        total += status.st_size
    return sorted(files), total


def _form(files: list[Path]) -> Literal["gguf", "folder"]:
    ggufs = [file for file in files if file.suffix == ".gguf"]
    if len(ggufs) == 1 and len(files) == 1:
        return "gguf"
    if not ggufs and any(file.name == "config.json" for file in files):
        return "folder"
    raise InputError(
        "it must hold one .gguf and nothing beside it, or config.json with safetensors and tokenizer"
    )


def _digest(files: list[Path]) -> str:
    lines = []
    for file in files:
        with _opened(file) as stream:
            lines.append(f"{hashlib.file_digest(stream, 'sha256').hexdigest()}  {file.name}\n")
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _read(file: Path) -> bytes:
    try:
        if not stat.S_ISREG(file.lstat().st_mode):
            raise InputError(f"{MANIFEST} is no plain file")
        with _opened(file) as stream:
            raw = stream.read(MANIFEST_AT_MOST + 1)
    except FileNotFoundError:
        raise InputError(f"{MANIFEST} is missing; tenth submit --template prints one") from None
    if len(raw) > MANIFEST_AT_MOST:
        raise InputError(f"{MANIFEST} is over {MANIFEST_AT_MOST} bytes; it should be a few lines")
    return raw


def read_manifest(raw: bytes) -> Manifest:
    """A submission.toml. Raises InputError naming the first thing wrong with it."""
    try:
        return Manifest.model_validate(tomllib.loads(raw.decode("utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        known = f"; known: {', '.join(Manifest.model_fields)}" if first["type"] == "extra_forbidden" else ""
        raise InputError(f"{MANIFEST}: {where:.100}: {first['msg']:.200}{known}") from None
    except (ValueError, RecursionError) as error:  # a number of more than 4,300 digits is a plain ValueError
        raise InputError(f"{MANIFEST} is not TOML: {str(error) or type(error).__name__:.200}") from None


@dataclass(frozen=True)
class Statement:
    """What a submission says of itself; what is empty comes from the plan, or is "not declared"."""

    name: str = ""
    base: str = ""
    division: Division | None = None
    method: str = ""
    data: str = ""
    licence: str = ""


def make(
    bundle: Path, destination: Path, declared: Statement = Statement(), *, folder: bool = False
) -> Manifest:
    """Make a submission from a bundle.

    folder: take OUT/hf instead of the GGUF. Raises InputError (no bundle, no such folder), OutputError.
    """
    opened = open_bundle(bundle)
    plan = opened.plan
    source = bundle / FOLDER
    if folder and not source.is_dir():
        raise InputError(
            f"{bundle} holds no Hugging Face folder; fit it with --format hf, or submit its GGUF"
        )
    # Of a smaller model the hash is not the original's.
    base_hash = "" if declared.base or plan.structure else plan.model_hash
    manifest = Manifest(
        name=declared.name or destination.name,
        base=declared.base or plan.model,
        division=declared.division or _division(plan, folder),
        base_hash=base_hash,
        method=declared.method or f"tenth {__version__} fit",
        data=declared.data or UNSAID,
        licence=declared.licence or UNSAID,
        runtime=Settings.model_validate(plan.runtime.model_dump(exclude={"n_ctx", "threads"})),
    )
    with new(destination) as partial:
        if folder:
            for file in sorted(source.iterdir()):
                if file.name in BESIDE or file.suffix == ".safetensors":
                    shutil.copyfile(file, partial / file.name)
        else:
            shutil.copyfile(opened.gguf, partial / opened.gguf.name)
        (partial / MANIFEST).write_text(written(manifest), encoding="utf-8")
    return manifest


def _division(plan: Plan, folder: bool) -> Division:
    """Where a bundle belongs by its plan, or its Hugging Face folder."""
    quantised = any(kind not in ("F32", "F16", "BF16") for kind in plan.types.values())
    if folder or not quantised:
        return "structure" if plan.structure else "open"
    return "open" if plan.structure else "bits"


def written(manifest: Manifest) -> str:
    """The manifest as TOML, whose basic strings are escaped as JSON's are."""
    fields = manifest.model_dump(exclude={"runtime"})
    lines = [f"{key} = {_quoted(value)}" for key, value in fields.items() if value]
    lines += ["", "[runtime]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in manifest.runtime.model_dump().items()]
    return "\n".join([*lines, ""])


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
