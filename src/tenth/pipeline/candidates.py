"""One model on its way into a budget: measured, made smaller where that pays, stored, seen to fit.

    analyse      texts, calibration, sensitivities, the original's answers: all that a decision needs
    make         decide, round, write, prove, measure: a file
    candidates   the file of bits alone; and, where bits are few or none suffice, that of a smaller model too

The smaller model is a folder like any other (pruning/structure.py); it is analysed and made like one, and
judged by the original's answers. Which shape it gets is decided with the original's sensitivities: a matrix
that lost channels keeps its own, since the channels that matter stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from tenth.core.errors import BudgetError
from tenth.core.ggml import WEIGHT_TYPES
from tenth.core.jobs import Compute
from tenth.core.progress import Reporter
from tenth.core.records import Budget, Candidate, Proof, Requirements, Shape, Structure, TensorSpec
from tenth.devices.profile import Device
from tenth.distillation.budget import TrainingBudget
from tenth.measurement.quality import between
from tenth.models import text
from tenth.models.checkpoint import Checkpoint, open_checkpoint
from tenth.models.formats.hf import FloatType
from tenth.models.formats.tokenizer import tokenizer_metadata
from tenth.models.shape import ModelShape
from tenth.models.text import Texts
from tenth.pipeline.effort import EFFORTS, WORTH_TRAINING, Effort, expected
from tenth.pipeline.steps import Stages
from tenth.pipeline.verify import MemoryCorrection, MemoryCorrections, prove_until_it_fits
from tenth.planning import joint
from tenth.planning import memory as cost
from tenth.planning.forecast import asked
from tenth.planning.plan import Decision, Problem, decide, smallest_decision
from tenth.pruning import resized, shape
from tenth.quantization import default_sensitivity

WORTH_REMOVING = 0.05  # nats of predicted KL of bits alone; where there is less, no removal is tried
# Of what removal costs this much is planned to stay after healing. With 1 Mtok on a 46 M Llama .73 to .91 of
# the KL and .53 to .62 of the rise in bits per byte stayed (docs/results/structure.jsonl).
HEALS = 0.5
BETTER = 0.95  # of the predicted KL: what another way must promise to be made as well
KQUANT = 256  # weights of a super-block: widths of which K- and I-quants can store


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
    requirements: Requirements = field(default_factory=Requirements)  # of that device
    others: tuple[Path, ...] = ()  # further models, of which the best fit is wanted
    structure: bool = True  # parts of the model may be removed
    homogeneous: bool = False  # all blocks alike
    heal: str | None = None  # distillation/budget.py
    vocabulary: int | None = None  # tokens to keep
    languages: tuple[str, ...] = ()
    quantise: bool = True  # else every matrix stays F16
    folder: FloatType | None = None  # also as a Hugging Face folder, of this type

    @property
    def tried(self) -> Effort:
        """The effort with the windows that were asked for."""
        effort = EFFORTS[self.effort]
        return effort if self.windows is None else replace(effort, windows=self.windows)

    @property
    def where(self) -> Compute:
        """Where torch computes."""
        return Compute(threads=self.threads, device=self.compute)

    @property
    def alike(self) -> bool:
        """Whether the blocks of a smaller model must be alike: a Hugging Face folder can be nothing else."""
        return self.homogeneous or self.folder is not None


@dataclass(frozen=True)
class Analysis:
    """A model, and what was measured of it."""

    checkpoint: Checkpoint
    stages: Stages
    texts: Texts
    calibration: Path
    reference: Path  # that its files are judged by
    problem: Problem
    correction: MemoryCorrection
    structure: Structure | None = None  # of a smaller model


@dataclass(frozen=True)
class Fitted:
    """A file that was seen to fit."""

    analysis: Analysis
    gguf: Path
    problem: Problem
    decision: Decision
    proof: Proof
    candidate: Candidate

    @property
    def bits_per_byte(self) -> float:
        """Of the held-out text: what models of different vocabularies are compared by."""
        value = self.candidate.value("bits_per_byte")
        assert value is not None
        return value


def estimated(
    model: ModelShape,
    specs: Sequence[TensorSpec],
    budget: Budget,
    merges: int | None = None,
    threads: int = 0,
) -> Problem:
    """The problem with another model's sensitivities."""
    return Problem(
        model,
        specs,
        default_sensitivity.sensitivities(specs),
        default_sensitivity.kv(),
        budget.context,
        cost.Constants(),
        merges,
        threads,
    )


