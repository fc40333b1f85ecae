from __future__ import annotations

import os
from pathlib import Path

import forged
import pytest

from tenth.core import jobs
from tenth.core.errors import InputError
from tenth.leaderboard import run
from tenth.leaderboard.exam import Quiet
from tenth.leaderboard.judge import JudgeSubmission
from tenth.leaderboard.records import Verdict

try:
    import ray
except ModuleNotFoundError:
    ray = None


def options(place: Path, cluster: str) -> run.JudgeSettings:
    return run.JudgeSettings(
        places=(place / "submissions",),
        results=place / "results",
        device="pixel-8",
        share="1%",
        against=str(place / "original.gguf"),
        text_chunks=4,
        context=1024,
        threads=1,
        cluster=cluster,
        work=place / "work",
    )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    raw = forged.model(tmp_path / "original.gguf").read_bytes()
    forged.submission(tmp_path / "submissions", "honest", raw, division="bits")
    forged.submission(tmp_path / "submissions", "lies", forged.LIES["past-the-end"])
    return tmp_path


@pytest.mark.skipif(ray is None, reason="Ray is not installed (pip install 'tenth[cluster]')")
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_of_this_machine_gives_the_same_verdicts(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = [Path(run.__file__).parents[2], Path(__file__).parent, Path(__file__).parents[1]]
    places = [*map(str, here), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(places))
    done = run.judge_all(options(place, "local"), Quiet())
    assert not done.failed
    assert {v.submission: v.status for v in done.verdicts} == {"honest": "ranked", "lies": "disqualified"}
    again = run.judge_all(options(place, "local"), Quiet())
    assert again.kept == 2
    # A worker that dies costs its own submission only.
    for file in (place / "results").glob("*.json"):
        file.unlink()
    monkeypatch.setattr("tenth.leaderboard.cluster.judge_on_worker", dies_at_lies)
    done = run.judge_all(options(place, "local"), Quiet())
    assert [v.submission for v in done.verdicts] == ["honest"], done.failed
    assert done.failed.keys() == {"lies"}


def dies_at_lies(job: JudgeSubmission) -> Verdict:
    if job.submission.name == "lies":
        os._exit(9)
    return jobs.run(job)


@pytest.mark.skipif(ray is not None, reason="Ray is installed")
def test_without_ray_the_judge_says_what_to_install(place: Path) -> None:
    with pytest.raises(InputError, match=r"tenth\[cluster\]"):
        run.judge_all(options(place, "local"), Quiet())
