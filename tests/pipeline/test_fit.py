"""From a Hugging Face folder to a bundle, as a person does it: real processes, tiny random models."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from commands import Shell
from gguf import GGUFReader
from waiting import soon

from tenth.cli.console import ConsoleReporter
from tenth.core.ggml import storage_type
from tenth.core.jobs import Compute
from tenth.core.records import Budget, Plan, Scorecard
from tenth.pipeline import candidates, effort, fit
from tenth.pipeline.options import Making, Target

CONTEXT = 256
AMPLE = 2_000_000  # bytes above the smallest budget: more than any plan for the tiny models can use
BUNDLE = {"model.gguf", "plan.json", "scorecard.json", "report.html", "log.txt"}


@dataclass
class Fitted:
    """A model, the folder and command of its fit, and what that printed."""

    shell: Shell
    model: Path
    work: Path
    out: Path
    budget: int
    done: subprocess.CompletedProcess[str]

    def words(self, out: Path, work: Path | None = None) -> list[object]:
        return [*fit_words(self.model, self.budget, work or self.work), "-o", out]

    @property
    def plan(self) -> Plan:
        return Plan.model_validate_json((self.out / "plan.json").read_text())


def fit_words(model: Path, budget: int, work: Path) -> list[object]:
    text, judged = model.parent / "text.txt", model.parent / "judged.txt"
    return [
        "fit",
        model,
        "--memory",
        f"{budget}B",
        "--context",
        CONTEXT,
        "--windows",
        8,
        "--threads",
        1,
        "--text",
        text,
        "--eval-text",
        judged,
        "--work",
        work,
    ]


def without_base(path: Path) -> dict[str, object]:
    """A plan without the predicted base, which a proof on a busy machine may have corrected."""
    plan: dict[str, object] = json.loads(path.read_text())
    memory = plan["memory"]
    assert isinstance(memory, dict)
    del memory["base"]
    return plan


def prose(words: int, seed: int) -> str:
    vocabulary = " ".join(tiny.CORPUS).split()
    return " ".join(np.random.default_rng(seed).choice(vocabulary, words).tolist())


def fitted(folder: Path, family: str, room: int, **changes: object) -> Fitted:
    """room: bytes above the smallest budget predicted; code pages make the base uncertain by over 1 MB."""
    shell, model = Shell(folder), folder / "model"
    tiny.make_model(model, family, max_position_embeddings=512, **changes)
    (folder / "text.txt").write_text(prose(3000, 0))
    (folder / "judged.txt").write_text(prose(700, 1))
    hopeless = shell.run("plan", model, "--memory", "1MB", "--context", CONTEXT, "--json")
    budget = json.loads(hopeless.stdout)["error"]["smallest"]["total"] + room
    out, work = folder / "out", folder / "work"
    done = shell.run(*fit_words(model, budget, work), "-o", out, "--json")
    assert done.returncode == 0, done.stderr
    return Fitted(shell, model, work, out, budget, done)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """Rows that K-quants hold."""
    folder = tmp_path_factory.mktemp("llama")
    return fitted(folder, "llama", 4_000_000, variant="tied", hidden_size=256, intermediate_size=4096)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """Rows of whole blocks of 32, but not of 256."""
    folder = tmp_path_factory.mktemp("odd")
    return fitted(folder, "qwen2", 4_000_000, variant="untied", hidden_size=96, intermediate_size=160)


@pytest.fixture(scope="module")
def ample(odd: Fitted) -> Fitted:
    """The odd model with memory to spare: no proof is close, so every run makes the same plan."""
    out = odd.out.with_name("ample")
    wide = replace(odd, out=out, budget=odd.budget + AMPLE)
    done = odd.shell.run(*wide.words(out))
    assert done.returncode == 0, done.stderr
    return wide


@pytest.fixture(params=["llama", "odd"])
def either(request: pytest.FixtureRequest) -> Fitted:
    found: Fitted = request.getfixturevalue(request.param)
    return found


def test_a_fit_leaves_a_whole_bundle_that_was_seen_to_fit(either: Fitted) -> None:
    card = Scorecard.model_validate_json((either.out / "scorecard.json").read_text())
    assert {file.name for file in either.out.iterdir()} == BUNDLE
    assert not list(either.out.parent.glob("out.*"))
    assert card.proof.fits
    assert card.proof.peak <= either.budget
    assert abs(card.proof.error) <= 0.05
    assert either.plan.memory.total <= either.budget
    assert either.plan.file_bytes == (either.out / "model.gguf").stat().st_size
    assert card.candidates[0].name == "tenth"
    assert "Q4_0" in [c.name for c in card.candidates]
    assert card.sample is not None
    assert len(card.sample.tokens) == len(card.sample.logprobs) > 0
    assert (either.out / "report.html").read_text().lower().startswith("<!doctype html>")


def test_with_json_stdout_is_the_scorecard_and_nothing_else(either: Fitted) -> None:
    assert json.loads(either.done.stdout) == json.loads((either.out / "scorecard.json").read_text())
    assert either.done.stdout.count("\n") == 1
    assert "prove that it fits" in either.done.stderr


def test_the_file_is_stored_as_the_plan_says(either: Fitted) -> None:
    stored = {
        t.name: (t.tensor_type.name, t.shape.tolist()) for t in GGUFReader(either.out / "model.gguf").tensors
    }
    types = either.plan.types
    assert {name: stored[name][0] for name in types} == types
    assert {kind for name, (kind, _) in stored.items() if name not in types} == {"F32"}
    for name, kind in types.items():
        assert stored[name][1][0] % storage_type(kind).weights == 0


def test_types_of_256_weights_are_not_used_where_rows_do_not_hold_them(llama: Fitted, odd: Fitted) -> None:
    """In so small a model as llama they do not pay either: test_plan.py says where they do."""
    assert llama.plan.bits_per_weight < 12
    assert {storage_type(kind).weights for kind in odd.plan.types.values()} <= {1, 32}


def test_plan_decides_as_fit_did_from_what_it_measured(either: Fitted) -> None:
    words = ["plan", either.model, "--context", CONTEXT, "--work", either.work, "--json", "--memory"]
    again = Plan.model_validate_json(either.shell.run(*words, f"{either.budget}B").stdout)
    assert again.sensitivity_source == "measured"
    assert again.model_hash == either.plan.model_hash
    assert (again.types, again.runtime, again.memory) == (
        either.plan.types,
        either.plan.runtime,
        either.plan.memory,
    )
    larger = Plan.model_validate_json(either.shell.run(*words, f"{either.budget + 200_000}B").stdout)
    assert larger.sensitivity_source == "measured"
    assert larger.predicted_kl <= again.predicted_kl


def test_a_second_fit_needs_overwrite_and_makes_the_same_bytes(ample: Fitted, tmp_path: Path) -> None:
    before = {name: (ample.out / name).read_bytes() for name in ("model.gguf", "plan.json")}
    refused = ample.shell.run(*ample.words(ample.out))
    assert refused.returncode == 2
    assert "--overwrite" in refused.stderr
    stale = ample.out.with_name("ample.partial")
    stale.mkdir()
    (stale / "model.gguf").write_bytes(b"half of")
    replaced = ample.shell.run(*ample.words(ample.out), "--overwrite")
    assert replaced.returncode == 0, replaced.stderr
    assert "calibrate: done" not in replaced.stderr, "it was done before"
    assert {name: (ample.out / name).read_bytes() for name in before} == before
    assert {file.name for file in ample.out.iterdir()} == BUNDLE
    assert not stale.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_killed_run_resumes_to_the_same_bytes(ample: Fitted, tmp_path: Path) -> None:
    words = ample.words(tmp_path / "out", tmp_path / "work")
    work, out = tmp_path / "work", tmp_path / "out.partial"
    moments = {  # a step, and the file of it that is there when the run is killed
        "run the original": (work, "reference-*.partial/*"),
        "calibrate": (work, "calibration-*.partial/*"),
        "predict the KL of every storage type": (work, "sensitivities-*.partial/*"),
        "measure KV-cache types": (work, "kv-*.partial/*"),
        "round with error feedback": (work, "rounded-*/*"),
        "store the model": (out, "bits*"),
        "prove that it fits": (out, "bits.gguf"),
        "measure bits alone": (out, "bits.gguf"),
    }
    for moment, (folder, files) in moments.items():
        kill_at(ample.shell, words, moment, lambda folder=folder, files=files: any(folder.glob(files)))
        assert not (tmp_path / "out").exists()
    done = ample.shell.run(*words)
    assert done.returncode == 0, done.stderr
    assert "predict the KL of every" not in done.stderr
    assert (tmp_path / "out" / "model.gguf").read_bytes() == (ample.out / "model.gguf").read_bytes()
    assert without_base(tmp_path / "out" / "plan.json") == without_base(ample.out / "plan.json")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "work"]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# A folder of the work folder, the file of it that is damaged, and how.
DAMAGED: list[tuple[str, str, Callable[[Path], object]]] = [
    ("texts-*", "held-out.npy", flip),
    ("calibration-*", "stats-0000.npz", lambda path: path.write_bytes(path.read_bytes()[:-100])),
    ("reference-*", "logprobs.npy", flip),
    ("sensitivities-*", "sensitivities.jsonl", lambda path: path.write_text("{")),
    ("kv-*", "result.json", lambda path: path.write_text("[" * 100_000)),
    ("rounded-*", "result.json", lambda path: path.write_text("1e999")),
]


def test_damaged_work_is_made_again_and_named(ample: Fitted, tmp_path: Path) -> None:
    work = tmp_path / "work"
    shutil.copytree(ample.work, work)
    for name, file, damage in DAMAGED:
        for folder in work.glob(name):
            damage(sorted(folder.glob(file))[0])
    (corrections,) = work.glob("model-*.json")
    corrections.write_text("null")
    done = ample.shell.run(*ample.words(tmp_path / "out", work))
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "was damaged" in line]
    for name in [*(name for name, _, _ in DAMAGED), "model-*.json"]:
        assert len([line for line in said if line.startswith(name.split("*")[0])]) == 1, said
    assert (tmp_path / "out" / "model.gguf").read_bytes() == (ample.out / "model.gguf").read_bytes()
    again = ample.shell.run(*ample.words(tmp_path / "out", work), "--overwrite")
    assert again.returncode == 0, again.stderr
    assert "was damaged" not in again.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_second_fit_into_the_same_folder_is_refused_at_once(ample: Fitted, tmp_path: Path) -> None:
    words = ample.words(tmp_path / "out", tmp_path / "work")
    first = ample.shell.start(*words)
    until(first, "calibrate")
    second = ample.shell.run(*words)
    assert second.returncode == 2
    (line,) = second.stderr.splitlines()
    assert "is being made or measured by another run" in line
    assert (tmp_path / "out.partial").is_dir()
    first.kill()
    first.communicate()
    soon(lambda: not ample.shell.running(), "a child outlived its parent", 10)


@pytest.mark.parametrize(("out", "work"), [("out", "out/work"), ("out", "out"), ("work/out", "work")])
def test_a_work_folder_inside_out_is_refused_before_any_step(
    odd: Fitted, tmp_path: Path, out: str, work: str
) -> None:
    done = odd.shell.run(*odd.words(tmp_path / out, tmp_path / work))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "work folder" in line
    assert not list(tmp_path.iterdir())


def test_best_trains_scales_and_proves_the_file_again(
    odd: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(effort.EFFORTS, "best", effort.Effort(windows=8, rounds=1, steps=4))
    monkeypatch.setattr(candidates, "WORTH_TRAINING", -1.0)
    folder = odd.model.parent
    options = fit.FitOptions(
        (odd.model,),
        tmp_path / "out",
        Target(Budget(memory=odd.budget, context=CONTEXT)),
        Making(folder / "text.txt", folder / "judged.txt", "best", compute=Compute(threads=1)),
        work=odd.work,
        baselines=0,
    )
    card = fit.fit(options, ConsoleReporter())
    assert card.proof.fits
    trained = json.loads(next(odd.work.glob("trained-*/result.json")).read_text())
    assert trained["after"] <= trained["before"]
    assert (tmp_path / "out" / "model.gguf").stat().st_size == (odd.out / "model.gguf").stat().st_size
    assert any("effort best" in note and "error feedback" in note for note in card.notes)


def kill_at(shell: Shell, words: list[object], moment: str, under_way: Callable[[], bool]) -> None:
    """Kill a run as soon as a step is under way."""
    process = shell.start(*words)
    seen = until(process, moment)
    assert "".join(seen[-1:]).startswith(moment), seen
    soon(under_way, f"{moment}: nothing of it is there", 120)
    process.kill()
    process.communicate()
    soon(lambda: not shell.running(), "a child outlived its parent", 10)


def until(process: subprocess.Popen[str], start: str) -> list[str]:
    """Lines of stderr up to the first that starts so."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith(start):
            break
    return lines


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_ctrl_c_says_one_line_and_cleans_up(ample: Fitted, tmp_path: Path) -> None:
    process = ample.shell.start(*ample.words(tmp_path / "deep" / "out", tmp_path / "work"))
    until(process, "calibrate")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert [line for line in err.splitlines() if "done in" not in line] == [
        "stopped; run the same command again to resume"
    ]
    assert not ample.shell.running()
    assert [file.name for file in tmp_path.iterdir()] == ["work"]


