"""Attacks on the judge: a round in which all but one submission are hostile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import forged

from attacks.report import attack
from tenth.leaderboard import run, submission
from tenth.leaderboard.exam import Quiet

EVERY = 12  # of the corpus of broken headers one in so many: each takes a process
DIGITS = "9" * 5000
MANIFESTS = {
    "digits": f"name = {DIGITS}",
    "negative digits": f"[runtime]\nn_ubatch = -{DIGITS}",
    "deep array": "a = " + "[" * 30_000 + "]" * 30_000,
    "deep table": "a = " + "{a=" * 10_000 + "1" + "}" * 10_000,
    "deep key": "a." * 20_000 + "a = 1",
    "a date": "name = 2024-02-30T99:99:99Z",
    "not a number": "[runtime]\nn_ubatch = nan",
    "long": 'name = "' + "a" * 60_000 + '"',
    "too long": "# " + "a" * 100_000,
    "no UTF-8": "name = '\udcff'",
    "a surrogate": 'name = "\\uD800"',
    "empty": "",
}
NAMES = [b"caf\xe9", b"\xff", b"a\nb", b"\x1b[2J", "\u202e".encode(), b"-rf", b"%s%n"]


def _settings(place: Path, *names: str) -> run.JudgeSettings:
    folder = place / "submissions"
    return run.JudgeSettings(
        places=tuple(folder / name for name in names) or (folder,),
        results=place / "results",
        device="pixel-8",
        share="0.75%",
        against=str(place / "original.gguf"),
        text_chunks=4,
        context=512,
        jobs=2,
        threads=1,
        work=place / "work",
    )


def _hostile(place: Path, original: Path) -> None:
    """All folders that are to be disqualified."""
    raw, folder = original.read_bytes(), place / "submissions"
    for number, (name, lie) in enumerate([*forged.LIES.items(), *_corpus()]):
        forged.submission(folder, f"header-{number}-{name}", lie)
    for number, text in enumerate(MANIFESTS.values()):
        made = forged.submission(folder, f"manifest-{number}", raw)
        (made / submission.MANIFEST).write_bytes(text.encode("utf-8", "surrogateescape"))
    values: dict[str, object] = {"nine": 9, "text": "2", "array": [2], "nan": float("nan"), "yes": True}
    for name, value in values.items():
        made_of = forged.edited(original, place / "edited.gguf", {"split.count": value})
        forged.submission(folder, f"split-{name}", made_of.read_bytes())
    for name, value in {"short": 100, "zero": 0, "text": "512", "array": [512]}.items():
        made_of = forged.edited(original, place / "edited.gguf", {"llama.context_length": value})
        forged.submission(folder, f"context-{name}", made_of.read_bytes())
    scratch = {"division": "scratch", "base": "scratch"}
    forged.submission(folder, "copied", raw, **scratch)
    quantised = forged.model(place / "quantised.gguf", kind="Q4_0")
    forged.submission(folder, "copied-in-4-bits", quantised.read_bytes(), **scratch)
    disguised = forged.disguised(original, place / "disguised.gguf")
    forged.submission(folder, "copied-in-disguise", disguised.read_bytes(), **scratch)
    for kind in ("pipe", "link", "folder", "sparse"):
        _no_file(forged.submission(folder, f"file-{kind}") / "model.gguf", kind)


def _no_file(path: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path.touch()
        os.truncate(path, 1 << 42)


def _corpus() -> list[tuple[str, bytes]]:
    return [(name, raw) for name, (raw, _) in list(forged.corpus().items())[::EVERY]]


def _round(place: Path) -> dict[str, bool]:
    original = forged.model(place / "original.gguf")
    forged.submission(place / "submissions", "honest", original.read_bytes(), division="bits")
    _hostile(place, original)
    for name in NAMES:
        forged.submission(place / "submissions", os.fsdecode(name), original.read_bytes(), division="bits")
    done = run.judge_all(_settings(place), Quiet())
    printable = {"honest", "-rf", "%s%n"}
    outcomes = {
        verdict.submission: (verdict.status == "ranked") == (verdict.submission in printable)
        and verdict.reason.isprintable()
        and len(verdict.reason) <= 600
        for verdict in done.verdicts
    }
    wanted = {submission.printable(folder.name) for folder in (place / "submissions").iterdir()}
    return {name: outcomes.get(name, False) for name in sorted(wanted)}


def _swaps(place: Path) -> dict[str, bool]:
    """The file is exchanged while it is judged: for another, in its place, or for a pipe."""
    raw, outcomes = (place / "original.gguf").read_bytes(), {}
    for how in ("another", "in place", "pipe"):
        folder = forged.submission(place / "submissions", f"swap-{how[:2]}", raw, division="bits")
        artifact = submission.open_submission(folder, 1 << 30).artifact
        swapper = threading.Thread(target=_swap, args=(place, folder, how))
        swapper.start()
        verdict = run.judge_all(_settings(place, folder.name), Quiet()).verdicts[0]
        swapper.join()
        outcomes[how] = (verdict.status, verdict.artifact) == ("ranked", artifact)
    return outcomes


def _swap(place: Path, folder: Path, how: str) -> None:
    end = time.monotonic() + 60
    while not list((place / "results").glob(f"{folder.name}-*.log")) and time.monotonic() < end:
        time.sleep(0.01)
    file = folder / "model.gguf"
    if how != "in place":
        file.unlink()
    if how == "pipe":
        os.mkfifo(file)
    else:
        file.write_bytes(forged.LIES["cut"])


def _signals(place: Path) -> dict[str, bool]:
    """Ended in the middle: nothing stays in the temporary folder, nothing runs on."""
    outcomes = {}
    for how in (signal.SIGINT, signal.SIGTERM):
        temporary = place / how.name
        temporary.mkdir()
        words = ["judge", str(place / "submissions" / "honest"), "--device", "pixel-8", "--share", "0.75%"]
        words += ["--against", str(place / "original.gguf"), "--threads", "1", "--work", str(place / "work")]
        process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-c",
                "from tenth.cli.app import main; main()",
                *words,
                "-o",
                str(temporary / "r"),
            ],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(temporary)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        end = time.monotonic() + 60
        while not list(temporary.glob("r/*.log")) and time.monotonic() < end:
            time.sleep(0.01)
        process.send_signal(how)
        outcomes[how.name] = process.wait(60) == 130 and [file.name for file in temporary.iterdir()] == ["r"]
    return outcomes


def attacks() -> Iterator[dict[str, object]]:
    """Some two minutes."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        yield attack("judge: hostile submissions", _round(place))
        yield attack("judge: files exchanged while they are judged", _swaps(place))
        yield attack("judge: ended by a signal", _signals(place))


if __name__ == "__main__":
    for line in attacks():
        print(json.dumps(line))
