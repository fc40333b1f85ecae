"""The planner's problem by trying everything."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from tenth.core.ggml import storage_type
from tenth.planning import memory
from tenth.planning.plan import Decision, Problem


def every_decision(problem: Problem) -> Iterator[Decision]:
    """All types for all tensors, all runtimes with and without repacking, with exact memory."""
    linear = [spec for spec in problem.specs if spec.linear]
    choices = [[t for t in problem.sensitivities[s.name] if storage_type(t).holds(s.columns)] for s in linear]
    for runtime in memory.possible_runtimes(problem.shape, problem.context, problem.threads):
        harm = problem.kv_kl(runtime)
        if harm is None:
            continue
        for picked in itertools.product(*choices):
            types = {spec.name: kind for spec, kind in zip(linear, picked, strict=True)}
            predicted_kl = harm + sum(problem.sensitivities[name][kind] for name, kind in types.items())
            for repack in (False, True):
                way = runtime.model_copy(update={"repack": repack})
                yield Decision(types, way, problem.memory(types, way), predicted_kl)