def test_chat_answers_from_the_bundle(llama: Fitted) -> None:
    done = llama.shell.run("chat", llama.out, "--prompt", "The quick", "--max-tokens", 24, "--json")
    assert done.returncode == 0, done.stderr
    (turn,) = json.loads(done.stdout)["turns"]
    assert turn["user"] == "The quick"
    assert isinstance(turn["answer"], str)  # random weights may say nothing printable


def test_serve_answers_until_ctrl_c(llama: Fitted) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = llama.shell.start("serve", llama.out, "--port", port, "--json")
    assert process.stdout is not None
    url = json.loads(process.stdout.readline())["url"]
    body = json.dumps({"prompt": "The quick", "max_tokens": 3}).encode()
    request = urllib.request.Request(f"{url}/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert json.load(answer)["choices"]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Traceback" not in err


# The competition's models; tenth plan knows them from config.json alone.
SHAPES = {
    "Llama-3-8B": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
    },
    "Qwen2.5-7B": {
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
        "sliding_window": 131072,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
    },
    "Phi-2": {
        "model_type": "phi",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 51200,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
        "partial_rotary_factor": 0.4,
        "rope_theta": 10000.0,
        "qk_layernorm": False,
        "tie_word_embeddings": False,
    },
}


@pytest.mark.parametrize("name", SHAPES)
def test_plan_needs_only_config_json(tmp_path: Path, name: str) -> None:
    model = tmp_path / name
    model.mkdir()
    (model / "config.json").write_text(json.dumps(SHAPES[name]))
    shell = Shell(tmp_path)
    memory = "4GB" if name == "Phi-2" else "6GB"
    made = Plan.model_validate_json(shell.run("plan", model, "--memory", memory, "--json").stdout)
    assert made.sensitivity_source == "default"
    assert made.memory.total <= made.budget.memory
    assert made.memory.total > 0.9 * made.budget.memory
    assert len(made.types) == 2 + SHAPES[name]["num_hidden_layers"] * (6 if name == "Phi-2" else 7)
    shown = shell.run("plan", model, "--memory", memory)
    for said in (
        name,
        "bits per weight",
        "from the sensitivities of another model",
        "total, predicted",
        "n_ubatch",
    ):
        assert said in shown.stdout
    assert not (tmp_path / "cache").exists(), "planning keeps nothing"
    assert [file.name for file in model.iterdir()] == ["config.json"]
