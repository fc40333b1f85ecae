"""A loopback device with little memory: tenth measure --on against the bundle's own prediction.

    python bench/remote.py BUNDLE [--memory 600MB] [--brief]        (root; openssh-server)

sshd runs in a network namespace and under a memory limit of that size, which holds all that runs on the
"device": sshd, tar, Python, llama.cpp and the pages of every pushed file. One JSON line; status 1 where the
measured peak is more than 5 % from the predicted one. --brief: once at depth 0, for a busy machine; memory is
measured all the same.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import sshd

from tenth.cli.console import ConsoleReporter
from tenth.core.records import Measurement
from tenth.devices.catalogue import parse_size
from tenth.remote import run as running
from tenth.runtime.bundle import open_bundle

TOLERANCE = 0.05


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--memory", default="600MB")
    parser.add_argument("--brief", action="store_true")
    given = parser.parse_args()
    limit = parse_size(given.memory)
    with tempfile.TemporaryDirectory() as scratch:
        home, bundle = Path(scratch) / "sshd", Path(scratch) / "bundle"
        home.mkdir()
        shutil.copytree(given.bundle, bundle)
        predicted = open_bundle(bundle).plan.memory.held
        device = sshd.start(home, memory=limit)
        os.environ["PATH"] = device.path
        try:
            verb = ["measure", "OUT", "--json", "--counter", "none", "--idle", "0"]
            verb += ["--depths", "0", "--repeats", "1"] if given.brief else []
            place = running.Place(f"{sshd.HOST}:{scratch}/there")
            measured, _ = running.measure(bundle, place, verb, ConsoleReporter())
        finally:
            device.stop()
        left = (Path(scratch) / "there").exists()
    assert isinstance(measured, Measurement)
    readings = {reading.name: reading.value for reading in measured.readings}
    error = readings["peak"] / predicted - 1
    line = {
        "bench": "remote",
        "model": measured.model,
        "device_memory": limit,
        "namespace": device.isolated,
        "predicted": predicted,
        "peak": readings["peak"],
        "error": round(error, 4),
        "peak_file_backed": readings["peak_file_backed"],
        "peak_anonymous": readings["peak_anonymous"],
        "major_faults": readings["major_faults"],
        "left_behind": left,
        "decode": [(depth.depth, round(depth.decode.value, 1)) for depth in measured.depths],
    }
    print(json.dumps(line))
    sys.exit(int(abs(error) > TOLERANCE or left))


if __name__ == "__main__":
    main()
