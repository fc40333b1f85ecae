"""Made-up verdicts for the tests of the leaderboard; no figure here was measured."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from tenth.core.records import Reading
from tenth.core.scores import ScoreInterval
from tenth.core.statistics import compare
from tenth.leaderboard.records import RULES, Conditions, Division, Manifest, Probe, TaskScore, Verdict

HASH = "ab" * 32
HOSTILE = "<script>alert('x')</script>\"&\u202e"
PASSAGES = 32


def conditions(**changes: Any) -> Conditions:
    return Conditions(
        **{
            "device": "pixel-8",
            "budget": 30_000_000,
            "context": 1024,
            "original": "tiny-7m",
            "original_hash": HASH,
            "text": "cd" * 32,
            "text_bytes": 65_536,
            **changes,
        }
    )


def manifest(name: str, division: Division = "bits", **changes: Any) -> Manifest:
    base = "scratch" if division == "scratch" else "tiny-7m"
    return Manifest(
        **{
            "name": name,
            "base": base,
            "division": division,
            "method": f"how {name} was made",
            "data": "nothing at all",
            "licence": "MIT",
            **changes,
        }
    )


def readings(quality: float, peak: float, speed: float, spread: float = 0.02) -> list[Reading]:
    return [
        Reading(
            name="bits_per_byte",
            value=quality,
            unit="",
            spread=spread,
            count=PASSAGES,
            conditions="32 passages of 2048 bytes; standard error over passages",
        ),
        Reading(name="bits_per_byte_original", value=1.613, unit="", spread=0.02, count=PASSAGES),
        Reading(name="kl", value=max(quality - 1.6, 0.001), unit="nats/token", spread=0.004, count=PASSAGES),
        Reading(name="top1", value=0.9312, unit="share", spread=0.004, count=PASSAGES),
        Reading(name="size", value=peak - 11e6, unit="B"),
        Reading(name="peak", value=peak, unit="B", conditions="seen at full context under the limit"),
        Reading(name="decode", value=3 * speed, unit="tokens/s", spread=4.2, count=3, conditions="3 runs"),
        Reading(name="device_decode", value=speed, unit="tokens/s", kind="estimated"),
        Reading(name="device_joules", value=7.5 / speed, unit="J/token", kind="estimated"),
    ]


def task(
    name: str, ours: int, original: int, count: int = 100, chance: float = 0.25, gap: float = 0.02
) -> TaskScore:
    """ours, original: items right, the same ones first; of hidden ones fewer by `gap`, give or take 0.12."""
    a, b = [float(i < ours) for i in range(count)], [float(i < original) for i in range(count)]
    found = compare(name, a, b, [chance] * count)
    return TaskScore(
        task=name,
        title=name.replace("_", " ").title(),
        metric="acc",
        score=found.ours,
        chance=chance,
        informative=found.verdict != "not informative",
        against=found,
        hidden=ScoreInterval(value=ours / count - gap, low=0.1, high=0.9, count=50),
        gap=ScoreInterval(value=gap, low=gap - 0.12, high=gap + 0.12, count=50),
    )


def verdict(
    name: str,
    quality: float = 1.7,
    peak: float = 25e6,
    speed: float = 60.0,
    division: Division = "bits",
    status: Literal["ranked", "disqualified"] = "ranked",
    **changes: Any,
) -> Verdict:
    """Passages differ from one another by far more than two submissions do on the same passage, and those
    by a hundredth.
    """
    waves = [math.sin(i) + 0.1 * math.sin(i * len(name)) for i in range(PASSAGES)]
    return Verdict(
        **{
            "rules": RULES,
            "tenth": "0.1.0",
            "runtime": "llama.cpp b1",
            "submission": name,
            "manifest": manifest(name, division),
            "artifact": HASH,
            "manifest_hash": HASH,
            "conditions": conditions(),
            "status": status,
            "readings": readings(quality, peak, speed),
            "text_chunks": [quality * (1 + 0.1 * w) for w in waves],
            "log": f"{name}.log",
            "probes": [
                Probe(name="finite", passed=True, value=1e-7, allowed=1e-3, detail="2,048 sums"),
                Probe(name="causal", passed=True, value=0.0, allowed=1e-4, detail="others later"),
            ],
            "isolation": ["namespace without interfaces", "cgroup v2"],
            "machine": "a machine",
            "command": f"tenth judge submissions/{name} --device pixel-8",
            "seconds": 12.5,
            "date": "2026-11-25T10:26:36+00:00",
            **changes,
        }
    )


def board() -> list[Verdict]:
    """Two settings, all divisions, an older attempt, three cheats, one of older rules."""
    four = [
        task("piqa", 61, 63, chance=0.5),
        task("arc_easy", 40, 46),
        task("hellaswag", 29, 41),
        task("winogrande", 50, 51, chance=0.5),
    ]
    server = conditions(device="a-server", budget=60_000_000, context=2048)
    broken = [
        Probe(name="varied", passed=False, value=0.0, allowed=1e-3, detail="a constant answer"),
        Probe(name="finite", passed=True, value=1e-7, allowed=1e-3, detail="2,048 sums"),
    ]
    return [
        verdict("Q8_0", 1.62, 28.4e6, 41, tasks=four),
        verdict("Q4_K_M", 1.71, 24.1e6, 62, tasks=four[:2]),
        verdict("Q2_K", 2.31, 21.9e6, 74),
        verdict("tenth-29MB", 1.619, 27.6e6, 44, tasks=four),
        verdict("tenth-25MB", 1.64, 24.3e6, 58),
        verdict("tenth-25MB", 1.66, 24.9e6, 51, artifact="12" * 32, date="2026-11-24T09:00:00+00:00"),
        verdict("narrow", 1.94, 29.1e6, 39, "structure", tasks=four),
        verdict("shallow", 2.05, 27.2e6, 55, "structure"),
        verdict("distilled", 1.83, 23.2e6, 66, "open", tasks=[task("piqa", 70, 63, chance=0.5, gap=0.3)]),
        verdict("own-words", 2.2, 22.8e6, 68, "scratch"),
        verdict("Q8_0", 1.62, 39.7e6, 140, conditions=server),
        verdict("Q6_K", 1.63, 34.4e6, 160, conditions=server),
        verdict("old-rules", 1.5, 20e6, 90, rules=RULES - 1),
        verdict(
            "constant",
            7.9,
            21e6,
            80,
            status="disqualified",
            probes=broken,
            reason="probe varied failed: 0 where at least 0.001 is asked",
            log_line="varied: 0.000000 < 0.001",
        ),
        verdict(
            "too-large",
            status="disqualified",
            readings=[],
            text_chunks=[],
            reason="peak memory 41.2 MB is over the budget of 30 MB",
            log_line="killed at 30.0 MB",
        ),
        verdict(
            "corrupt",
            status="disqualified",
            readings=[],
            text_chunks=[],
            manifest=None,
            artifact="",
            reason="a tensor's data end past the file's end",
        ),
    ]


def save(folder: Path, verdicts: list[Verdict], log: str = "what the judge saw\n") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for each in verdicts:
        (folder / f"{each.id}.json").write_text(each.model_dump_json(), encoding="utf-8")
        (folder / each.log).write_text(log, encoding="utf-8")
    return folder
