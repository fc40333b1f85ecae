from __future__ import annotations

import json
import os
import shutil
import struct
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import acts
import forged
import numpy as np
import pytest
from waiting import soon

from tenth.core import jobs
from tenth.core.errors import InputError
from tenth.leaderboard import run, submission
from tenth.leaderboard.exam import Quiet
from tenth.leaderboard.judge import JudgeSubmission, JudgingRound, judge
from tenth.leaderboard.records import RULES, Conditions, Verdict, read_results
from tenth.leaderboard.site import site
from tenth.models import source
from tenth.runtime import sandbox

BUDGET = "0.75%"  # of a Pixel 8: 60 MB
HONEST = {"same", "half", "halves", "from-nothing", "fewer-bits"}
REASONS = {
    "constant": "the probe 'varied' failed",
    "nan": "the probe 'finite' failed.*NaN",
    "looks-ahead": "the probe 'causal' failed",
    "cannot-spell": "the probe 'spelt' failed",
    "other-weights": "the probe 'near' failed.*cosine",
    "other-shapes": "keeps every tensor: 'blk.0.ffn_down.weight'",
    "quantised": "takes no quantised weights, and 'token_embd.weight'",
    "large": "over the budget: its weights alone are",
    "long": "over the budget: it held",
    "lies": "tensor 'a' lies at bytes",
    "wrong-shapes": "cannot load",
    "bomb": "header claims 1152921504606846976 bytes",
    "pipe": "is no plain file",
    "no-manifest": "submission.toml is missing",
    "another-base": "base_hash 0123456789ab... is not the original's",
    "5000-digits": "submission.toml is not TOML: Exceeds the limit",
    "split-in-9": r"one part of a split GGUF \(of 9\)",
    "split-text": "split.count in its header is of type str",
    "split-array": "split.count in its header is of type ndarray",
    "split-nan": "split.count in its header is of type float",
    "split-yes": "split.count in its header is of type bool",
    "short-context": "declares a context of 512 tokens, and 1024 are asked for",
    "context-text": "declares no length of the context",
    "copied": "the probe 'own weights' failed",
    "disguised": "the probe 'own answers' failed",
    "caf\\xe9": "is no printable UTF-8; rename it",
    "\\x1b[2J": "is no printable UTF-8; rename it",
}


