"""The command line as a person meets it: real processes, one-line errors, one JSON object."""

import json
import os
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from commands import COMMAND
from rich.console import Console

from tenth import __version__
from tenth.cli import app, commands
from tenth.cli.commands._options import TargetOptions
from tenth.cli.console import ConsoleReporter
from tenth.core.errors import BudgetError, InputError, OutputError, TenthError
from tenth.models import source
from tenth.runtime.bundle import BUNDLE_FILES, check_destination

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 300,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def run(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "100"},
    )


def in_process(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        app.main(words)
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


def failing(error: BaseException) -> Any:
    def run() -> None:
        raise error

    return run


def test_help_lists_the_commands_and_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom tenth.cli.app import main\n"
        "try: main(['--help'])\n"
        "finally: print([m for m in ('torch', 'transformers', 'numpy', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    for command in ("fit", "plan", "chat", "serve", "devices", "measure", "push", "report"):
        assert f"  {command} " in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_verb_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "praise.py").write_text("PLACE = 15\n\ndef praise() -> None:\n    'Say well done.'\n")
    before = list(commands.known())
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    assert list(commands.known()) == [before[0], "praise", *before[1:]]


@pytest.mark.parametrize("command", commands.known())
def test_every_command_takes_json(capsys: pytest.CaptureFixture[str], command: str) -> None:
    status, out, _ = in_process(capsys, command, "--help")
    assert status == 0
    assert "--json" in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert in_process(capsys, "--version") == (0, f"{__version__}\n", "")


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tenth", "--version"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"{__version__}\n")


def test_devices_as_text_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = in_process(capsys, "devices")
    assert (status, err) == (0, "")
    assert "pixel-8" in out
    assert "800 MB" in out
    assert "this-machine" in out
    status, out, err = in_process(capsys, "devices", "--share", "25%", "--json")
    rows = {row["name"]: row for row in json.loads(out)["devices"]}
    assert (status, err) == (0, "")
    assert rows["pixel-8"]["budget"] == 2_000_000_000
    assert set(rows["pixel-8"]) >= {"dram", "memory", "bandwidth", "backends", "power", "battery", "share"}
    assert set(rows["pixel-8"]["dram"]) == {"value", "source", "date", "estimated"}


def test_an_error_is_one_line_and_status_2_without_a_traceback() -> None:
    done = run("plan", "bundled", "--device", "pixel8")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("tenth: error: unknown device 'pixel8'. Did you mean 'pixel-8'?")
    assert done.stderr.count("\n") == 1