def check(options: FitOptions, checkpoint: Checkpoint) -> None:
    """BudgetError before the long work, where nothing can fit by any means that are allowed."""
    for path in (options.text, options.eval_text):
        text.read(path)  # an unusable one is better heard of now
    try:
        decide(_first(options, checkpoint), options.budget.memory)
    except BudgetError:
        if not options.structure:
            raise
        decide(_first(options, _least(checkpoint, _freedom(options, checkpoint))), options.budget.memory)


def removable(checkpoint: Checkpoint, budget: Budget) -> bool:
    """Whether something of the model fits once parts of it are removed."""
    smaller = _least(checkpoint, resized.pruning_limits(checkpoint, KQUANT))
    problem = estimated(smaller.shape, smaller.implied_specs(), budget)
    return smallest_decision(problem).memory.total <= budget.memory


def _least(checkpoint: Checkpoint, limits: shape.PruningLimits) -> Checkpoint:
    """The least that may be left of a model, right in its sizes alone."""
    return resized.uniform_shape(checkpoint, resized.smallest(checkpoint, limits))


def analyse(
    options: FitOptions,
    checkpoint: Checkpoint,
    work: Path,
    reporter: Reporter,
    log: Path,
    original: Analysis | None = None,
    structure: Structure | None = None,
) -> Analysis:
    """Measure a model; original: the one that it was made of, and is judged by."""
    budget, effort = options.budget, options.tried
    stages = Stages(checkpoint, work, reporter, log, options.where)
    length, weights = min(text.LENGTH, budget.context), sum(spec.count for spec in checkpoint.specs())
    minutes = expected(effort, weights, length, options.threads, options.compute) / 60
    what = "the smaller model" if original else checkpoint.name
    reporter.say(
        f"{what}, effort {options.effort}: calibrating and rounding will take about {minutes:.0f} min here"
    )
    texts = stages.texts(options.text, options.eval_text, length, effort, options.seed)
    stages.check_weights()
    calibration = stages.calibration(texts, options.seed)
    reference = original.reference if original else stages.reference(texts)
    sensitivities = stages.sensitivities(calibration, WEIGHT_TYPES if options.quantise else ["F16"])
    kv = stages.kv_sensitivities(texts)
    problem = replace(_first(options, checkpoint), sensitivities=sensitivities, kv=kv)
    correction = MemoryCorrection(
        memory=budget.memory,
        context=budget.context,
        threads=options.threads,
        merges=problem.merges or 0,
        sensitivities=stages.used["sensitivities"].name,
        kv=stages.used["kv"].name,
        allowed=budget.memory,
        requirements=_demanded(options),
        quantised=options.quantise,
    )
    return Analysis(checkpoint, stages, texts, calibration, reference, problem, correction, structure)


def make(options: FitOptions, analysis: Analysis, gguf: Path, name: str) -> Fitted:
    """Store the best that fits; BudgetError where nothing does."""
    stages, texts, calibration, effort = analysis.stages, analysis.texts, analysis.calibration, options.tried
    corrections = MemoryCorrections(stages.store.root, stages.model_hash)

    def store(decision: Decision, training: bool = False) -> None:
        rounded = stages.rounded(texts, calibration, decision.types, effort)
        if training:
            rounded = stages.trained(texts, rounded, decision.types, effort, options.seed)
        stages.write(decision.types, calibration, gguf, "store the model", rounded)

    problem, decision, proof = prove_until_it_fits(
        stages, analysis.problem, analysis.correction, corrections, gguf, store
    )
    if effort.steps and options.quantise and decision.predicted_kl > WORTH_TRAINING:
        train = partial(store, training=True)
        problem, decision, proof = prove_until_it_fits(
            stages, problem, analysis.correction, corrections, gguf, train
        )
    readings = stages.measure(gguf, name, analysis.reference, decision.runtime)
    candidate = Candidate(
        name=name, file_bytes=gguf.stat().st_size, fits=proof.fits, memory=decision.memory, readings=readings
    )
    return Fitted(analysis, gguf, problem, decision, proof, candidate)


def candidates(options: FitOptions, analysis: Analysis, folder: Path) -> Iterator[Fitted]:
    """The file of bits alone, where there is one, and that of a smaller model, where that may be better.

    BudgetError where neither is possible.
    """
    alone, refused, found = float("inf"), None, 0
    whose = f"{analysis.checkpoint.name}, " if options.others else ""
    try:
        alone = decide(analysis.problem, options.budget.memory).predicted_kl
        yield make(options, analysis, folder / "bits.gguf", f"{whose}bits alone")
        found += 1
    except BudgetError as error:
        refused = error
    if options.heal and analysis.structure is None and alone <= WORTH_REMOVING:
        analysis.stages.reporter.say(
            "the predicted KL of bits alone is small: nothing is removed, so nothing is healed"
        )
    if options.structure and alone > WORTH_REMOVING:
        smaller = _smaller(options, analysis, alone)
        try:
            if smaller is not None:
                yield make(options, smaller, folder / "smaller.gguf", f"{whose}a smaller model")
                found += 1
        except BudgetError as error:
            refused = error
    if refused and not found:
        raise refused