def make(place: Path) -> None:
    """Every submission; the original is the tiny model beside them."""
    original = forged.model(place.parent / "original.gguf")
    raw = original.read_bytes()

    def gguf(name: str, **settings: object) -> bytes:
        return forged.model(place.parent / f"{name}.gguf", **settings).read_bytes()

    def edited(name: str, keys: dict[str, object] | None = None, **tensors: np.ndarray) -> bytes:
        return forged.edited(original, place.parent / f"{name}.gguf", keys, **tensors).read_bytes()

    add: Callable[..., Path] = lambda name, *rest, **more: forged.submission(place, name, *rest, **more)  # noqa: E731
    add("same", raw, division="bits")
    add("half", gguf("half", kind="F16"), division="structure")
    add("from-nothing", gguf("from-nothing", seed=5, vocab=280), division="scratch", base="scratch")
    add("fewer-bits", gguf("fewer-bits", kind="Q4_0"), division="bits")
    add("constant", edited("constant", token_embd_weight=np.zeros((300, 64))))
    add("nan", gguf("nan", spoil="blk.1.ffn_up.weight"))
    add("looks-ahead", edited("looks-ahead", {"llama.attention.causal": False}))
    add("cannot-spell", raw.replace(struct.pack("<Q", 1) + b"e", struct.pack("<Q", 1) + b"\x01"))
    add("other-weights", gguf("other-weights", seed=1), division="bits")
    add("other-shapes", gguf("other-shapes", ffn=96), division="bits")
    add("quantised", gguf("quantised", kind="Q8_0"), division="structure")
    add("large", gguf("large", hidden=512, ffn=2048, layers=4, heads=8))
    add("long", gguf("long", hidden=512, layers=8, heads=8, kv_heads=8), runtime={"type_k": "f32"})
    add("lies", forged.LIES["past-the-end"])
    add("wrong-shapes", edited("wrong-shapes", output_norm_weight=np.ones(32)))
    os.mkfifo(add("pipe") / "model.gguf")
    (add("no-manifest", raw) / "submission.toml").unlink()
    add("another-base", raw, base_hash="0123456789abcdef" * 4)
    bomb = add("bomb")
    shutil.copy(source.bundled() / "config.json", bomb)
    (bomb / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{" * 1000)
    scratch = {"division": "scratch", "base": "scratch"}
    (add("5000-digits", raw) / "submission.toml").write_text(f"name = {'9' * 5000}")
    add("split-in-9", edited("a", {"split.count": 9}))
    add("split-text", edited("a", {"split.count": "two"}))
    add("split-array", edited("a", {"split.count": [1, 2]}))
    add("split-nan", edited("a", {"split.count": float("nan")}))
    add("split-yes", edited("a", {"split.count": True}))
    add("short-context", edited("a", {"llama.context_length": 512}))
    add("context-text", edited("a", {"llama.context_length": "4096"}))
    add("copied", gguf("copied", kind="Q4_0"), **scratch)
    add("disguised", forged.disguised(original, place.parent / "disguised.gguf").read_bytes(), **scratch)
    add(os.fsdecode(b"caf\xe9"), raw)
    add("\x1b[2J", raw)
    halves = add("halves", division="structure")
    for file in source.bundled().iterdir():
        if file.name != "README.md":
            shutil.copy(file, halves)


def options(place: Path, **changes: object) -> run.JudgeSettings:
    usual = run.JudgeSettings(
        places=(place / "submissions",),
        results=place / "results",
        device="pixel-8",
        share=BUDGET,
        against=str(place / "original.gguf"),
        text_chunks=4,
        context=1024,
        jobs=2,
        threads=1,
        work=place / "work",
    )
    return replace(usual, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("board")
    make(place / "submissions")
    return place


@pytest.fixture(scope="module")
def judged(place: Path) -> dict[str, Verdict]:
    done = run.judge_all(options(place), Quiet())
    assert not done.failed
    return {verdict.submission: verdict for verdict in done.verdicts}


def test_the_honest_are_ranked(judged: dict[str, Verdict]) -> None:
    assert judged.keys() == HONEST | REASONS.keys()
    ranked = {name for name, verdict in judged.items() if verdict.status == "ranked"}
    assert ranked == HONEST, {name: judged[name].reason for name in HONEST - ranked}


def test_the_leaderboard_shows_all_of_them(place: Path, judged: dict[str, Verdict]) -> None:
    for name in HONEST:
        quality = judged[name].reading("bits_per_byte")
        assert quality is not None
        assert len(judged[name].text_chunks) == quality.count
        assert np.mean(judged[name].text_chunks) == pytest.approx(quality.value)
    drawn = site.write(place / "results", place / "site", place / "submissions")
    assert {row.verdict.submission for row in drawn.rows if row.place} == HONEST
    assert not drawn.waiting
    assert not drawn.without_log
    bits = {row.verdict.submission: row for row in drawn.rows if row.division == "bits" and row.place}
    assert bits["same"].place == (1, 1) or bits["same"].ties


@pytest.mark.parametrize("name", REASONS)
def test_the_others_are_out_with_the_reason(judged: dict[str, Verdict], place: Path, name: str) -> None:
    import re

    verdict = judged[name]
    assert verdict.status == "disqualified"
    assert re.search(REASONS[name], verdict.reason), verdict.reason
    number, _, said = verdict.log_line.partition(": ")
    lines = (place / "results" / verdict.log).read_text().splitlines()
    assert lines[int(number) - 1].strip() == said
    assert verdict.reason[:100] in said


def test_a_verdict_of_the_original_itself(judged: dict[str, Verdict]) -> None:
    same = judged["same"]
    kl, top, bits, theirs = (
        same.reading(name) for name in ("kl", "top1", "bits_per_byte", "bits_per_byte_original")
    )
    assert kl
    assert top
    assert bits
    assert theirs
    assert kl.value < 1e-4  # what is left is the cache in 16 bits
    assert top.value > 0.98
    assert bits.value == pytest.approx(theirs.value, abs=1e-3)
    assert bits.count == len(same.text_chunks) == 4
    assert sum(same.text_chunks) / 4 == pytest.approx(bits.value)
    lost = same.reading("bits_lost")
    assert lost
    assert lost.value == pytest.approx(bits.value - theirs.value)
    assert lost.spread is not None
    assert bits.spread is not None
    assert lost.spread < bits.spread
    assert bits.spread
    for name, unit in (("size", "B"), ("peak", "B"), ("decode", "tokens/s"), ("device_joules", "J/token")):
        reading = same.reading(name)
        assert reading
        assert reading.value > 0
        assert reading.unit == unit
        assert reading.conditions
    assert {p.name for p in same.probes} == {
        "near",
        "finite",
        "spelt",
        "varied",
        "deterministic",
        "order",
        "causal",
        "batch",
        "timed",
    }
    assert all(probe.passed for probe in same.probes)
    assert same.rules == RULES
    assert "--against" in same.command


def test_fewer_bits_are_further_and_another_tokenizer_has_no_kl(judged: dict[str, Verdict]) -> None:
    half, fewer = judged["half"].reading("kl"), judged["fewer-bits"].reading("kl")
    assert half
    assert fewer
    assert half.value < fewer.value
    assert judged["from-nothing"].reading("kl") is None
    assert judged["from-nothing"].reading("bits_per_byte")


def test_safetensors_are_judged_as_they_are(judged: dict[str, Verdict]) -> None:
    bits = judged["halves"].reading("bits_per_byte")
    assert bits
    assert bits.value < 1.6  # a trained model among random ones


def test_what_is_published_has_no_path_of_this_machine(judged: dict[str, Verdict], place: Path) -> None:
    for file in (place / "results").iterdir():
        text = file.read_text(errors="replace")
        if file.suffix == ".json":
            text = text.replace(judged["same"].command.split()[2].rsplit("/", 1)[0], "")
            text = "\n".join(line for line in text.splitlines() if '"command"' not in line)
        assert str(place / "submissions") not in text
        assert ".tenth-scratch-" not in text
    assert len(read_results(place / "results")) == len(judged)


def test_nothing_is_judged_twice_unless_rules_or_files_change(
    judged: dict[str, Verdict], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = options(place, places=(place / "submissions" / "pipe", place / "submissions" / "lies"))
    assert run.judge_all(one, Quiet()).kept == 2
    file = place / "results" / f"{judged['pipe'].id}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rules": RULES - 1}))
    assert run.judge_all(one, Quiet()).kept == 1
    assert json.loads(file.read_text())["rules"] == RULES
    (place / "submissions" / "lies" / "model.gguf").write_bytes(forged.LIES["empty"])
    again = run.judge_all(one, Quiet())
    assert again.kept == 1
    attempts = [v for v in read_results(place / "results") if v.submission == "lies"]
    assert len(attempts) == 2  # the earlier attempt stays
    assert run.judge_all(replace(one, share="1%"), Quiet()).kept == 0


def test_a_worker_that_dies_costs_its_own_submission_only(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Path] = []
    real = jobs.run

    def run_or_abort(job: jobs.Job[jobs.Result], *rest: Any, **named: Any) -> Any:
        if isinstance(job, JudgeSubmission):
            asked.append(job.submission)
            if job.submission.name == "lies":
                return real(acts.Abort(), *rest, **named)
        return real(job, *rest, **named)

    monkeypatch.setattr(jobs, "run", run_or_abort)
    places = tuple(place / "submissions" / name for name in ("bomb", "lies", "pipe"))
    done = run.judge_all(options(place, places=places, results=tmp_path / "results"), Quiet())
    assert [verdict.submission for verdict in done.verdicts] == ["bomb", "pipe"]
    assert "SIGABRT" in done.failed["lies"]
    assert len(asked) == 3
    monkeypatch.undo()
    done = run.judge_all(options(place, places=places, results=tmp_path / "results"), Quiet())
    assert done.kept == 2
    assert not done.failed


def test_a_hang_and_greed_are_the_artifacts_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = forged.model(tmp_path / "m.gguf").read_bytes()
    folder = forged.submission(tmp_path, "bad", raw, division="scratch", base="scratch")
    conditions = Conditions(device="pixel-8", budget=50_000_000, context=64, text="", text_bytes=1)
    of = JudgingRound(
        results=tmp_path, conditions=conditions, device="pixel-8", text_chunks=tmp_path, threads=1
    )
    real = sandbox.Sandbox.run
    for how, said in (("hang", "was ended after 3 s"), ("memory", "more than the")):

        def misbehave(box: sandbox.Sandbox, *_: object, how: str = how) -> str:
            limits = box.limits.model_copy(update={"seconds": 3 if how == "hang" else 60})
            return real(replace(box, limits=limits), acts.Misbehave(how=how, path=tmp_path))

        monkeypatch.setattr(sandbox.Sandbox, "run", misbehave)
        verdict = judge(JudgeSubmission(submission=folder, command="", round=of))
        assert verdict.status == "disqualified"
        assert said in verdict.reason


def test_what_the_judge_itself_needs(place: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give that original with --against"):
        run.judge_all(options(place, places=(place / "submissions" / "same",), against=None), Quiet())
    # One of many alone is out, and the round goes on.
    places = tuple(place / "submissions" / name for name in ("from-nothing", "half"))
    done = run.judge_all(options(place, places=places, against=None, results=tmp_path / "results"), Quiet())
    assert [verdict.status for verdict in done.verdicts] == ["ranked", "disqualified"]
    assert "made from 'tiny', and this round has no original" in done.verdicts[1].reason
    with pytest.raises(InputError, match="no folder"):
        run.judge_all(options(place, places=(tmp_path / "absent",)), Quiet())
    short = tmp_path / "short.txt"
    short.write_text("too short")
    with pytest.raises(InputError, match="too short to judge on"):
        run.judge_all(options(place, text=short), Quiet())
    with pytest.raises(InputError, match="Did you mean"):
        run.judge_all(options(place, device="pixel8"), Quiet())


def test_a_folder_with_a_changed_weight_is_another_artifact(tmp_path: Path) -> None:
    from tenth.leaderboard.submission import open_submission

    folder = forged.submission(tmp_path, "a")
    for file in source.bundled().iterdir():
        if file.name != "README.md":
            shutil.copy(file, folder)
    before = open_submission(folder, 1 << 30)
    assert not before.trouble
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x11")
    assert open_submission(folder, 1 << 30).artifact != before.artifact


def test_what_was_hashed_is_judged(place: Path, tmp_path: Path) -> None:
    """The file is exchanged as soon as the judge has begun; verdict and hash are those of the first one."""
    raw = (place / "original.gguf").read_bytes()
    folder = forged.submission(tmp_path, "swapped", raw, division="bits")
    before = submission.open_submission(folder, 1 << 30).artifact
    results = tmp_path / "results"

    def swap() -> None:
        soon(lambda: list(results.glob("swapped-*.log")), "it is never judged", 120)
        (folder / "model.gguf").write_bytes(forged.LIES["cut"])

    swapper = threading.Thread(target=swap)
    swapper.start()
    verdict = run.judge_all(options(place, places=(folder,), results=results), Quiet()).verdicts[0]
    swapper.join()
    assert (verdict.status, verdict.artifact) == ("ranked", before), verdict.reason
    assert submission.open_submission(folder, 1 << 30).artifact != before