def test_with_json_an_error_is_one_object_on_stdout() -> None:
    done = run("plan", "bundled", "--device", "pixel8", "--json")
    error = json.loads(done.stdout)["error"]
    assert done.returncode == 2
    assert error["kind"] == "InputError"
    assert "Did you mean 'pixel-8'?" in error["message"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plan", "MODEL"], "either --device NAME"),
        (["plan", "MODEL", "--device", "pixel-8", "--memory", "1GB"], "not both"),
        (["plan", "MODEL", "--memory", "1GB", "--min-speed", "5"], "--min-speed is about a device"),
        (["plan", "MODEL", "--memory", "1GB", "--grid", "400"], "--grid is about a device"),
        (["plan", "MODEL", "--device", "pixel-8", "--min-speed", "-1"], "--min-speed -1"),
        (["plan", "MODEL", "--device", "pixel-8", "--max-joules", "nan"], "--max-joules nan"),
        (["plan", "MODEL", "--device", "pixel-8", "--backend", "npu"], "no backend 'npu'; it has cpu"),
        (["plan", "MODEL", "--device", "mac-mini-m4", "--battery-hours", "4"], "has no battery"),
        (["plan", "MODEL", "--device", "pixel-8", "--battery-hours", "400"], "doing nothing takes"),
        (["plan", "MODEL", "--device", "pixel-8", "--min-speed", "999999"], "the best that can be had is"),
        (["plan", "MODEL", "--memory", "1GB", "--share", "5%"], "--share is a share of a --device"),
        (["plan", "MODEL", "--memory", "800"], "the unit is missing"),
        (["plan", "MODEL", "--device", "pixel-8", "--share", "10"], "did you mean 10%"),
        (["plan", "MODEL", "--memory", "1GB", "--context", "513"], "max_position_embeddings is 512"),
        (["plan", "MODEL", "--memory", "1GB", "--context", "0"], "give 1 or more"),
        (["plan", "no/such/folder", "--memory", "1GB"], "no folder 'no/such/folder'"),
        (["plan", "MODEL/config.json", "--memory", "1GB"], "is a file"),
        (["fit", "MODEL", "--memory", "1GB", "-o", "MODEL"], "is not empty"),
        (["fit", "MODEL", "--memory", "1GB", "-o", "MODEL/config.json"], "is a file"),
        (
            ["fit", "MODEL", "--memory", "1GB", "-o", "NEW", "--text", "nothing.txt"],
            "no text file 'nothing.txt'",
        ),
        (["fit", "MODEL", "--memory", "1GB"], "--out requires an argument"),
        (["fit", "--memory", "1GB", "-o", "NEW"], "MODELS requires an argument"),
        (
            ["fit", "MODEL", "-o", "NEW", "--effort", "some"],
            '"some" for --effort. Choose from: "fast", "normal"',
        ),
        (["plan", "MODEL", "--memory", "1GB", "--context", "2.5"], "'2.5' is not a whole number"),
        (["fit", "MODEL", "--memory", "1GB", "-o", "NEW", "--windows", "0"], "windows"),
        (["chat", "MODEL"], "not a finished bundle"),
        (["serve", "MODEL"], "not a finished bundle"),
        (["report", "MODEL"], "not a finished bundle"),
        (["measure", "MODEL"], "not a finished bundle"),
        (["measure", "MODEL", "--repeats", "0"], "repeats"),
        (["frobnicate"], "frobnicate"),
        (["devices", "--colour"], "--colour"),
        (["serve", "MODEL", "--port", "70000"], "port"),
    ],
)
def test_mistakes(capsys: pytest.CaptureFixture[str], model: Path, words: list[str], said: str) -> None:
    words = [word.replace("MODEL", str(model)).replace("NEW", str(model.parent / "new")) for word in words]
    status, out, err = in_process(capsys, *words, "--json")
    assert status == 2
    assert said in json.loads(out)["error"]["message"]
    assert err.startswith("tenth: error: ")
    assert err.count("\n") == 1
    assert not (model.parent / "new").exists()


def test_the_context_is_2048_or_what_the_model_knows(model: Path) -> None:
    assert TargetOptions(memory="1GB").budget([model]).context == 512
    (model / "config.json").write_text(json.dumps(CONFIG | {"max_position_embeddings": 8192}))
    budget = TargetOptions(device="pixel-8").budget([model])
    assert (budget.context, budget.memory, budget.device, budget.share) == (2048, 800_000_000, "pixel-8", 0.1)
    assert TargetOptions(device="pixel-8", share="5%", context=8192).budget([model]).memory == 400_000_000


@pytest.mark.parametrize(
    ("held", "overwrite", "refused"),
    [
        (None, False, False),
        ([], False, False),
        (["log.txt"], False, False),
        (["thesis.doc"], False, True),
        (["thesis.doc"], True, True),
        (sorted(BUNDLE_FILES), False, True),
        (sorted(BUNDLE_FILES), True, False),
        (sorted([*BUNDLE_FILES, "measure.json", "log.txt"]), True, False),
        (["model.gguf"], True, True),
    ],
)
def test_what_may_be_written_to(
    tmp_path: Path, held: list[str] | None, overwrite: bool, refused: bool
) -> None:
    out = tmp_path / "out"
    if held is not None:
        out.mkdir()
        for name in held:
            (out / name).write_text("x")
    if refused:
        with pytest.raises(OutputError):
            check_destination(out, overwrite)
    else:
        check_destination(out, overwrite)
    assert not held or {file.name for file in out.iterdir()} == set(held)


