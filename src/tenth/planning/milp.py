"""The numbers of the integer program of planning/plan.py, and the solver: HiGHS (scipy.optimize.milp),
planning/joint.py's too. What runs on a device decides nothing, and does without this module and scipy.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from scipy import sparse as sp
from scipy.optimize import Bounds, LinearConstraint, milp

from tenth.core.errors import NativeError
from tenth.core.records import MB, Runtime, TensorSpec

NODES, SECONDS = 20_000, 1800.0  # at which the solver stops; the second is an error
GAP = 1e-4  # relative, at which the solver may stop


@dataclass(frozen=True)
class Tables:
    """The program's coefficients, one entry per option."""

    groups: list[list[TensorSpec]]  # tensors of the same shape and sensitivities: one variable counts them
    options: list[tuple[int, str]]  # (group number, type)
    size: np.ndarray  # bytes in the file of one tensor, float64
    copy: np.ndarray  # bytes of a repacked copy
    predicted_kl: np.ndarray
    runtimes: list[Runtime]
    fixed: np.ndarray  # bytes that do not depend on the types
    kv_kl: np.ndarray
    slowness: np.ndarray
    costs: np.ndarray  # [limits, options and runtimes], as shares of the most that is allowed
    seconds: np.ndarray | None  # [options and runtimes], of a decoded token; where its time is known


class Program:
    """The constraints of one question to the solver."""

    def __init__(self, tables: Tables, budget: float, relaxed: bool = False) -> None:
        options, runtimes = len(tables.options), len(tables.runtimes)
        owners = np.array([number for number, _ in tables.options])
        counts = np.array([len(group) for group in tables.groups], float)
        pick = sp.csr_matrix((np.ones(options), (owners, np.arange(options))))
        one = sp.block_diag([pick, np.ones((1, runtimes)), sp.csr_matrix((0, 1))], format="csr")
        repacked = np.array([runtime.repack for runtime in tables.runtimes], float)
        most = counts[owners]
        ceiling = float(tables.copy @ most) or 1.0
        whole = float(tables.size @ most)
        every = np.concatenate([counts, [1.0]])
        # In MB, so that the solver's absolute tolerances mean one byte.
        memory = np.concatenate([tables.size, tables.fixed, [MB]])[None] / MB
        copies = np.concatenate([tables.copy, ceiling * repacked, [-MB]])[None] / MB
        unpacked = tables.size / 2 - tables.copy
        mostly = np.concatenate([unpacked, whole * repacked, [0.0]])[None] / MB
        self.constraints = [
            LinearConstraint(one, every, every),
            LinearConstraint(memory, -np.inf, budget / MB),
            LinearConstraint(copies, -np.inf, ceiling / MB),
            # Repacking is worth its name where most of the weights gain by it.
            LinearConstraint(mostly, -np.inf, whole / MB),
        ]
        if len(tables.costs):
            rows = np.hstack([tables.costs, np.zeros((len(tables.costs), 1))])
            self.constraints.append(LinearConstraint(rows, -np.inf, 1.0 - 1e-7))
        self.integral = np.concatenate([np.full(options, float(not relaxed)), np.ones(runtimes), [0]])
        self.bounds = Bounds(0, np.concatenate([most, np.ones(runtimes), [np.inf]]))
        self.scale = max(float(tables.predicted_kl.max()), 1e-12)  # nats per unit of harm
        self.harm = np.concatenate([tables.predicted_kl, tables.kv_kl, [0.0]]) / self.scale

    def solve(self, objective: np.ndarray, enough: np.ndarray | None = None) -> np.ndarray | None:
        """How many tensors take each option, 0/1 for each runtime, the copy; None where nothing fits.

        enough: a row that may come to 1 at most.
        """
        extra = [] if enough is None else [LinearConstraint(enough[None], -np.inf, 1.0)]
        solution = _milp(objective, [*self.constraints, *extra], self.integral, self.bounds, GAP)
        return None if solution is None else np.where(self.integral > 0, np.round(solution), solution)


Row = tuple[Sequence[tuple[int, float]], float, float]  # variables with factors; the bounds of their sum


def minimise(objective: np.ndarray, rows: Sequence[Row], binary: np.ndarray, gap: float) -> np.ndarray | None:
    """The least of objective @ x within the rows, x >= 0; None where none is, or none was found in time.

    binary: which variables are 0 or 1. gap: relative, at which to stop.
    """
    entries = [(row, *term) for row, (terms, *_) in enumerate(rows) for term in terms]
    number, variable, factor = (np.array(column) for column in zip(*entries, strict=True))
    matrix = sp.csr_matrix((factor, (number, variable)), shape=(len(rows), len(objective)))
    low, high = ([row[i] for row in rows] for i in (1, 2))
    scale = max(float(np.abs(objective).max()), 1e-12)
    bounds = Bounds(0, np.where(binary, 1.0, np.inf))
    return _milp(objective / scale, [LinearConstraint(matrix, low, high)], binary, bounds, gap)


def _milp(
    objective: np.ndarray,
    constraints: Sequence[LinearConstraint],
    integral: np.ndarray,
    bounds: Bounds,
    gap: float,
) -> np.ndarray | None:
    """HiGHS. It stops at a number of nodes (most plans need one) and not at a time, since then the plan would
    depend on what else the machine was doing. NativeError where half an hour passes.
    """
    with _silent():  # it has remarks of its own, which help nobody
        result = milp(
            objective,
            constraints=constraints,
            integrality=integral,
            bounds=bounds,
            options={"mip_rel_gap": gap, "node_limit": NODES, "time_limit": SECONDS},
        )
    if result.status == 1:  # time, and nothing else
        raise NativeError(f"the solver of the plan did not end in {SECONDS / 60:.0f} minutes")
    return None if result.x is None else np.asarray(result.x, float)


@contextmanager
def _silent() -> Iterator[None]:
    """What native code prints is dropped: its stdout is ours, which may carry JSON."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)
        os.dup2(kept, 1)
        os.close(kept)
