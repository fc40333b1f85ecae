"""The whole pipeline on one screen.

folder -> checkpoint -> texts -> calibration -> sensitivities -> decide -> round, write -> prove -> measure
  |            ^            `-> reference        |                 ^____ memory correction ____|     -> report
  `- tokens    |                                 `- where bits are few: pruning costs -> shape
     removed   `------------------------------------ distil <- remove, refit <-----------'
"""

from __future__ import annotations

import platform
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from tenth import __version__
from tenth.core.errors import BudgetError, InputError
from tenth.core.ggml import storage_type
from tenth.core.progress import Reporter
from tenth.core.records import Budget, Candidate, Plan, Requirements, Scorecard, Structure
from tenth.core.store import default_work, sha256
from tenth.devices.profile import Device
from tenth.distillation.budget import TrainingBudget
from tenth.measurement.check import sample
from tenth.measurement.quality import original
from tenth.models import text
from tenth.models.checkpoint import Checkpoint, open_checkpoint, open_config
from tenth.models.edit import uniform
from tenth.models.formats.folder import write_folder
from tenth.pipeline.candidates import (
    Analysis,
    FitOptions,
    Fitted,
    analyse,
    candidates,
    check,
    estimated,
    removable,
)
from tenth.pipeline.steps import Stages
from tenth.pipeline.verify import MemoryCorrections
from tenth.planning.forecast import asked, forecast
from tenth.planning.plan import Decision, Problem, decide
from tenth.report import page
from tenth.runtime import bundle, llama

__all__ = ["FitOptions", "fit", "plan"]


def fit(options: FitOptions, reporter: Reporter) -> Scorecard:
    """Fit a model into a budget and write the bundle; the folder appears whole or not at all.

    Of several models, and of bits alone and a smaller model, the one with the fewest bits per byte of
    held-out text is kept. Raises InputError, BudgetError (nothing fits), OutputError (cannot be written) or
    NativeError (the runtime failed).
    """
    work = options.work or default_work()
    with bundle.new(options.destination, options.overwrite) as folder:
        log, gguf = folder / bundle.LOG, folder / "model.gguf"
        sources = [_source(options, path, work, reporter, log) for path in (options.model, *options.others)]
        best: Fitted | None = None
        beside: list[Candidate] = []
        for checkpoint, structure in sources:
            analysis = analyse(options, checkpoint, work, reporter, log, structure=structure)
            for found in _possible(options, analysis, folder, best is None and checkpoint is sources[-1][0]):
                if best is None or found.bits_per_byte < best.bits_per_byte:
                    best, found, base = found, best, analysis
                    best.gguf.replace(gguf)
                else:
                    found.gguf.unlink()
                if found is not None:
                    beside.append(found.candidate)
        assert best is not None
        ours = best.candidate.model_copy(update={"name": "tenth"})
        whole = replace(base.problem, constants=best.problem.constants)  # as the proof corrected them
        baselines = base.stages.baselines(
            whole,
            best.decision,
            options.budget.memory,
            base.reference,
            base.calibration,
            folder,
            options.baselines,
        )
        if options.folder is not None:
            reporter.say(f"writing the Hugging Face folder, {options.folder}")
            write_folder(uniform(best.analysis.checkpoint), folder / bundle.FOLDER, options.folder)
        card = Scorecard(
            tenth=__version__,
            runtime=llama.build(),
            machine=_machine(),
            model=best.analysis.checkpoint.name,
            sha256=sha256(gguf),
            proof=best.proof,
            original=original(base.reference),
            candidates=[ours, *beside, *baselines],
            notes=_notes(options, best),
            sample=sample(gguf, best.decision.runtime, log),
        )
        plan = _plan(
            best.problem,
            best.decision,
            options.device,
            options.requirements,
            budget=options.budget,
            model=best.analysis.checkpoint.name,
            model_hash=best.analysis.stages.model_hash,
            architecture=best.analysis.checkpoint.arch.model_type,
            file_bytes=ours.file_bytes,
            sensitivity_source="measured",
            structure=best.analysis.structure,
        )
        bundle.write(folder, plan, card)
        page.write(folder)
    return card