def test_a_budget_error_shows_the_smallest_part_by_part(capsys: pytest.CaptureFixture[str]) -> None:
    smallest = {"weights": 12_340_000, "kv": 2_000_000, "total": 14_340_000}
    refusal = BudgetError("nothing fits\ninto 3 MB; what would help: a shorter --context", smallest)
    assert app.guarded(failing(refusal), ["plan", "--json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["error"] == {
        "kind": "BudgetError",
        "message": "nothing fits into 3 MB; what would help: a shorter --context",
        "smallest": smallest,
    }
    for shown in ("weights", "12.34 MB", "14.34 MB", "shorter --context"):
        assert shown in err


def test_errors_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.guarded(failing(TenthError("a \x1b[31mname\x07\nwith\tmore")), []) == 2
    assert capsys.readouterr().err == "tenth: error: a \\x1b[31mname\\x07 with more\n"


def test_ctrl_c_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.guarded(failing(KeyboardInterrupt()), ["fit"]) == 130
    assert "run the same command again to resume" in capsys.readouterr().err


def test_an_unforeseen_error_is_not_swallowed(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.guarded(failing(ZeroDivisionError()), []) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["devices"], ["plan", "bundled", "--memory", "100MB"], ["fit", "--help"]])
def test_a_reader_that_left_is_no_error(words: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer) as stdout:
        done = subprocess.run(
            [*COMMAND, *words], stdout=stdout, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert (done.returncode, done.stderr) == (1, b"")


def test_no_verb_is_a_mistake_that_shows_the_verbs() -> None:
    done = run()
    assert (done.returncode, done.stdout) == (2, "")
    assert "  fit " in done.stderr


def test_help_fits_a_narrow_terminal_and_one_without_unicode() -> None:
    narrow = {"COLUMNS": "40", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [*COMMAND, "fit", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=os.environ | narrow,
    )
    assert "--no-structure" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 40


def test_models_are_folders_or_names(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert source.resolve(str(model)) == model
    monkeypatch.chdir(model.parent)
    assert source.resolve("model") == Path("model")
    (model.parent / "bundled").mkdir()
    assert source.resolve("bundled") == Path("bundled"), "a folder of that name wins"
    for name in ("../nowhere", "a/b/c", "", "-x/y", "owner/na me"):
        with pytest.raises(InputError, match="no folder"):
            source.resolve(name)


def test_a_hub_name_offline_is_one_error() -> None:
    done = run("plan", "some-owner/some-model-that-is-not-cached", "--memory", "1GB")
    assert done.returncode == 2
    assert done.stderr.startswith("tenth: error: no folder 'some-owner/some-model-that-is-not-cached'")
    assert done.stderr.count("\n") == 1


def test_progress_into_a_file_is_plain_lines_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = ConsoleReporter()
    with reporter.step("read \x1b[1m[red]layers[/red]", 4, "layers") as advance_to:
        for done in range(5):
            advance_to(done)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "read \\x1b[1m[red]layers[/red]",
        "read \\x1b[1m[red]layers[/red]: done in 0 s",
    ]


def test_cells_of_a_table_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    ConsoleReporter().table([("[/red]", "a\x1b[1m\nb")], ("[bold]", "unit"))
    out, err = capsys.readouterr()
    assert out == ""
    assert "[bold]" in err
    assert "[/red]" in err
    assert "a\\x1b[1m b" in err


def test_progress_on_a_terminal_nests_and_shows_amounts() -> None:
    screen = StringIO()
    reporter = ConsoleReporter(Console(file=screen, force_terminal=True, width=100, color_system=None))
    with reporter.step("outer", 3, "layers") as outer:
        outer(1)
        with reporter.step("inner", 2_000_000, "B") as inner:
            inner(500_000)
        outer(3)
    with pytest.raises(InputError), reporter.step("breaks", 1):
        raise InputError("x")
    shown = screen.getvalue()
    for expected in ("outer", "3 of 3 layers", "0.50 of 2 MB", "left"):
        assert expected in shown
