"""The whole pipeline on one screen.

folder -> checkpoint -> texts -> calibration -> prices -> decide -> round, write -> prove -> measure -> report
                             `-> reference                ^______ constants corrected ______|
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from tenth import __version__, bundle, cost, native, prior, text
from tenth.arch import Architecture
from tenth.checkpoint import Checkpoint, open_checkpoint, open_config
from tenth.effort import EFFORTS, WORTH_TRAINING, Effort, expected
from tenth.encode import bits_per_weight
from tenth.errors import InputError
from tenth.formats.tokenizer import tokenizer_metadata
from tenth.meters.check import sample
from tenth.meters.quality import original
from tenth.outlook import asked, outlook
from tenth.plan import Decision, Problem, decide
from tenth.profile import Device
from tenth.proving import Lesson, Lessons, prove_until_it_fits
from tenth.records import Budget, Candidate, Demands, Plan, Scorecard
from tenth.stages import Reporter, Stages, default_work


@dataclass(frozen=True)
class FitOptions:
    """What a person asked for."""

    model: Path
    destination: Path
    budget: Budget
    text: Path | None = None
    eval_text: Path | None = None
    effort: str = "normal"  # of EFFORTS
    windows: int | None = None  # of text to calibrate on, instead of the effort's
    seed: int = 0
    work: Path | None = None
    threads: int = 0
    compute: str = "cpu"  # or "cuda": where torch calibrates and rounds
    overwrite: bool = False  # a finished bundle at the destination
    baselines: int = 2  # stock recipes to measure beside it, and plain Q4_0; 0: none of them
    device: Device | None = None  # that the budget is a share of
    demands: Demands = field(default_factory=Demands)  # of that device


def fit(options: FitOptions, reporter: Reporter) -> Scorecard:
    """Fit a model into a budget and write the bundle; the folder appears whole or not at all.

    Raises InputError, BudgetError (nothing fits), OutputError (cannot be written) or NativeError (the runtime
    failed).
    """
    checkpoint, budget = open_checkpoint(options.model), options.budget
    for path in (options.text, options.eval_text):
        text.read(path)  # an unusable one is better heard of now
    with bundle.new(options.destination, options.overwrite) as folder:
        work, log, gguf = options.work or default_work(), folder / bundle.LOG, folder / "model.gguf"
        merges = _merges(checkpoint)
        problem = _guess(checkpoint.config, checkpoint.arch, budget, merges, options.threads)
        if options.device:
            problem = asked(problem, options.device, options.demands)
        decide(problem, budget.memory)  # where nothing can fit, this says so before the long work

        stages = Stages(checkpoint, work, reporter, log, options.threads, options.compute)
        length, effort = min(text.LENGTH, budget.context), _effort(options)
        weights = sum(spec.count for spec in checkpoint.specs())
        minutes = expected(effort, weights, length, options.threads, options.compute) / 60
        reporter.say(
            f"effort {options.effort}: calibrating and rounding will take about {minutes:.0f} min here"
        )
        texts = stages.texts(options.text, options.eval_text, length, effort, options.seed)
        stages.check_weights()
        calibration = stages.calibration(texts, options.seed)
        reference = stages.reference(texts)
        prices = stages.prices(calibration)
        kv = stages.kv_damages(texts, checkpoint.arch.head_dim(checkpoint.config))

        lessons = Lessons(work, stages.model_hash)
        lesson = Lesson(
            memory=budget.memory, context=budget.context, threads=options.threads, merges=merges,
            prices=stages.used["prices"].name, kv=stages.used["kv"].name, allowed=budget.memory,
            demands=_demanded(options.device, options.demands),
        )  # fmt: skip

        def store(decision: Decision, training: bool = False) -> None:
            rounded = stages.rounded(texts, calibration, decision.types, effort)
            if training:
                rounded = stages.trained(texts, rounded, decision.types, effort, options.seed)
            stages.write(decision.types, calibration, gguf, "store the model", rounded)

        problem = replace(problem, prices=prices, kv=kv)
        problem, decision, proof = prove_until_it_fits(stages, problem, lesson, lessons, gguf, store)
        if effort.steps and decision.damage > WORTH_TRAINING:
            train = partial(store, training=True)
            problem, decision, proof = prove_until_it_fits(stages, problem, lesson, lessons, gguf, train)
        ours = Candidate(
            name="tenth", file_bytes=gguf.stat().st_size, fits=proof.fits, memory=decision.memory,
            readings=stages.measure(gguf, "our file", reference, decision.runtime),
        )  # fmt: skip
        baselines = stages.baselines(
            problem, decision, budget.memory, reference, calibration, folder, options.baselines
        )
        card = Scorecard(
            tenth=__version__, runtime=native.build(), machine=_machine(), model=checkpoint.name,
            sha256=_sha256(gguf), proof=proof, original=original(reference), candidates=[ours, *baselines],
            notes=[*_notes(options, effort), *checkpoint.notes()],
            sample=sample(gguf, decision.runtime, log),
        )  # fmt: skip
        plan = _plan(
            problem, decision, options.device, options.demands, budget=budget, model=checkpoint.name,
            model_hash=stages.model_hash,
            architecture=checkpoint.arch.model_type, file_bytes=ours.file_bytes,
            damage_source="measured",
        )  # fmt: skip
        bundle.write(folder, plan, card)
    return card


def plan(
    model: Path, budget: Budget, work: Path | None = None, device: Device | None = None,
    demands: Demands | None = None,
) -> Plan:  # fmt: skip
    """The decision without doing it, from config.json alone, or from what a fit measured in its work folder.

    Where no fit did, the damages are those of another model (prior.py). demands: of the device. Raises
    InputError, BudgetError.
    """
    config, architecture = open_config(model)
    demands = demands or Demands()
    problem, allowed, digest = _guess(config, architecture, budget), budget.memory, ""
    with suppress(InputError):  # a folder without weights, or not with all of them
        digest = open_checkpoint(model).hash()
    lessons = Lessons(work or default_work(), digest)
    lesson = lessons.nearest(budget) if digest else None
    if lesson:
        prices, kv = lessons.measurements(lesson)
        allowed = lesson.allowed
        problem = replace(
            problem, prices=prices, kv=kv, constants=lesson.constants, merges=lesson.merges,
            threads=lesson.threads,
        )  # fmt: skip
    if device:
        problem = asked(problem, device, demands)
    decision = decide(problem, allowed)
    return _plan(
        problem, decision, device, demands, budget=budget, model=model.resolve().name, model_hash=digest,
        architecture=architecture.model_type, file_bytes=decision.memory.weights,
        damage_source="measured" if lesson else "prior",
    )  # fmt: skip


def _guess(
    config: Mapping[str, Any], arch: Architecture, budget: Budget, merges: int | None = None, threads: int = 0
) -> Problem:
    """The problem with another model's damages."""
    specs = arch.specs(dict(config))
    return Problem(
        config, arch.gguf_arch, specs, prior.prices(specs), prior.kv(), budget.context, cost.Constants(),
        merges, threads,
    )  # fmt: skip


