"""The original that submissions are compared with: read once, kept in the work folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tenth.core.errors import InputError
from tenth.core.progress import Reporter
from tenth.core.records import Record, Runtime
from tenth.core.store import Store, sha256, write_text
from tenth.evaluation.evaluate import subject
from tenth.leaderboard import text_chunk
from tenth.leaderboard.division import Convert
from tenth.models import source
from tenth.models.checkpoint import open_checkpoint
from tenth.models.formats.inspect import read_header
from tenth.runtime import sandbox

_AMPLE = sandbox.Limits(memory=1 << 40, seconds=24 * 3600, file_bytes=1 << 40)
STAGE = 1  # raised whenever what is kept changes its meaning


class Original(Record):
    """A model on disk, and its answers."""

    name: str
    hashes: tuple[str, ...]  # any of which a manifest may give; the first one identifies it
    gguf: Path
    answers: Path  # folder of text_chunk.ReadOriginal
    bits: list[float]  # per byte, of each passage


def exact(context: int, threads: int) -> Runtime:
    """How the original runs: nothing rounded."""
    return Runtime(
        n_ctx=context, n_ubatch=512, type_k="f32", type_v="f32", flash_attention=False, threads=threads
    )


def prepare(
    against: str, text_chunks: Path, digest: str, context: int, threads: int, store: Store, reporter: Reporter
) -> Original:
    """Read the passages (a JSON list with that SHA-256) with the original. Raises InputError, NativeError."""
    path = Path(against).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise InputError(f"{against} is no .gguf; give a GGUF, a Hugging Face folder or a model's name")
        hashes: tuple[str, ...] = (subject(against).digest(),)
        name = path.name
    else:
        folder = source.resolve(against)
        checkpoint = open_checkpoint(folder)
        hashes = (checkpoint.hash(), sha256(*sorted(folder.glob("*.safetensors"))))
        name, path = checkpoint.name, folder
    made = store.stage(
        "original", {"hash": hashes[0], "stage": STAGE}, lambda here: _gguf(path, here, reporter)
    )
    gguf = made / "model.gguf"
    context = min(context, read_header(gguf).number("context_length") or context)

    def read(here: Path) -> None:
        with reporter.step("the original reads the text", 1.0) as advance:
            job = text_chunk.ReadOriginal(
                gguf=gguf, runtime=exact(context, threads), text=text_chunks, folder=here
            )
            box = sandbox.Sandbox(_AMPLE)
            reading = box.run(job, [gguf, text_chunks], here, lambda event: advance(event["done"]))
        if reading.misspelt:
            raise InputError(f"the original's tokens do not spell the text near {reading.misspelt!r}")
        write_text(here / "bits.json", json.dumps(reading.bits))

    what = {"hash": hashes[0], "text": digest, "context": context, "stage": STAGE}
    answers = store.stage("answers", what, read)
    bits = json.loads((answers / "bits.json").read_text(encoding="utf-8"))
    return Original(name=name, hashes=hashes, gguf=gguf, answers=answers, bits=bits)


def _gguf(path: Path, here: Path, reporter: Reporter) -> None:
    if path.is_file():
        shutil.copyfile(path, here / "model.gguf")
        return
    reporter.say("the original is written as a GGUF")
    sandbox.Sandbox(_AMPLE).run(Convert(source=path, destination=here / "model.gguf"), [path], here)
