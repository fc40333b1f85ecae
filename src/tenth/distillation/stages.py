"""The stages of distillation as jobs for a child process; torch is loaded only there."""

from __future__ import annotations

from tenth.core.jobs import Emit, Job
from tenth.distillation.settings import (
    CorpusResult,
    CorpusSettings,
    DistilResult,
    DistilSettings,
    TrainingResult,
    TrainingSettings,
)


class WriteCorpus(CorpusSettings, Job[CorpusResult]):
    """Make the windows to train on."""

    def run(self, emit: Emit) -> CorpusResult:
        """Write them into the destination."""
        from tenth.distillation.corpus import write_windows

        return write_windows(self, emit)


class Distil(DistilSettings, Job[DistilResult]):
    """Train a model with parts removed towards the original."""

    def run(self, emit: Emit) -> DistilResult:
        """Write the trained model into the folder."""
        from tenth.distillation.distil import distil

        return distil(self, emit)


class DistilVocabulary(TrainingSettings, Job[TrainingResult]):
    """Train a model with fewer tokens towards the original."""

    def run(self, emit: Emit) -> TrainingResult:
        """Write the trained model into the folder."""
        from tenth.distillation.cross_tokenizer import distil_vocabulary

        return distil_vocabulary(self, emit)