def _smaller(options: FitOptions, analysis: Analysis, alone: float) -> Analysis | None:
    """The smaller model that promises the least predicted KL, if that is less than of bits alone."""
    stages, reporter = analysis.stages, analysis.stages.reporter
    costs = stages.pruning_costs(analysis.texts, analysis.calibration)
    limits, memory = _freedom(options, analysis.checkpoint), options.budget.memory
    growth, made, folder, measured, bits = 1.0, None, Path(), 0.0, 0.0
    while True:
        left = growth * (HEALS if options.heal else 1.0)
        best = joint.best(analysis.problem, analysis.checkpoint, costs, limits, memory, left)
        if best is None or best.predicted_kl > BETTER * alone or best.shape == made:
            break
        if made is not None and best.predicted_kl > BETTER * (bits + left * shape.cost(costs, made)):
            break
        first, made, bits = made is None, best.shape, best.decision.predicted_kl
        folder = stages.shaped(analysis.texts, analysis.calibration, made)
        measured, predicted = _measured_kl(stages, analysis, folder), shape.cost(costs, made)
        reporter.say(
            f"a smaller model: {_share(analysis, costs, made):.0%} of the blocks' weights removed,"
            f" KL {measured:.3g} (predicted {growth * predicted:.3g})"
        )
        growth = measured / max(predicted, 1e-9)
        if not first:
            break
    if made is None:
        return None
    healed = ""
    if options.heal:
        folder, training = stages.healed(
            folder, analysis.texts, options.text, TrainingBudget.parse(options.heal), options.seed
        )
        healed = f"{options.heal}: KL {training.before:.3g} to {training.after:.3g} on windows held back"
        for note in training.notes:
            reporter.say(note)
    before = analysis.structure or Structure(
        parameters=sum(spec.count for spec in analysis.checkpoint.specs())
    )
    removed = {"shape": made, "channels": costs.channels, "kv_heads": costs.groups, "kl": measured}
    structure = before.model_copy(
        update=removed | {"healed": "; ".join(filter(None, [before.healed, healed]))}
    )
    smaller = replace(open_checkpoint(folder), name=analysis.checkpoint.name)
    return analyse(options, smaller, stages.store.root, reporter, stages.log, analysis, structure)


def _measured_kl(stages: Stages, analysis: Analysis, folder: Path) -> float:
    """KL of the model in a folder to the original, before quantisation."""
    smaller = Stages(
        open_checkpoint(folder),
        stages.store.root,
        stages.reporter,
        stages.log,
        Compute(threads=analysis.problem.threads),
    )
    return between(analysis.reference, smaller.reference(analysis.texts))


def _share(analysis: Analysis, costs: shape.PruningCosts, chosen: Shape) -> float:
    sizes = shape.Sizes.of(analysis.checkpoint)
    everything = costs.channels * sizes.channel + costs.groups * sizes.group + sizes.rest
    return sizes.removed(costs, chosen) / (sizes.blocks * everything)


def _freedom(options: FitOptions, checkpoint: Checkpoint) -> shape.PruningLimits:
    return resized.pruning_limits(checkpoint, KQUANT if options.quantise else shape.STEP, options.alike)


def _first(options: FitOptions, checkpoint: Checkpoint) -> Problem:
    """The problem before anything was measured."""
    keys = tokenizer_metadata(checkpoint.path, checkpoint.config).keys
    merges = len(keys.get("tokenizer.ggml.merges", ()))  # that llama.cpp will hold beside the vocabulary
    specs = checkpoint.implied_specs()
    problem = estimated(checkpoint.shape, specs, options.budget, merges, options.threads)
    if not options.quantise:
        kept = {name: {"F16": kinds["F16"]} for name, kinds in problem.sensitivities.items()}
        problem = replace(problem, sensitivities=kept)
    return asked(problem, options.device, options.requirements) if options.device else problem


def _demanded(options: FitOptions) -> str:
    """What tells two fits apart that ask different things of a device; empty where nothing is asked."""
    requirements, device = options.requirements, options.device
    limited = (
        requirements.min_speed
        or requirements.max_joules
        or requirements.battery_hours
        or requirements.prefer == "speed"
    )
    return f"{device.name} {requirements.model_dump_json(exclude={'grid'})}" if device and limited else ""
