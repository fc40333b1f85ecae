from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import forged
import items
import pytest

from tenth.core.errors import InputError
from tenth.evaluation import hidden
from tenth.leaderboard import run
from tenth.leaderboard.exam import Quiet

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="tasks need lm-eval: pip install 'tenth[eval]'"
)


def test_tasks_are_asked_beside_the_original_and_of_hidden_items(tmp_path: Path) -> None:
    raw = forged.model(tmp_path / "original.gguf").read_bytes()
    forged.submission(tmp_path / "submissions", "same", raw, division="bits")
    data = items.write(tmp_path / "data", 12, ["piqa", "arc_easy"])
    (tmp_path / "seed").write_text("17" * hidden.SEED_BYTES)
    options = run.JudgeSettings(
        places=(tmp_path / "submissions",),
        results=tmp_path / "results",
        device="pixel-8",
        share="1%",
        against=str(tmp_path / "original.gguf"),
        text_chunks=4,
        context=512,
        threads=1,
        work=tmp_path / "work",
        tasks=("piqa", "arc_easy"),
        data=data,
        limit=5,
        seed=tmp_path / "seed",
    )
    done = run.judge_all(options, Quiet())
    assert not done.failed
    (verdict,) = done.verdicts
    assert verdict.status == "ranked", verdict.reason
    assert verdict.conditions.seed_hash == hidden.commitment(bytes.fromhex("17" * hidden.SEED_BYTES))
    assert [task.task for task in verdict.tasks] == ["piqa", "arc_easy"]
    for task in verdict.tasks:
        assert task.score.count == 5
        assert task.against
        assert abs(task.against.difference.value) <= 0.2  # of 5 items at most one hair's breadth
        assert task.hidden
        assert task.gap
        assert 1 <= task.hidden.count <= 5  # those that are not among the public ones
    assert "17171717" not in (tmp_path / "results" / f"{verdict.id}.json").read_text()
    (tmp_path / "seed").write_text("17")
    with pytest.raises(InputError, match="can be guessed"):
        run.judge_all(options, Quiet())
    with pytest.raises(InputError, match="unknown task"):
        run.judge_all(replace(options, tasks=("piqua",)), Quiet())
