"""The stages of pruning as jobs for a child process; torch is loaded only there."""

from __future__ import annotations

from tenth.core.jobs import Emit, Job
from tenth.pruning.settings import RefitResult, RefitSettings, RemovalSettings, TrimResult, TrimSettings
from tenth.pruning.shape import PruningCosts


class MeasureRemovals(RemovalSettings, Job[PruningCosts]):
    """Measure what removing each part of a model costs."""

    def run(self, emit: Emit) -> PruningCosts:
        """Write pruning-costs.json into the folder."""
        from tenth.pruning.removal import removal_costs

        return removal_costs(self, emit)


class RemoveAndRefit(RefitSettings, Job[RefitResult]):
    """Make the smaller model."""

    def run(self, emit: Emit) -> RefitResult:
        """Write it into the folder."""
        from tenth.pruning.structure import refitted

        return refitted(self, emit)


class TrimVocabulary(TrimSettings, Job[TrimResult]):
    """Make the model with fewer tokens."""

    def run(self, emit: Emit) -> TrimResult:
        """Write it into the folder."""
        from tenth.pruning.vocabulary import write_trimmed

        return write_trimmed(self, emit)
