"""One model on its way into a budget: measured, made smaller where that pays, stored, seen to fit.

    know    texts, calibration, prices, the original's answers: all that a decision needs
    make    decide, round, write, prove, measure: a file
    ways    the file of bits alone; and, where bits are few or none suffice, that of a smaller model too

The smaller model is a folder like any other (pruning/structure.py) and is itself known and made; what it is
judged by are the original's answers. Which shape it gets is decided with the original's prices: those of a
matrix that lost channels are taken as they were, since the ones that matter stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from tenth.core.errors import BudgetError
from tenth.core.progress import Reporter
from tenth.core.records import Budget, Candidate, Demands, Proof, Shape, Structure
from tenth.devices.profile import Device
from tenth.measurement.quality import between
from tenth.models import text
from tenth.models.arch import Architecture
from tenth.models.checkpoint import Checkpoint, open_checkpoint
from tenth.models.formats.hf import FloatType
from tenth.models.formats.tokenizer import tokenizer_metadata
from tenth.pipeline.effort import EFFORTS, WORTH_TRAINING, Effort, expected
from tenth.pipeline.steps import Stages, Texts
from tenth.pipeline.verify import Lesson, Lessons, prove_until_it_fits
from tenth.planning import joint
from tenth.planning import memory as cost
from tenth.planning.forecast import asked
from tenth.planning.plan import Decision, Problem, decide, smallest_decision
from tenth.pruning import resized, shape
from tenth.quantization import default_sensitivity

WORTH_REMOVING = 0.05  # nats of predicted damage of bits alone; where there is less, no removal is tried
# Of what removal costs this much is planned to stay after healing. With 1 Mtok on a 46 M Llama .73 to .91 of
# the KL and .53 to .62 of the rise in bits per byte stayed (docs/results/structure.jsonl).
HEALS = 0.5
BETTER = 0.95  # of the predicted damage: what another way must promise to be made as well
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
    demands: Demands = field(default_factory=Demands)  # of that device
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
    def alike(self) -> bool:
        """Whether the blocks of a smaller model must be alike: a Hugging Face folder can be nothing else."""
        return self.homogeneous or self.folder is not None


@dataclass(frozen=True)
class Known:
    """A model, and what was measured of it."""

    checkpoint: Checkpoint
    stages: Stages
    texts: Texts
    calibration: Path
    reference: Path  # that its files are judged by
    problem: Problem
    lesson: Lesson
    structure: Structure | None = None  # of a smaller model


@dataclass(frozen=True)
class Fitted:
    """A file that was seen to fit."""

    known: Known
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


def guess(
    config: Mapping[str, Any], arch: Architecture, budget: Budget, merges: int | None = None, threads: int = 0
) -> Problem:
    """The problem with another model's damages."""
    specs = arch.specs(dict(config))
    return Problem(
        config,
        arch.gguf_arch,
        specs,
        default_sensitivity.prices(specs),
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
    smaller = _least(checkpoint, resized.freedom(checkpoint, KQUANT))
    return smallest_decision(guess(smaller.config, smaller.arch, budget)).memory.total <= budget.memory


def _least(checkpoint: Checkpoint, free: shape.Freedom) -> Checkpoint:
    """The least that may be left of a model, right in its sizes alone."""
    return resized.outline(checkpoint, resized.smallest(checkpoint, free))


def know(
    options: FitOptions,
    checkpoint: Checkpoint,
    work: Path,
    reporter: Reporter,
    log: Path,
    original: Known | None = None,
    structure: Structure | None = None,
) -> Known:
    """Measure a model; original: the one that it was made of, and is judged by."""
    budget, effort = options.budget, options.tried
    stages = Stages(checkpoint, work, reporter, log, options.threads, options.compute)
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
    prices = stages.prices(calibration, None if options.quantise else ["F16"])
    kv = stages.kv_damages(texts, checkpoint.arch.head_dim(checkpoint.config))
    problem = replace(_first(options, checkpoint), prices=prices, kv=kv)
    lesson = Lesson(
        memory=budget.memory,
        context=budget.context,
        threads=options.threads,
        merges=problem.merges or 0,
        prices=stages.used["prices"].name,
        kv=stages.used["kv"].name,
        allowed=budget.memory,
        demands=_demanded(options),
        quantised=options.quantise,
    )
    return Known(checkpoint, stages, texts, calibration, reference, problem, lesson, structure)


def make(options: FitOptions, known: Known, gguf: Path, name: str) -> Fitted:
    """Store the best that fits; BudgetError where nothing does."""
    stages, texts, calibration, effort = known.stages, known.texts, known.calibration, options.tried
    lessons = Lessons(stages.store.root, stages.model_hash)

    def store(decision: Decision, training: bool = False) -> None:
        rounded = stages.rounded(texts, calibration, decision.types, effort)
        if training:
            rounded = stages.trained(texts, rounded, decision.types, effort, options.seed)
        stages.write(decision.types, calibration, gguf, "store the model", rounded)

    problem, decision, proof = prove_until_it_fits(stages, known.problem, known.lesson, lessons, gguf, store)
    if effort.steps and options.quantise and decision.damage > WORTH_TRAINING:
        train = partial(store, training=True)
        problem, decision, proof = prove_until_it_fits(stages, problem, known.lesson, lessons, gguf, train)
    readings = stages.measure(gguf, name, known.reference, decision.runtime)
    candidate = Candidate(
        name=name, file_bytes=gguf.stat().st_size, fits=proof.fits, memory=decision.memory, readings=readings
    )
    return Fitted(known, gguf, problem, decision, proof, candidate)


def ways(options: FitOptions, known: Known, folder: Path) -> Iterator[Fitted]:
    """The file of bits alone, where there is one, and that of a smaller model, where that may be better.

    BudgetError where neither is possible.
    """
    alone, refused, found = float("inf"), None, 0
    whose = f"{known.checkpoint.name}, " if options.others else ""
    try:
        alone = decide(known.problem, options.budget.memory).damage
        yield make(options, known, folder / "bits.gguf", f"{whose}bits alone")
        found += 1
    except BudgetError as error:
        refused = error
    if options.heal and known.structure is None and alone <= WORTH_REMOVING:
        known.stages.reporter.say("bits alone do little damage here: nothing is removed, nothing to heal")
    if options.structure and alone > WORTH_REMOVING:
        smaller = _smaller(options, known, alone)
        try:
            if smaller is not None:
                yield make(options, smaller, folder / "smaller.gguf", f"{whose}a smaller model")
                found += 1
        except BudgetError as error:
            refused = error
    if refused and not found:
        raise refused


def _smaller(options: FitOptions, known: Known, alone: float) -> Known | None:
    """The smaller model that promises the least damage, if that is less than of bits alone."""
    stages, reporter = known.stages, known.stages.reporter
    menu = stages.menu(known.texts, known.calibration)
    free, memory = _freedom(options, known.checkpoint), options.budget.memory
    growth, made, folder, damage, bits = 1.0, None, Path(), 0.0, 0.0
    while True:
        left = growth * (HEALS if options.heal else 1.0)
        best = joint.best(known.problem, known.checkpoint, menu, free, memory, left)
        if best is None or best.damage > BETTER * alone or best.shape == made:
            break
        if made is not None and best.damage > BETTER * (bits + left * shape.cost(menu, made)):
            break
        first, made, bits = made is None, best.shape, best.decision.damage
        folder = stages.shaped(known.texts, known.calibration, made)
        damage, predicted = _damage(stages, known, folder), shape.cost(menu, made)
        reporter.say(
            f"a smaller model: {_share(known, menu, made):.0%} of the blocks' weights removed,"
            f" KL {damage:.3g} (predicted {growth * predicted:.3g})"
        )
        growth = damage / max(predicted, 1e-9)
        if not first:
            break
    if made is None:
        return None
    healed = ""
    if options.heal:
        folder, found = stages.healed(folder, known.texts, options.text, options.heal, options.seed)
        healed = f"{options.heal}: KL {found['before']:.3g} to {found['after']:.3g} on windows held back"
        for note in found["notes"]:
            reporter.say(note)
    before = known.structure or Structure(parameters=sum(spec.count for spec in known.checkpoint.specs()))
    removed = {"shape": made, "channels": menu.channels, "kv_heads": menu.groups, "damage": damage}
    structure = before.model_copy(
        update=removed | {"healed": "; ".join(filter(None, [before.healed, healed]))}
    )
    smaller = replace(open_checkpoint(folder), name=known.checkpoint.name)
    return know(options, smaller, stages.store.root, reporter, stages.log, known, structure)


def _damage(stages: Stages, known: Known, folder: Path) -> float:
    """KL of the model in a folder to the original, before quantisation."""
    smaller = Stages(
        open_checkpoint(folder), stages.store.root, stages.reporter, stages.log, known.problem.threads
    )
    return between(known.reference, smaller.reference(known.texts))


def _share(known: Known, menu: shape.Menu, chosen: Shape) -> float:
    sizes = shape.Sizes.of(known.checkpoint.arch, known.checkpoint.config)
    everything = menu.channels * sizes.channel + menu.groups * sizes.group + sizes.rest
    return sizes.removed(menu, chosen) / (sizes.blocks * everything)


def _freedom(options: FitOptions, checkpoint: Checkpoint) -> shape.Freedom:
    return resized.freedom(checkpoint, KQUANT if options.quantise else shape.STEP, options.alike)


def _first(options: FitOptions, checkpoint: Checkpoint) -> Problem:
    """The problem before anything was measured."""
    keys = tokenizer_metadata(checkpoint.path, checkpoint.config).keys
    merges = len(keys.get("tokenizer.ggml.merges", ()))  # that llama.cpp will hold beside the vocabulary
    problem = guess(checkpoint.config, checkpoint.arch, options.budget, merges, options.threads)
    if not options.quantise:
        kept = {name: {"F16": kinds["F16"]} for name, kinds in problem.prices.items()}
        problem = replace(problem, prices=kept)
    return asked(problem, options.device, options.demands) if options.device else problem


def _demanded(options: FitOptions) -> str:
    """What tells two fits apart that ask different things of a device; empty where nothing is asked."""
    demands, device = options.demands, options.device
    limited = demands.min_speed or demands.max_joules or demands.battery_hours or demands.prefer == "speed"
    return f"{device.name} {demands.model_dump_json(exclude={'grid'})}" if device and limited else ""
