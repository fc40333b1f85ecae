"""Attacks on the terminal: sequences and markup in names, paths, units, models, devices, and answers."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from bundles import write_bundle

from attacks.report import attack
from tenth.core import children

tiny = importlib.import_module("tiny")  # mypy would check transformers with it
TENTH = children.python("from tenth.__main__ import main; main()")
STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
SEQUENCES = {
    "a title": "\x1b]0;owned\x07",
    "a cleared screen": "\x1b[2J\x1b[H",
    "C1": "\x9b31m\x9d0;a\x9c",
    "the clipboard": "\x1b]52;c;b3duZWQ=\x1b\\",
    "a link": "\x1b]8;;http://evil.example\x1b\\a\x1b]8;;\x1b\\",
    "an answer back": "\x1b[c\x1b[6n\x1bP$q\x1b\\",
    "backspaces": "a\b\b\b\rb\x7f",
    "right to left": "\u202egpj.exe\u2066",
    "line breaks": "a\nb\u2028c\x85d\x0ce",
    "markup": "[bold red]a[/bold red][link=http://evil.example]b[/link]",
}


def _clean(words: list[object]) -> bool:
    """Whether a command answers without a sequence and without a traceback."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*TENTH, *map(str, words)], capture_output=True, timeout=120, check=False, env=environment
    )
    shown = (done.stdout + done.stderr).decode()
    return "Traceback" not in shown and not STEERING.search(shown.replace("\n", "").replace("\t", ""))


def _places(place: Path, sequence: str) -> dict[str, bool]:
    """One sequence in every place."""
    model = place / "model"
    plan: list[object] = ["plan", model, "--memory", "100MB", "--context", "64"]
    named = place / f"m{sequence.replace('/', ':')}"
    shutil.copytree(model, named, dirs_exist_ok=True)
    bundle = write_bundle(place / "bundle")
    card = json.loads((bundle / "plan.json").read_text()) | {"model": sequence, "architecture": sequence}
    (bundle / "plan.json").write_text(json.dumps(card))
    device = place / "device.toml"
    device.write_text(f"name = {json.dumps(sequence)}\ntitle = {json.dumps(sequence)}\n")
    key = place / "keyed"
    shutil.copytree(model, key, dirs_exist_ok=True)
    config = json.loads((key / "config.json").read_text()) | {"model_type": sequence}
    (key / "config.json").write_text(json.dumps(config))
    return {
        "a model's folder": _clean(["plan", named, *plan[2:]]),
        "a model's folder, as JSON": _clean(["plan", named, *plan[2:], "--json"]),
        "an absent model": _clean(["plan", f"{named}-absent", "--memory", "1GB"]),
        "a model's type": _clean(["plan", key, *plan[2:]]),
        "a device's name": _clean([*plan[:2], "--device", sequence]),
        "a device's file": _clean([*plan[:2], "--device", device]),
        "a size": _clean([*plan[:2], "--memory", sequence]),
        "a verb": _clean([sequence]),
        "an option": _clean(["plan", f"--{sequence}"]),
        "a plan": _clean(["report", bundle]),
        "a served model": _clean(["chat", bundle, "--prompt", sequence, "--max-tokens", "60"]),
        "an absent submission": _clean(["judge", named, "--device", "pixel-8"]),
        "a device to push to": _clean(["push", bundle, sequence]),
    }


def attacks() -> Iterator[Mapping[str, object]]:
    """Some two minutes."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        tiny.make_model(place / "model", "llama", "tied")
        for name, sequence in SEQUENCES.items():
            yield attack(f"terminal: {name}", _places(place, sequence))


if __name__ == "__main__":
    for each in attacks():
        print(json.dumps(each), flush=True)
