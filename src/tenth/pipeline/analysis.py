"""A model, and all that a decision about it needs: texts, statistics, sensitivities, the original's
answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tenth.calibration.windows import LENGTH, Texts
from tenth.core.errors import BudgetError
from tenth.core.records import Budget, Runtime, Structure, TensorSpec
from tenth.models import text
from tenth.models.checkpoint import Checkpoint
from tenth.models.formats.tokenizer import tokenizer_metadata
from tenth.models.shape import ModelShape
from tenth.pipeline.effort import expected
from tenth.pipeline.options import Making, Removal, Target
from tenth.pipeline.steps import Stages, Workshop
from tenth.pipeline.verify import MemoryCorrection
from tenth.planning.memory import CELLS, Constants, cells
from tenth.planning.plan import Problem, decide, smallest_decision
from tenth.planning.requirements import with_requirements
from tenth.pruning import shape
from tenth.quantization import default_sensitivity

KQUANT = 256  # weights of a super-block: widths of which K- and I-quants can store


@dataclass(frozen=True)
class Untrimmed:
    """The model that a person gave, where tokens were removed from it; it keeps them all."""

    checkpoint: Checkpoint
    stages: Stages
    reference: Path  # its answers on its own windows of the held-out text
    bits: float  # per byte of those
    stretch: float  # tokens that a text takes without the removed ones, over those that it took

    @property
    def merges(self) -> int:
        """Of its tokenizer, that llama.cpp holds beside the vocabulary."""
        return merges(self.checkpoint)


@dataclass(frozen=True)
class Analysis:
    """A model, and what was measured of it."""

    checkpoint: Checkpoint
    stages: Stages
    texts: Texts
    calibration: Path
    reference: Path  # the original's answers, by which its files are judged
    problem: Problem
    question: MemoryCorrection  # what a fit of it is about, before any proof corrected anything
    structure: Structure | None = None  # what was removed from the original
    given: Untrimmed | None = None  # where tokens were removed: the model with all of them


def analyse(
    checkpoint: Checkpoint,
    target: Target,
    making: Making,
    workshop: Workshop,
    structure: Structure | None = None,
    original: Analysis | None = None,
    given: Untrimmed | None = None,
) -> Analysis:
    """Measure a model; original: the one that it was made of, and is judged by; given: see `Analysis`."""
    budget, effort = target.budget, making.tried
    stages = Stages(checkpoint, workshop)
    length, weights = min(LENGTH, budget.context), sum(spec.count for spec in checkpoint.specs())
    minutes = expected(effort, weights, length, making.compute) / 60
    what = "the smaller model" if original else checkpoint.name
    workshop.reporter.say(
        f"{what}, effort {making.effort}: calibrating and rounding will take about {minutes:.0f} min here"
    )
    stretch = given.stretch if given else 1.0
    texts = stages.texts(making.text, making.eval_text, length, effort, making.seed, stretch)
    for note in rotation(checkpoint, budget.context):
        workshop.reporter.say(note)
    stages.check_weights()
    reference = original.reference if original else stages.reference(texts)
    calibration = stages.calibration(texts, making.seed)
    sensitivities = stages.sensitivities(calibration, making.types)
    kv = stages.kv_sensitivities(texts, budget.context)
    problem = replace(unmeasured(checkpoint, target, making), sensitivities=sensitivities, kv=kv)
    question = MemoryCorrection(
        memory=budget.memory,
        context=budget.context,
        threads=making.compute.threads,
        merges=problem.merges or 0,
        sensitivities=stages.used["sensitivities"].name,
        kv=stages.used["kv"].name,
        allowed=budget.memory,
        requirements=target.limits,
        quantised=making.quantise,
    )
    return Analysis(checkpoint, stages, texts, calibration, reference, problem, question, structure, given)


def rotation(checkpoint: Checkpoint, context: int) -> list[str]:
    """A line for a model of LongRoPE whose context makes llama.cpp read short texts otherwise than it is
    meant to; none for others.
    """
    short = checkpoint.arch.short_context(checkpoint.config)
    if short is None or cells(Runtime(n_ctx=context, n_ubatch=1)) <= short:
        return []
    whole = short // CELLS * CELLS
    avoided = f", which --context {whole} or less avoids" if whole else ""
    return [
        f"at a context of {context} llama.cpp rotates every text with LongRoPE's long factors, the original"
        f" (transformers) only texts of more than {short} tokens; KL to the original holds that"
        f" difference{avoided}"
    ]


def estimated(
    model: ModelShape,
    specs: Sequence[TensorSpec],
    budget: Budget,
    merges: int | None = None,
    threads: int = 0,
) -> Problem:
    """The problem with another model's sensitivities."""
    sensitivities, kv = default_sensitivity.sensitivities(specs), default_sensitivity.kv()
    return Problem(model, specs, sensitivities, kv, budget.context, Constants(), merges, threads)


def merges(checkpoint: Checkpoint) -> int:
    """Merges of the tokenizer, which llama.cpp will hold beside the vocabulary."""
    keys = tokenizer_metadata(checkpoint.path, checkpoint.config).keys
    return len(keys.get("tokenizer.ggml.merges", ()))


def unmeasured(checkpoint: Checkpoint, target: Target, making: Making) -> Problem:
    """The problem before anything was measured."""
    specs, threads = checkpoint.implied_specs(), making.compute.threads
    problem = estimated(checkpoint.shape, specs, target.budget, merges(checkpoint), threads)
    if not making.quantise:
        kept = {name: {"F16": types["F16"]} for name, types in problem.sensitivities.items()}
        problem = replace(problem, sensitivities=kept)
    return with_requirements(problem, target.device, target.requirements) if target.device else problem


def check(checkpoint: Checkpoint, target: Target, making: Making, removal: Removal) -> None:
    """BudgetError before the long work, where nothing can fit by any means that are allowed."""
    for path in (making.text, making.eval_text):
        text.read(path)  # an unusable one is better heard of now
    try:
        decide(unmeasured(checkpoint, target, making), target.budget.memory)
    except BudgetError:
        if not removal.structure:
            raise
        smallest = _least(checkpoint, pruning_limits(checkpoint, making, removal))
        decide(unmeasured(smallest, target, making), target.budget.memory)


def pruning_limits(checkpoint: Checkpoint, making: Making, removal: Removal) -> shape.PruningLimits:
    """Which shapes may be looked at."""
    multiple = KQUANT if making.quantise else shape.STEP
    return shape.pruning_limits(checkpoint, multiple, removal.alike)


def removable(checkpoint: Checkpoint, budget: Budget) -> bool:
    """Whether something of the model fits once parts of it are removed."""
    smaller = _least(checkpoint, shape.pruning_limits(checkpoint, KQUANT))
    problem = estimated(smaller.shape, smaller.implied_specs(), budget)
    return smallest_decision(problem).memory.total <= budget.memory


def _least(checkpoint: Checkpoint, limits: shape.PruningLimits) -> Checkpoint:
    """The least that may be left of a model, right in its sizes alone."""
    return shape.uniform_shape(checkpoint, shape.smallest(checkpoint, limits))
