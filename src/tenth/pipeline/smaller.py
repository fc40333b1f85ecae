"""Which smaller model to make of one whose bits are few, and making it.

Its shape is decided together with the bits (planning/joint.py), with the original's sensitivities: those of a
matrix that lost channels are taken as they were, since the ones that matter stay. What removal is predicted
to cost is off by a factor that one shape, once made, shows; with it the shape is chosen anew, once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from tenth.core.jobs import Compute
from tenth.core.records import Shape, Structure
from tenth.measurement.quality import between
from tenth.models.checkpoint import Checkpoint, open_checkpoint
from tenth.pipeline.analysis import Analysis, pruning_limits
from tenth.pipeline.options import Making, Removal
from tenth.pipeline.steps import Stages
from tenth.planning import joint
from tenth.pruning import shape
from tenth.pruning.shape import PruningCosts

# Of what removal costs this much is planned to stay after healing. With 1 Mtok on a 46 M Llama .73 to .91 of
# the KL and .53 to .62 of the rise in bits per byte stayed (docs/results/structure.jsonl).
HEALS = 0.5
BETTER = 0.95  # of the predicted KL: what another way must promise to be made as well


@dataclass(frozen=True)
class _Made:
    """A shape that was made, and its model before quantisation."""

    shape: Shape
    folder: Path
    kl: float  # measured, to the original
    growth: float  # of what removal costs, over what was predicted
    bits_kl: float  # predicted, of its bits


def smaller_model(
    analysis: Analysis, making: Making, removal: Removal, whole_kl: float
) -> tuple[Checkpoint, Structure] | None:
    """The smaller model that promises the least predicted KL, healed where that is asked for.

    whole_kl: predicted KL of the whole model in the budget. None where no shape promises to be better.
    """
    costs = analysis.stages.pruning_costs(analysis.texts, analysis.calibration)
    made = _best_shape(analysis, making, removal, costs, whole_kl)
    if made is None:
        return None
    folder, healed = _healed(analysis, making, removal, made.folder)
    weights = sum(spec.count for spec in analysis.checkpoint.specs())
    before = analysis.structure or Structure(parameters=weights)
    structure = Structure(
        parameters=before.parameters,
        shape=made.shape,
        channels=costs.channels,
        kv_heads=costs.groups,
        vocabulary=before.vocabulary,
        kl=made.kl,
        healed="; ".join(filter(None, [before.healed, healed])),
        original_bits=before.original_bits,
    )
    return replace(open_checkpoint(folder), name=analysis.checkpoint.name), structure


def _best_shape(
    analysis: Analysis, making: Making, removal: Removal, costs: PruningCosts, whole_kl: float
) -> _Made | None:
    """The shape of least predicted KL, made and measured; None where none is better than the whole model."""
    limits = pruning_limits(analysis.checkpoint, making, removal)
    stays = HEALS if removal.heal else 1.0

    def best(growth: float, least: float) -> joint.Choice | None:
        """The best shape where removal costs `growth` times what is predicted, if it promises enough."""
        budget, problem = analysis.question.memory, analysis.problem
        found = joint.best(problem, analysis.checkpoint, costs, limits, budget, growth * stays)
        return found if found is not None and found.predicted_kl <= BETTER * least else None

    chosen = best(1.0, whole_kl)
    if chosen is None:
        return None
    first = _made(analysis, costs, chosen, 1.0)
    as_measured = first.bits_kl + first.growth * stays * shape.cost(costs, first.shape)
    chosen = best(first.growth, min(whole_kl, as_measured))
    if chosen is None or chosen.shape == first.shape:
        return first
    return _made(analysis, costs, chosen, first.growth)


def _made(analysis: Analysis, costs: PruningCosts, chosen: joint.Choice, growth: float) -> _Made:
    """The model in that shape, and its KL to the original before quantisation."""
    stages = analysis.stages
    folder = stages.shaped(analysis.texts, analysis.calibration, chosen.shape)
    workshop = replace(stages.workshop, compute=Compute(threads=analysis.problem.threads))
    reference = Stages(open_checkpoint(folder), workshop).reference(analysis.texts)
    kl, predicted = between(analysis.reference, reference), shape.cost(costs, chosen.shape)
    stages.reporter.say(
        f"a smaller model: {_share(analysis, costs, chosen.shape):.0%} of the blocks' weights removed,"
        f" KL {kl:.3g} (predicted {growth * predicted:.3g})"
    )
    return _Made(chosen.shape, folder, kl, kl / max(predicted, 1e-9), chosen.decision.predicted_kl)


def _healed(analysis: Analysis, making: Making, removal: Removal, folder: Path) -> tuple[Path, str]:
    """The folder after healing, and what that did, in words; as it is where none is asked for."""
    if removal.training_budget is None:
        return folder, ""
    stages = analysis.stages
    folder, result = stages.healed(folder, analysis.texts, making.text, removal.training_budget, making.seed)
    for note in result.notes:
        stages.reporter.say(note)
    return folder, f"{removal.heal}: KL {result.before:.3g} to {result.after:.3g} on windows held back"


def _share(analysis: Analysis, costs: PruningCosts, chosen: Shape) -> float:
    """How much of the blocks' weights a shape leaves out."""
    sizes = shape.Sizes.of(analysis.checkpoint)
    everything = costs.channels * sizes.channel + costs.groups * sizes.group + sizes.rest
    return sizes.removed(costs, chosen) / (sizes.blocks * everything)