def _effort(options: FitOptions) -> Effort:
    effort = EFFORTS[options.effort]
    return effort if options.windows is None else replace(effort, windows=options.windows)


def _merges(checkpoint: Checkpoint) -> int:
    """BPE merges that llama.cpp will hold beside the vocabulary."""
    keys = tokenizer_metadata(checkpoint.path, checkpoint.config).keys
    return len(keys.get("tokenizer.ggml.merges", ()))


def _demanded(device: Device | None, demands: Demands) -> str:
    """What tells two fits apart that ask different things of a device; empty where nothing is asked."""
    limited = demands.min_speed or demands.max_joules or demands.battery_hours or demands.prefer == "speed"
    return f"{device.name} {demands.model_dump_json(exclude={'grid'})}" if device and limited else ""


def _plan(
    problem: Problem, decision: Decision, device: Device | None, demands: Demands, **known: Any
) -> Plan:
    chosen = [spec for spec in problem.specs if spec.linear]
    bits = sum(bits_per_weight(decision.types[spec.name]) * spec.count for spec in chosen)
    return Plan(
        parameters=sum(spec.count for spec in problem.specs), runtime=decision.runtime, types=decision.types,
        memory=decision.memory, bits_per_weight=bits / sum(spec.count for spec in chosen),
        damage=decision.damage,
        outlook=outlook(problem, decision, known["budget"].memory, device, demands) if device else None,
        **known,
    )  # fmt: skip


def _notes(options: FitOptions, effort: Effort) -> list[str]:
    end = f"the end of {options.text}" if options.text else "the end of the bundled text"
    rounding = "rounded to nearest" if effort.rounds is None else "rounded with error feedback"
    return [
        f"effort {options.effort}: calibrated on up to {effort.windows} windows, {rounding}",
        f"judged on {options.eval_text or end}, which calibration did not see",
        "baselines run with the settings of our plan (context, n_ubatch, KV types),"
        " which is kinder to them than the defaults",
    ]


def _machine() -> str:
    return f"{platform.machine()}, {native.cores()} cores, {platform.system()} {platform.release()}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
