"""The whole pipeline on one screen.

folder -> checkpoint -> texts -> calibration -> sensitivities -> decide -> round, write -> prove -> measure
  |            ^            `-> reference        |                 ^____ memory correction ____|     -> report
  `- tokens    |                                 `- where bits are few: pruning costs -> shape
     removed   `------------------------------------ distil <- remove, refit <-----------'
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from tenth import __version__
from tenth.calibration.windows import LENGTH
from tenth.core.errors import BudgetError, InputError
from tenth.core.ggml import storage_type
from tenth.core.progress import Reporter
from tenth.core.records import Candidate, Plan, Reading, Scorecard, Structure
from tenth.core.store import default_work, sha256
from tenth.measurement.check import sample
from tenth.measurement.quality import original
from tenth.models.checkpoint import Checkpoint, open_checkpoint, open_config
from tenth.models.edit import uniform
from tenth.models.formats.folder import write_folder
from tenth.models.source import model_name
from tenth.pipeline.analysis import Analysis, Untrimmed, analyse, check, estimated, removable, rotation
from tenth.pipeline.baselines import baselines, keeping_all_tokens
from tenth.pipeline.candidates import Fitted, Search, candidates
from tenth.pipeline.options import FitOptions, Target
from tenth.pipeline.steps import Stages, Workshop
from tenth.pipeline.verify import MemoryCorrections
from tenth.planning.forecast import forecast
from tenth.planning.plan import Decision, Problem, decide
from tenth.planning.requirements import with_requirements
from tenth.report import page
from tenth.report.tables import OF_FEWER_TOKENS
from tenth.runtime import bundle, llama

__all__ = ["FitOptions", "fit", "plan"]

COMPARABLE = ("bits_per_byte",)  # readings of models with different tokens


def fit(options: FitOptions, reporter: Reporter) -> Scorecard:
    """Fit a model into a budget and write the bundle; the folder appears whole or not at all.

    Of several models, and of bits alone and a smaller model, the one with the fewest bits per byte of
    held-out text is kept. Raises InputError, BudgetError (nothing fits), OutputError (cannot be written) or
    NativeError (the runtime failed).
    """
    work, texts = options.work or default_work(), [options.making.text, options.making.eval_text]
    inputs = [*options.models, *(path for path in texts if path is not None)]
    bundle.check_apart(options.destination, work, inputs)
    with bundle.new(options.destination, options.overwrite) as folder:
        log, gguf = folder / bundle.LOG, folder / "model.gguf"
        workshop = Workshop(work, reporter, log, options.making.compute)
        best, of, beside = _best(options, workshop, folder, gguf)
        problem = replace(of.problem, constants=best.problem.constants)  # as the proof corrected them
        stock = baselines(of, problem, best.decision, folder, options.baselines)
        whole = keeping_all_tokens(of, best.problem, best.decision, folder) if options.baselines else []
        if options.folder is not None:
            reporter.say(f"writing the Hugging Face folder, {options.folder}")
            write_folder(uniform(best.analysis.checkpoint), folder / bundle.FOLDER, options.folder)
        ours = best.candidate.model_copy(update={"name": "tenth"})
        card = Scorecard(
            tenth=__version__,
            runtime=llama.build(),
            machine=f"{platform.machine()}, {llama.cores()} cores, {platform.system()} {platform.release()}",
            model=best.analysis.checkpoint.name,
            sha256=sha256(gguf),
            proof=best.proof,
            original=_original(of),
            candidates=_candidates(of, [ours, *beside, *stock], whole),
            notes=_notes(options, best),
            sample=sample(gguf, best.decision.runtime, log),
            vocabulary=of.structure.vocabulary if of.structure else None,
        )
        bundle.write(folder, _fitted_plan(options.target, best), card)
        page.write(folder)
    return card


def plan(model: Path, target: Target, work: Path | None = None) -> Plan:
    """The decision without doing it, from config.json alone, or from what a fit measured in its work folder.

    It chooses storage types and settings and removes nothing; what removing parts of the model would give is
    known only to a fit. Where no fit measured the sensitivities, they are those of another model
    (quantization/default_sensitivity.py). Raises InputError, BudgetError.
    """
    config, architecture = open_config(model)
    budget, digest, checkpoint = target.budget, "", None
    with suppress(InputError):  # a folder without weights, or not with all of them
        checkpoint = open_checkpoint(model)
        config, architecture, digest = checkpoint.config, checkpoint.arch, checkpoint.hash()
    problem, allowed = (
        estimated(architecture.shape(config), architecture.specs(config), budget),
        budget.memory,
    )
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
    if target.device:
        problem = with_requirements(problem, target.device, target.requirements)
    try:
        decision = decide(problem, allowed)
    except BudgetError as error:
        if checkpoint and error.smallest and removable(checkpoint, budget):
            raise BudgetError(f"{error}, or tenth fit, which removes parts of it", error.smallest) from None
        raise
    made = _plan(target, problem, decision, model_name(model), architecture.model_type)
    source = "measured" if correction else "default"
    return made.model_copy(update={"model_hash": digest, "sensitivity_source": source})


def _best(
    options: FitOptions, workshop: Workshop, folder: Path, gguf: Path
) -> tuple[Fitted, Analysis, list[Candidate]]:
    """The best of all files, now in `gguf`; the model that it is a file of, or was made from; the others."""
    best: Fitted | None = None
    beside: list[Candidate] = []
    for analysis, fitted in _files(options, workshop, folder):
        if best is None or fitted.bits_per_byte < best.bits_per_byte:
            if best is not None:
                beside.append(best.candidate)
            best, of = fitted, analysis
            fitted.gguf.replace(gguf)
        else:
            beside.append(fitted.candidate)
            fitted.gguf.unlink()
    assert best is not None
    return best, of, beside


def _files(options: FitOptions, workshop: Workshop, folder: Path) -> Iterator[tuple[Analysis, Fitted]]:
    """Every file of every model; BudgetError where nothing of any fits."""
    target, making = options.target, options.making
    search = Search(target, making, options.removal, folder, len(options.models) > 1)
    sources = [_source(options, path, workshop) for path in options.models]
    count = 0
    for number, (checkpoint, structure, given) in enumerate(sources, 1):
        analysis = analyse(checkpoint, target, making, workshop, structure, given=given)
        try:
            for fitted in candidates(search, analysis):
                yield analysis, fitted
                count += 1
        except BudgetError as error:
            if number == len(sources) and not count:
                raise
            workshop.reporter.say(f"{checkpoint.name}: {error}")


def _source(
    options: FitOptions, path: Path, workshop: Workshop
) -> tuple[Checkpoint, Structure | None, Untrimmed | None]:
    """The model to fit, with fewer tokens where that is asked for, and then the one with all; the work folder
    is not made before it is clear that something can fit.
    """
    target, making, removal = options.target, options.making, options.removal
    checkpoint = open_checkpoint(path)
    if removal.vocabulary is None and not removal.languages:
        check(checkpoint, target, making, removal)
        return checkpoint, None, None
    stages, before, healed = Stages(checkpoint, workshop), checkpoint.shape.vocab, ""
    folder, trim = stages.trimmed(making.text, removal.vocabulary or before, removal.languages)
    length = min(LENGTH, target.budget.context)
    texts = stages.texts(making.text, making.eval_text, length, making.tried, making.seed)
    reference = stages.reference(texts)
    bits = next(r.value for r in original(reference) if r.name == "bits_per_byte")
    given = Untrimmed(checkpoint, stages, reference, bits, trim.tokens / max(1, trim.tokens_before))
    if removal.training_budget is not None:
        folder, result = stages.healed_vocabulary(
            folder, texts, making.text, removal.training_budget, making.seed
        )
        healed = f"{removal.heal}: loss {result.before:.3g} to {result.after:.3g} on windows held back"
    trimmed = replace(open_checkpoint(folder), name=checkpoint.name)
    check(trimmed, target, making, removal)
    weights = sum(spec.count for spec in checkpoint.specs())
    sizes = before, trimmed.shape.vocab
    structure = Structure(parameters=weights, vocabulary=sizes, healed=healed, original_bits=bits)
    return trimmed, structure, given


def _candidates(of: Analysis, made: Sequence[Candidate], whole: Sequence[Candidate]) -> list[Candidate]:
    """All files, ours first; where tokens were removed, their readings say of which model they are."""
    if of.given is None:
        return [*made, *whole]
    said = f"; of the model with {of.checkpoint.shape.vocab:,} tokens, not of the one that was given"

    def told(reading: Reading) -> Reading:
        changes = {"conditions": reading.conditions + said} if reading.name in OF_FEWER_TOKENS else {}
        return reading.model_copy(update=changes)

    ours, *others = [
        each.model_copy(update={"readings": [told(reading) for reading in each.readings]}) for each in made
    ]
    return [ours, *whole, *others]


def _original(of: Analysis) -> list[Reading]:
    """Readings of the model that a person gave; of other tokens only those that compare."""
    if of.given is None:
        return original(of.reference)
    return [reading for reading in original(of.given.reference) if reading.name in COMPARABLE]


def _plan(target: Target, problem: Problem, decision: Decision, name: str, architecture: str) -> Plan:
    """A decision about a model of that name as a plan, its sensitivities measured."""
    linear = [spec for spec in problem.specs if spec.linear]
    bits = sum(storage_type(decision.types[spec.name]).bits_per_weight * spec.count for spec in linear)
    device, budget = target.device, target.budget
    return Plan(
        model=name,
        model_hash="",
        architecture=architecture,
        parameters=sum(spec.count for spec in problem.specs),
        budget=budget,
        runtime=decision.runtime,
        types=decision.types,
        memory=decision.memory,
        file_bytes=decision.memory.weights,
        bits_per_weight=bits / sum(spec.count for spec in linear),
        predicted_kl=decision.predicted_kl,
        sensitivity_source="measured",
        forecast=forecast(problem, decision, budget.memory, device, target.requirements) if device else None,
    )


def _fitted_plan(target: Target, best: Fitted) -> Plan:
    """The plan of a file that was made."""
    checkpoint = best.analysis.checkpoint
    made = _plan(target, best.problem, best.decision, checkpoint.name, checkpoint.arch.model_type)
    known = {
        "model_hash": best.analysis.stages.model_hash,
        "file_bytes": best.candidate.file_bytes,
        "structure": best.analysis.structure,
    }
    return made.model_copy(update=known)


def _notes(options: FitOptions, best: Fitted) -> list[str]:
    """What a person must know to read the figures."""
    making, analysis = options.making, best.analysis
    end = f"the end of {making.text}" if making.text else "the end of the bundled text"
    effort = making.tried
    rounding = "rounded to nearest" if effort.rounds is None else "rounded with error feedback"
    return [
        f"effort {making.effort}: calibrated on up to {effort.windows} windows, {rounding}",
        f"judged on {making.eval_text or end}, which calibration did not see",
        "baselines run with the settings of our plan (context, n_ubatch, KV types),"
        " which is kinder to them than the defaults",
        *analysis.texts.notes(),
        *filter(None, [analysis.stages.template_trouble]),
        *rotation(analysis.checkpoint, options.target.budget.context),
        *_removed(analysis.structure),
        *analysis.checkpoint.notes(),
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
            f"{after:,} of {before:,} tokens were kept: KL, agreement and perplexity are those of the model"
            f" with these tokens, not of the one that was given; only bits per byte compares, and the"
            f" original's is {structure.original_bits:.4f}"
        )
    return notes