def plan(
    model: Path,
    budget: Budget,
    work: Path | None = None,
    device: Device | None = None,
    requirements: Requirements | None = None,
) -> Plan:
    """The decision without doing it, from config.json alone, or from what a fit measured in its work folder.

    It chooses storage types and settings and removes nothing; what removing parts of the model would give is
    known only to a fit. Where no fit measured the sensitivities, they are those of another model
    (quantization/default_sensitivity.py).
    requirements: of the device. Raises InputError, BudgetError.
    """
    config, architecture = open_config(model)
    requirements = requirements or Requirements()
    problem = estimated(architecture.shape(config), architecture.specs(config), budget)
    allowed, digest, checkpoint = budget.memory, "", None
    with suppress(InputError):  # a folder without weights, or not with all of them
        checkpoint = open_checkpoint(model)
        digest = checkpoint.hash()
    corrections = MemoryCorrections(work or default_work(), digest)
    correction = corrections.nearest(budget) if digest else None
    if correction:
        sensitivities, kv = corrections.measurements(correction)
        allowed = correction.allowed
        problem = replace(
            problem,
            sensitivities=sensitivities,
            kv=kv,
            constants=correction.constants,
            merges=correction.merges,
            threads=correction.threads,
        )
    if device:
        problem = asked(problem, device, requirements)
    try:
        decision = decide(problem, allowed)
    except BudgetError as error:
        if checkpoint and error.smallest and removable(checkpoint, budget):
            raise BudgetError(f"{error}, or tenth fit, which removes parts of it", error.smallest) from None
        raise
    return _plan(
        problem,
        decision,
        device,
        requirements,
        budget=budget,
        model=model.resolve().name,
        model_hash=digest,
        architecture=architecture.model_type,
        file_bytes=decision.memory.weights,
        sensitivity_source="measured" if correction else "default",
    )


def _source(
    options: FitOptions, path: Path, work: Path, reporter: Reporter, log: Path
) -> tuple[Checkpoint, Structure | None]:
    """The model to fit, with fewer tokens where that is asked for; the work folder is not made before it is
    clear that something can fit.
    """
    checkpoint = open_checkpoint(path)
    before = checkpoint.shape.vocab
    if options.vocabulary is None and not options.languages:
        check(options, checkpoint)
        return checkpoint, None
    stages = Stages(checkpoint, work, reporter, log, options.where)
    folder, healed = stages.trimmed(options.text, options.vocabulary or before, options.languages), ""
    length = min(text.LENGTH, options.budget.context)
    texts = stages.texts(options.text, options.eval_text, length, options.tried, options.seed)
    bits = next(r.value for r in original(stages.reference(texts)) if r.name == "bits_per_byte")
    if options.heal:
        training_budget = TrainingBudget.parse(options.heal)
        folder, training = stages.healed_vocabulary(
            folder, texts, options.text, training_budget, options.seed
        )
        healed = f"{options.heal}: loss {training.before:.3g} to {training.after:.3g} on windows held back"
    trimmed = replace(open_checkpoint(folder), name=checkpoint.name)
    check(options, trimmed)
    weights = sum(spec.count for spec in checkpoint.specs())
    after = trimmed.shape.vocab
    structure = Structure(parameters=weights, vocabulary=(before, after), healed=healed, original_bits=bits)
    return trimmed, structure


def _possible(options: FitOptions, analysis: Analysis, folder: Path, last: bool) -> list[Fitted]:
    """The files of a model; none where nothing of it fits and there are others."""
    try:
        return list(candidates(options, analysis, folder))
    except BudgetError as error:
        if last:
            raise
        analysis.stages.reporter.say(f"{analysis.checkpoint.name}: {error}")
        return []


def _plan(
    problem: Problem, decision: Decision, device: Device | None, requirements: Requirements, **analysis: Any
) -> Plan:
    chosen = [spec for spec in problem.specs if spec.linear]
    bits = sum(storage_type(decision.types[spec.name]).bits_per_weight * spec.count for spec in chosen)
    return Plan(
        parameters=sum(spec.count for spec in problem.specs),
        runtime=decision.runtime,
        types=decision.types,
        memory=decision.memory,
        bits_per_weight=bits / sum(spec.count for spec in chosen),
        predicted_kl=decision.predicted_kl,
        forecast=forecast(problem, decision, analysis["budget"].memory, device, requirements)
        if device
        else None,
        **analysis,
    )


def _notes(options: FitOptions, best: Fitted) -> list[str]:
    end = f"the end of {options.text}" if options.text else "the end of the bundled text"
    effort = options.tried
    rounding = "rounded to nearest" if effort.rounds is None else "rounded with error feedback"
    return [
        f"effort {options.effort}: calibrated on up to {effort.windows} windows, {rounding}",
        f"judged on {options.eval_text or end}, which calibration did not see",
        "baselines run with the settings of our plan (context, n_ubatch, KV types),"
        " which is kinder to them than the defaults",
        *_removed(best.analysis.structure),
        *best.analysis.checkpoint.notes(),
    ]


def _removed(structure: Structure | None) -> list[str]:
    """What a person must know of a smaller model to read its figures."""
    if structure is None:
        return []
    notes = [f"healed, {structure.healed}"] if structure.healed else []
    if structure.shape is not None:
        notes.append(f"parts of the model were removed: KL {structure.kl:.3g} before any quantisation")
    if structure.vocabulary is not None:
        before, after = structure.vocabulary
        notes.append(
            f"{after:,} of {before:,} tokens were kept: KL, agreement and perplexity are against the model"
            f" with those, only bits per byte compares, and the original's is {structure.original_bits:.4f}"
        )
    return notes


def _machine() -> str:
    return f"{platform.machine()}, {llama.cores()} cores, {platform.system()} {platform.release()}"
