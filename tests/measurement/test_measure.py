"""tenth measure on a bundle of a tiny random model: real runs, a counter whose file is written meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from bundles import SETTINGS, write_bundle
from commands import Shell
from hypothesis import given
from hypothesis import strategies as st
from test_counters import package
from waiting import soon

from tenth.cli import app
from tenth.cli.console import ConsoleReporter
from tenth.core import jobs
from tenth.core.errors import InputError, NativeError
from tenth.core.records import Estimate, Forecast, Measurement, Requirements, Runtime, Sample, Scorecard
from tenth.measurement import depth, measure
from tenth.measurement.check import sample
from tenth.measurement.measure import MeasureSettings, usual_depths
from tenth.report import page
from tenth.runtime.bundle import read_measurements

QUICK = MeasureSettings(depths=(0, 128), repeats=2, counter="none")
WATTS = 5.0


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return sample(write_bundle(tmp_path_factory.mktemp("made")) / "model.gguf", Runtime(**SETTINGS))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "out")


@pytest.fixture
def powered(tmp_path: Path) -> Iterator[Path]:
    """The root of a machine whose processor takes WATTS, and whose counter wraps within two seconds."""
    file = package(tmp_path / "root", "intel-rapl:0", "package-0", 0, span=8_000_000)
    begin, done = time.monotonic(), threading.Event()

    def count() -> None:
        while not done.wait(0.005):
            partial = file.with_suffix(".partial")
            partial.write_text(f"{int(1e6 * WATTS * (time.monotonic() - begin)) % 8_000_000}\n")
            partial.replace(file)

    thread = threading.Thread(target=count)
    thread.start()
    yield tmp_path / "root"
    done.set()
    thread.join()


def said(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, object], str]:
    with pytest.raises(SystemExit) as caught:
        app.main([*map(str, words), "--json"])
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), json.loads(out), err


def test_a_whole_measurement_with_an_energy_counter(tmp_path: Path, recorded: Sample, powered: Path) -> None:
    folder = write_bundle(tmp_path / "out", sample=recorded)
    options = MeasureSettings((0, 128), 2, minutes=0.02, idle=0.0, root=powered)
    found = measure.measure(folder, options, ConsoleReporter())
    assert [d.depth for d in found.depths] == [0, 128]
    assert all(d.decode.value > 0 and d.decode.count == 2 and d.prefill for d in found.depths)
    for name in ("load", "load_cold", "ttft", "ttft_cold", "decode_first", "decode_last", "kept"):
        reading = found.reading(name)
        assert reading is not None, name
        assert reading.value > 0, name
    parts = [found.reading(name) for name in ("peak", "peak_file_backed", "peak_anonymous")]
    held, of_files, anonymous = (part.value if part else 0.0 for part in parts)
    assert of_files >= (folder / "model.gguf").stat().st_size - 65536
    assert max(of_files, anonymous) <= held <= of_files + anonymous + 1e6
    assert found.energy == "counter rapl: CPU package-0 (RAPL)"
    for name in ("power_idle", "power_decode", "power_prefill", "power_sustained"):
        reading = found.reading(name)
        assert reading is not None, name
        assert reading.value == pytest.approx(WATTS, rel=0.2), name
    gross, net = found.reading("energy_decode"), found.reading("energy_decode_net")
    assert gross is not None
    assert net is not None
    assert gross.value > 0
    assert abs(net.value) < 0.3 * gross.value, "all of it was there at rest"
    assert found.offline.connections == 0
    assert found.offline.inside == ["model.gguf"]
    assert len(found.checks) == 3
    assert found.over_time
    assert (
        read_measurements(folder, Scorecard.model_validate_json((folder / "scorecard.json").read_text()))
    ) == {"this device": found}
    drawn = page.write(folder).read_text()
    for heading in ("On this device", "writing speed over time", "counter rapl"):
        assert heading in drawn


def test_the_command_prints_one_object_and_a_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [sys.executable, "-m", "tenth", "measure", str(folder), "--repeats", "1", "--depths", "0,100"]
    code = "import sys; sys.modules['torch'] = None; from tenth.cli.app import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *words[3:], "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = Measurement.model_validate_json(done.stdout)
    assert [d.depth for d in found.depths] == [0, 100]
    assert (folder / "measure.json").read_text() == found.model_dump_json(indent=1)
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    for shown in ("TPOT", "peak memory", "attempted connections", "tokens compared", "report.html"):
        assert shown in done.stderr
    assert {file.name for file in folder.iterdir()} == {
        "model.gguf",
        "plan.json",
        "scorecard.json",
        "measure.json",
        "report.html",
        "log.txt",
    }


def test_without_a_counter_an_estimate_stands_in_or_nothing(folder: Path) -> None:
    bare = measure.measure(folder, QUICK, ConsoleReporter())
    assert bare.reading("energy_decode") is None
    assert bare.energy.startswith("not measured")
    guess = Estimate(
        name="joules", value=0.3, low=0.2, high=0.5, unit="J/token", kind="predicted", conditions="5 W"
    )
    forecast = Forecast(
        device="toaster",
        backend="cpu",
        requirements=Requirements(),
        binding=[],
        platform="",
        estimates=[guess],
    )
    found = measure.measure(
        write_bundle(folder.parent / "planned", forecast=forecast), QUICK, ConsoleReporter()
    )
    reading = found.reading("energy_decode")
    assert reading is not None
    assert (reading.value, reading.unit, reading.kind) == (0.3, "J/token", "estimated")
    assert reading.conditions == "for toaster, not measured: 5 W; 0.20 to 0.50 J/token"
    assert found.reading("energy_prefill") is None, "not made up where the plan has none"
    assert found.energy.startswith("estimated for toaster")
    assert "for toaster, not measured" in page.write(folder.parent / "planned").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--depths", "0,225"], "depth 225 is not possible: the bundle has a context of 256 tokens"),
        (["--depths", "-1"], "depth -1 is not possible"),
        (["--depths", "0,10"], "depths 0 and 10 overlap"),
        (["--depths", "deep"], "is no list of numbers"),
        (["--counter", "nothing"], "unknown energy counter 'nothing'"),
        (["--counter", "apple"], "this is no Apple Silicon Mac"),
    ],
)
def test_impossible_wishes(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    status, out, err = said(capsys, "measure", folder, *words)
    assert status == 2
    assert message in out["error"]["message"]  # type: ignore[index]
    assert err.count("\n") == 1
    assert not (folder / "measure.json").exists()


@pytest.mark.parametrize("missing", ["model.gguf", "plan.json", "scorecard.json"])
def test_a_folder_that_is_no_bundle(folder: Path, capsys: pytest.CaptureFixture[str], missing: str) -> None:
    (folder / missing).unlink()
    status, out, _ = said(capsys, "measure", folder)
    assert status == 2
    assert f"(no {missing})" in out["error"]["message"]  # type: ignore[index]


def test_a_changed_file_is_noticed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (folder / "model.gguf").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    status, out, _ = said(capsys, "measure", folder)
    assert status == 2
    assert "is not the file that scorecard.json is about" in out["error"]["message"]  # type: ignore[index]


def test_answers_that_are_not_the_recorded_ones_do_not_count(tmp_path: Path, recorded: Sample) -> None:
    other = recorded.model_copy(update={"tokens": [(t + 1) % 300 for t in recorded.tokens]})
    with pytest.raises(NativeError, match="differs from the one recorded"):
        measure.measure(write_bundle(tmp_path / "a", sample=other), QUICK, ConsoleReporter())
    other = recorded.model_copy(update={"prompt": [*recorded.prompt, 1]})
    with pytest.raises(NativeError, match="splits text into other tokens"):
        measure.measure(write_bundle(tmp_path / "b", sample=other), QUICK, ConsoleReporter())
    assert not list(tmp_path.glob("*/measure.json"))


def test_a_fast_wrong_run_does_not_count(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = jobs.run

    def wrong(job: jobs.Job[jobs.Result], *rest: Any, **named: Any) -> Any:
        result = run(job, *rest, **named)
        if isinstance(result, depth.DepthFigures):
            scored = [(at, (token + 7) % 300, nats) for at, token, nats in result.scored]
            return result.model_copy(update={"scored": scored})
        return result

    monkeypatch.setattr(jobs, "run", wrong)
    with pytest.raises(NativeError, match="the answers of the timed run are not the file's"):
        measure.measure(folder, QUICK, ConsoleReporter())
    assert not (folder / "measure.json").exists()


def test_a_measurement_of_another_file_is_refused(folder: Path) -> None:
    measure.measure(folder, QUICK, ConsoleReporter())
    card = Scorecard.model_validate_json((folder / "scorecard.json").read_text())
    with pytest.raises(InputError, match=r"about another model\.gguf"):
        read_measurements(folder, card.model_copy(update={"sha256": "0" * 64}))
    (folder / "measure.json").write_text('{"version": 2}')
    with pytest.raises(InputError, match="is not a measurement"):
        read_measurements(folder, card)
    (folder / "measure.json").unlink()
    (folder / "measure-pi.json").write_text("[]")
    with pytest.raises(InputError, match=r"measure-pi\.json is not a measurement"):
        read_measurements(folder, card)


@given(st.integers(1, 200_000))
def test_usual_depths_leave_room(n_ctx: int) -> None:
    prefill, decode = depth.sizes(n_ctx)
    depths = usual_depths(n_ctx)
    assert depths[0] == 0
    assert depths[-1] + decode <= n_ctx
    assert all(other - one >= decode for one, other in pairwise(depths))
    assert n_ctx < 1024 or depths[-1] + decode + prefill <= n_ctx


@pytest.mark.parametrize("n_ctx", [1024, 2048, 4096])
def test_usual_depths_reach_the_end(n_ctx: int) -> None:
    assert usual_depths(n_ctx)[-1] == n_ctx - sum(depth.sizes(n_ctx))


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_killed_measurement_leaves_nothing_and_a_second_one_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell, temporary = Shell(folder.parent), folder.parent / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    words = ["measure", folder, "--depths", "0", "--counter", "none", "--repeats", 1]
    before = {path.name for path in folder.iterdir()}
    for steps in (1, 3):
        process = shell.start(*words[:-1], 1000)  # that does not end before it is killed
        assert process.stderr is not None
        for _ in range(steps):
            assert process.stderr.readline()
        second = shell.run(*words)
        assert second.returncode == 2
        assert "being made or measured by another run" in second.stderr
        process.kill()
        process.communicate()
        soon(lambda: not shell.running(), "a child outlived its parent", 10)
        assert {path.name for path in folder.iterdir()} - {"log.txt"} == before - {"log.txt"}
    done = shell.run(*words)
    assert done.returncode == 0, done.stderr
    made = {"measure.json", "report.html", "log.txt"}
    assert {path.name for path in folder.iterdir()} | made == before | made
    assert not list(temporary.iterdir())
