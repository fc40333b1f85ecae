"""The whole pipeline on one screen.

    folder -> checkpoint -> texts -> reference, calibration -> prices -> decide -> write -> prove -> measure -> report
                                                                  ^____________________|  constants corrected
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tenth import __version__, cost, native, prior
from tenth.checkpoint import Checkpoint, open_checkpoint, open_config
from tenth.errors import NativeError, OutputError
from tenth.formats.tokenizer import tokenizer_metadata
from tenth.meters.memory import prove
from tenth.meters.quality import original
from tenth.plan import Decision, Problem, decide
from tenth.records import MB, Budget, Candidate, Plan, Proof, Scorecard
from tenth.stages import Reporter, Stages, average_bits, default_work
from tenth.store import write_text
from tenth.text import LENGTH

TOLERANCE = 0.05  # of the predicted peak; beyond it the constants are corrected and the plan is made again
ATTEMPTS = 5


@dataclass(frozen=True)
class FitOptions:
    """What a person asked for."""

    model: Path
    destination: Path
    budget: Budget
    text: Path | None = None
    eval_text: Path | None = None
    windows: int = 32
    seed: int = 0
    work: Path | None = None
    threads: int = 0


def fit(options: FitOptions, reporter: Reporter) -> Scorecard:
    """Fit a model into a budget and write the bundle; the folder appears whole or not at all.

    Raises InputError, BudgetError (nothing fits), OutputError (cannot be written), NativeError (the runtime failed).
    """
    checkpoint = open_checkpoint(options.model)
    budget, specs = options.budget, checkpoint.specs()
    with _bundle(options.destination) as folder:
        stages = Stages(checkpoint, options.work or default_work(), reporter, folder / "log.txt", options.threads)
        _check_budget(checkpoint, budget, options.threads)  # hopeless ones fail before the long work
        with reporter.step("check the weights", sum(spec.count for spec in specs)) as advance:
            checkpoint.check_finite(advance)
        length = min(LENGTH, budget.context)
        texts = stages.texts(options.text, options.eval_text, length, options.windows, options.seed)
        calibration = stages.calibration(texts, options.seed)
        reference = stages.reference(texts)
        problem = Problem(
            checkpoint.config, checkpoint.arch.gguf_arch, specs,
            prices=stages.prices(calibration),
            kv=stages.kv_damages(texts, checkpoint.arch.head_dim(checkpoint.config)),
            context=budget.context, constants=cost.Constants(), merges=_merges(checkpoint), threads=options.threads,
        )  # fmt: skip
        gguf = folder / "model.gguf"
        problem, decision, proof = _prove(stages, problem, budget.memory, calibration, gguf, reporter)
        plan = _plan(checkpoint, budget, decision, gguf.stat().st_size)
        ours = Candidate(
            name="tenth", file_bytes=plan.file_bytes, fits=proof.fits, memory=decision.memory,
            readings=stages.measure(gguf, "our file", reference, decision.runtime),
        )  # fmt: skip
        baselines = stages.baselines(problem, decision, budget.memory, reference, calibration, folder)
        card = Scorecard(
            tenth=__version__, runtime=native.build(), machine=_machine(), model=checkpoint.name, sha256=_sha256(gguf),
            proof=proof, original=original(reference), candidates=[ours, *baselines], notes=[*_notes(options), *checkpoint.notes()],
        )  # fmt: skip
        _write_records(folder, plan, card, checkpoint)
    return card


def plan(model: Path, budget: Budget, reporter: Reporter, work: Path | None = None) -> Plan:
    """The decision without doing it, from config.json alone; damages are those of other models (prior.py)."""
    config, architecture = open_config(model)
    specs = architecture.specs(config)
    problem = Problem(
        config, architecture.gguf_arch, specs, prior.prices(specs), prior.kv(), budget.context, cost.Constants()
    )
    decision = decide(problem, budget.memory)
    return Plan(
        model=model.resolve().name, model_hash="", architecture=architecture.model_type,
        parameters=sum(spec.count for spec in specs), budget=budget, runtime=decision.runtime, types=decision.types,
        memory=decision.memory, file_bytes=decision.memory.weights,
        bits_per_weight=8 * decision.memory.weights / sum(spec.count for spec in specs),
        damage=decision.damage, damage_source="prior",
    )  # fmt: skip


def _prove(
    stages: Stages, problem: Problem, budget: int, calibration: Path, gguf: Path, reporter: Reporter
) -> tuple[Problem, Decision, Proof]:
    """Decide, write, run under the limit; correct the constants and try again until the artifact was seen to fit."""
    allowed = budget
    for attempt in range(1, ATTEMPTS + 1):
        decision = decide(problem, allowed)
        stages.write(decision.types, calibration, gguf, "store the model")
        with reporter.step("prove that it fits", 1.0) as advance:
            proof = prove(gguf, decision.runtime, budget, decision.memory.total, stages.log, advance)
        proof = proof.model_copy(update={"attempts": attempt})
        if proof.fits and abs(proof.error) <= TOLERANCE:
            return problem, decision, proof
        reporter.say(
            f"peak {proof.peak / MB:.1f} MB, predicted {proof.predicted / MB:.1f} MB, budget {budget / MB:.1f} MB:"
            " correcting the memory model and planning again"
        )
        if proof.fits or proof.parts.get("peak"):
            constants = cost.corrected(problem.constants, decision.memory, proof.parts)
            problem = Problem(**{**vars(problem), "constants": constants})
        if not proof.fits:
            allowed -= max(proof.peak - budget, budget // 200)
    raise NativeError(f"no plan was seen to fit {budget / MB:.1f} MB in {ATTEMPTS} attempts; {stages.log} has the runs")


def _check_budget(checkpoint: Checkpoint, budget: Budget, threads: int) -> None:
    """BudgetError now, if even the smallest types cannot fit."""
    specs = checkpoint.specs()
    decide(
        Problem(
            checkpoint.config, checkpoint.arch.gguf_arch, specs, prior.prices(specs), prior.kv(), budget.context,
            cost.Constants(), _merges(checkpoint), threads,
        ),
        budget.memory,
    )  # fmt: skip


def _merges(checkpoint: Checkpoint) -> int:
    """BPE merges that llama.cpp will hold beside the vocabulary."""
    keys = tokenizer_metadata(checkpoint.path, checkpoint.config).keys
    return len(keys.get("tokenizer.ggml.merges", ()))


def _plan(checkpoint: Checkpoint, budget: Budget, decision: Decision, size: int) -> Plan:
    return Plan(
        model=checkpoint.name, model_hash=checkpoint.hash(), architecture=checkpoint.arch.model_type,
        parameters=sum(spec.count for spec in checkpoint.specs()), budget=budget, runtime=decision.runtime,
        types=decision.types, memory=decision.memory, file_bytes=size,
        bits_per_weight=average_bits(decision.types, checkpoint), damage=decision.damage, damage_source="measured",
    )  # fmt: skip


@contextmanager
def _bundle(destination: Path) -> Iterator[Path]:
    """A folder beside the destination that takes its name at the end, and is removed where anything fails."""
    partial = destination.with_name(destination.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        if destination.exists():
            shutil.rmtree(destination)
        os.replace(partial, destination)
    except OSError as error:
        raise OutputError(f"cannot write {destination}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_records(folder: Path, plan: Plan, card: Scorecard, checkpoint: Checkpoint) -> None:
    from tenth import report

    write_text(folder / "plan.json", plan.model_dump_json(indent=1))
    write_text(folder / "scorecard.json", card.model_dump_json(indent=1))
    write_text(folder / "report.html", report.render(plan, card))


def _notes(options: FitOptions) -> list[str]:
    judged = options.eval_text or (f"the end of {options.text}" if options.text else "the end of the bundled text")
    return [
        f"judged on {judged}, which calibration did not see",
        "baselines run with the settings of our plan (context, n_ubatch, KV types), which is kinder to them than the defaults",
    ]


def _machine() -> str:
    return f"{platform.machine()}, {native.cores()} cores, {platform.system()} {platform.release()}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
