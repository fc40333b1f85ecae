"""How far the speed model is from published measurements.

    python bench/devices.py --phones FOLDER [--write src/tenth/data/kernels.json]

FOLDER holds PocketPal's baseline files of phones (pp_*.json: 11 models, 8 quantisations, 3 backends). What a
token reads is computed from the model's shape and the recipe, as tenth does for its own plans, and held
against the sizes in the run's log. Bandwidths are fitted without one model and predict that model, in turn
(Leave-one-out). Then the rows of bench/published.json that nothing was fitted to. One JSON line per class of
cells, row, unusable cell and fit; --write puts the fitted classes of kernels into the product's file.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

from tenth.core.ggml import FLOATS, storage_type
from tenth.core.records import Runtime
from tenth.devices import catalogue, speed
from tenth.devices.profile import Device
from tenth.models import arch
from tenth.models.formats.gguf import tensor_bytes
from tenth.planning import memory
from tenth.quantization import recipes

HERE = Path(__file__).parent
DEPTH = 288  # tokens before the middle of PocketPal's 64 decoded ones, after 256
LOW = ("iq1_s", "q2_k", "q3_k_m")  # below 4 bits
FREE = 0.03  # share of the bytes of a run from which a type's own figure can be told
BACKENDS = ("cpu", "opencl", "hexagon")
SPEC = {"samsung-s23": 67.2e9, "poco-myron": 84.8e9}  # of the memory; the second is the 8 Elite's, taken
MIB = 2**20
OTHERS_HEAD = {"iq1_s": "Q5_K", "q8_0": "Q8_0"}  # stored type of a tied head in a recipe, Q6_K otherwise


@dataclass(frozen=True)
class Cell:
    """One published run."""

    phone: str
    backend: str
    model: str
    quant: str
    decode: float  # tokens/s
    prefill: float
    read: dict[str, float]  # ggml type -> bytes of a decoded token
    multiplied: dict[str, float]  # ggml type -> weights of a token of the prompt

    def seconds(self, what: str) -> float:
        """Of a token."""
        return 1 / (self.decode if what == "decode" else self.prefill)

    def amounts(self, what: str) -> dict[str, float]:
        """What a token's time is made of."""
        return self.read if what == "decode" else self.multiplied


def say(**line: Any) -> None:
    print(json.dumps({"bench": "devices"} | line), flush=True)


def models() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((HERE / "phone_models.json").read_text())
    return found


def shape(
    config: dict[str, Any], recipe: str, depth: int
) -> tuple[dict[str, float], dict[str, float], float]:
    """(bytes read by type, weights of prefill by type, bytes of the file and a tied head's copy)."""
    config, family = arch.load({"max_position_embeddings": 8192, **config})
    specs, model = family.specs(config), family.shape(config)
    types = recipes.types(recipe, specs, model.queries_per_kv)
    read = speed.read_bytes(specs, types)
    runtime = Runtime(n_ctx=2048, n_ubatch=512)
    for kind, size in memory.kv_read(model, runtime, depth).items():
        read[kind] = read.get(kind, 0.0) + size
    whole = sum(tensor_bytes(spec, types.get(spec.name, "F32")) for spec in specs)
    tied = all(spec.role != "output" for spec in specs)
    copy = next(tensor_bytes(s, types[s.name]) for s in specs if s.role == "token_embd") if tied else 0
    return read, speed.prompt_weights(specs, types), whole + copy


def other(tables: Sequence[Sequence[int]], quant: str, label: str, logged: float) -> dict[str, float]:
    """Bytes read by type of a family that tenth does not open: the log's, less what is only looked up."""
    head = OTHERS_HEAD.get(quant, "Q6_K")
    sizes = [rows * columns * storage_type(head).bits_per_weight / 8 for rows, columns in tables]
    base = recipes.BASES[label]
    read = {base: logged - sum(sizes) - sizes[0]}
    read[head] = read.get(head, 0.0) + sizes[0]
    return read


def load(folder: Path) -> list[Cell]:
    """Every cell that can be used; says which cannot, and why."""
    known = models()
    labels: dict[str, str] = known["labels"]
    cells, tried = [], 0
    for file in sorted(folder.glob("pp_*.json")):
        published = json.loads(file.read_text())
        phone = published["device"]
        seen: dict[tuple[str, str], set[str]] = defaultdict(set)
        for run in published["runs"]:
            tried += 1
            model, quant, backend = run["model_id"], run["quant"], run["effective_backend"]
            seen[model, quant].add(backend)
            where = {"phone": phone, "model": model, "quant": quant, "backend": backend}
            logged = MIB * sum(run["log_signals"]["memory_buffers"]["weights_mib"].values())
            if run["status"] != "ok" or not run["tg_avg"]:
                say(unusable=where, why="the run failed")
                continue
            if backend == "hexagon" and model in known["hybrid"]:
                say(
                    unusable=where,
                    why="state-space layers that Hexagon lacks run on the CPU: 3 to 6 times slower",
                )
                continue
            if model in known["models"]:
                read, weights, size = shape(known["models"][model], labels[quant], DEPTH)
                if backend == "cpu" and abs(size / logged - 1) > 0.002:
                    say(
                        unusable=where,
                        why=f"the file has {logged / MIB:.1f} MiB, its recipe {size / MIB:.1f}",
                    )
                    continue
            else:
                if backend != "cpu":  # a GPU's log splits and copies otherwise; the file is the same
                    logged = next(
                        (
                            MIB * sum(r["log_signals"]["memory_buffers"]["weights_mib"].values())
                            for r in published["runs"]
                            if (r["model_id"], r["quant"], r["effective_backend"]) == (model, quant, "cpu")
                        ),
                        0.0,
                    )
                    if not logged:
                        say(unusable=where, why="its size is known from no log: no CPU run")
                        continue
                read = other(known["others"][model], quant, labels[quant], logged)
                head = OTHERS_HEAD.get(quant, "Q6_K")
                embedding = math.prod(known["others"][model][0])
                weights = {k: 8 * v / storage_type(k).bits_per_weight for k, v in read.items()}
                weights[head] -= embedding
            cells.append(Cell(phone, backend, model, quant, run["tg_avg"], run["pp_avg"], read, weights))
        for model in sorted({name for name, _ in seen}):
            for quant in labels:
                lacking = sorted(set(BACKENDS) - seen.get((model, quant), set()))
                if lacking:
                    say(
                        unusable={"phone": phone, "model": model, "quant": quant, "backend": lacking},
                        why="not published: killed when it was loaded, or not run",
                    )
    say(cells=tried, usable=len(cells))
    return cells


def fit(cells: Sequence[Cell], what: str, overhead: bool) -> tuple[dict[str, float], float]:
    """(seconds per byte or weight of the types that these cells can tell, seconds of overhead a token).

    Least absolute relative errors with values that are not negative (reweighted least squares). A type that
    no cell has FREE of its bytes in takes the time of its stand-in, by the product's own rule.
    """
    shares: dict[str, float] = defaultdict(float)
    for cell in cells:
        amounts = cell.amounts(what)
        total = sum(amounts.values())
        for kind, size in amounts.items():
            shares[kind] = max(shares[kind], size / total)
    free = sorted(kind for kind, share in shares.items() if share >= FREE and kind not in FLOATS)
    ties = np.zeros((len(shares), len(free) + 1))
    kinds = sorted(shares)
    for row, kind in enumerate(kinds):
        source, by_weight = speed.stand_in(kind, free)
        factor = (
            storage_type(source).bits_per_weight / storage_type(kind).bits_per_weight
            if by_weight and what == "decode"
            else 1.0
        )
        ties[row, free.index(source)] = factor
    table = np.array([[cell.amounts(what).get(kind, 0.0) / 1e9 for kind in kinds] for cell in cells]) @ ties
    table[:, -1] = float(overhead)
    target = np.array([cell.seconds(what) for cell in cells])
    table, weights = table / target[:, None], np.ones(len(cells))
    for _ in range(40):
        found, _ = nnls(table * weights[:, None], weights)
        weights = np.maximum(np.abs(table @ found - 1), 0.03) ** -0.5
    return {kind: found[i] / 1e9 for i, kind in enumerate(free) if found[i] > 0}, float(found[-1])


def predict(cell: Cell, what: str, known: dict[str, float], overhead: float) -> float:
    """Tokens/s."""
    size = {
        kind: storage_type(kind).bits_per_weight / 8 if what == "decode" else 1.0
        for kind in {*known, *cell.amounts(what)}
    }
    slowest = {kind: value * size[kind] for kind, value in known.items()}
    seconds = overhead
    for kind, amount in cell.amounts(what).items():
        source, by_weight = speed.stand_in(kind, sorted(known), slowest)
        seconds += amount * known[source] * (size[source] / size[kind] if by_weight else 1.0)
    return 1 / seconds


def errors(cells: Sequence[Cell], what: str, overhead: bool) -> list[tuple[Cell, float]]:
    """Predicted over measured speed, less one, of every cell, by a fit without the cell's model."""
    found = []
    for model in sorted({cell.model for cell in cells}):
        known, extra = fit([cell for cell in cells if cell.model != model], what, overhead)
        for cell in cells:
            if cell.model == model:
                measured = 1 / cell.seconds(what)
                found.append((cell, predict(cell, what, known, extra) / measured - 1))
    return found


def summary(found: Iterable[tuple[Cell, float]]) -> dict[str, Any]:
    pairs = list(found)
    size = np.abs([error for _, error in pairs])
    worst = max(pairs, key=lambda pair: abs(pair[1]))
    return {
        "cells": len(pairs),
        "median": round(float(np.median(size)), 3),
        "p90": round(float(np.quantile(size, 0.9)), 3),
        "q05": round(float(np.quantile([error for _, error in pairs], 0.05)), 3),
        "q95": round(float(np.quantile([error for _, error in pairs], 0.95)), 3),
        "worst": f"{worst[0].phone} {worst[0].model} {worst[0].quant} {worst[1]:+.2f}",
    }


def leave_one_out(cells: Sequence[Cell]) -> None:
    """Errors of each class of cells, and whether what is asked of them holds."""
    for what in ("decode", "prefill"):
        for backend in BACKENDS:
            both: list[tuple[Cell, float]] = []
            for phone in sorted({cell.phone for cell in cells}):
                own = [cell for cell in cells if (cell.phone, cell.backend) == (phone, backend)]
                found = errors(own, what, what == "decode")
                both += found
                for low in (False, True):
                    part = [pair for pair in found if (pair[0].quant in LOW) == low]
                    bits = "below 4 bits" if low else "4 bits and above"
                    say(
                        left_out="a model",
                        what=what,
                        phone=phone,
                        backend=backend,
                        bits=bits,
                        **summary(part),
                    )
            for low in (False, True):
                part = [pair for pair in both if (pair[0].quant in LOW) == low]
                bits = "below 4 bits" if low else "4 bits and above"
                line = summary(part)
                if what == "decode" and backend == "cpu" and not low:
                    line["holds"] = line["median"] <= 0.08 and line["p90"] <= 0.30
                    line["asked"] = "median <= 0.08, p90 <= 0.30"
                low_end, high_end = speed.KNOWN.get(backend, speed.KNOWN_GPU)
                if what == "prefill":
                    low_end, high_end = speed.PREFILL_KNOWN
                inside = [low_end <= 1 / (1 + error) <= high_end for _, error in part]
                line["within_interval"] = round(sum(inside) / len(inside), 3)
                say(left_out="a model", what=what, phone="both", backend=backend, bits=bits, **line)


def fitted(cells: Sequence[Cell]) -> dict[tuple[str, str], dict[str, Any]]:
    """What the product's tables are made from: every phone and backend, from all models."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for phone in sorted({cell.phone for cell in cells}):
        for backend in BACKENDS:
            own = [cell for cell in cells if (cell.phone, cell.backend) == (phone, backend)]
            decode, extra = fit(own, "decode", overhead=True)
            prefill, _ = fit(own, "prefill", overhead=False)
            found[phone, backend] = {
                "decode": {kind: 1 / value for kind, value in decode.items()},
                "prefill": {kind: 1 / value for kind, value in prefill.items()},
                "overhead": extra,
            }
            say(
                fit=phone,
                backend=backend,
                overhead_ms=round(1e3 * extra, 2),
                decode_gbps={k: round(1 / v / 1e9, 1) for k, v in decode.items()},
                prefill_gweights={k: round(1 / v / 1e9, 1) for k, v in prefill.items()},
            )
    return found


def classes(tables: dict[tuple[str, str], dict[str, Any]]) -> dict[str, Any]:
    """Ratios to Q4_0, geometric means over the phones, of the classes that the phones stand for."""
    found = {}
    for name, backend in (("arm-cpu", "cpu"), ("adreno", "opencl"), ("hexagon", "hexagon")):
        phones = [phone for phone, own in tables if own == backend]
        entry: dict[str, Any] = {
            "source": f"PocketPal baselines of {' and '.join(phones)}, fitted by bench/devices.py",
            "date": "2026-11-25",
            "base": "Q4_0",
        }
        for what in ("decode", "prefill"):
            own = [tables[phone, backend][what] for phone in phones]
            kinds = set.intersection(*(set(table) for table in own))
            entry[what] = {
                kind: round(statistics.geometric_mean(t[kind] / t["Q4_0"] for t in own), 3)
                for kind in sorted(kinds, key=lambda kind: storage_type(kind).bits_per_weight)
            }
            top = [tables[phone, backend][what]["Q4_0"] / SPEC[phone] for phone in phones]
            key = "fraction" if what == "decode" else "prefill_rate"
            entry[key] = round(statistics.geometric_mean(top), 3)
        found[name] = entry
    return found


def published() -> None:
    """Rows that nothing was fitted to."""
    known = models()["models"]
    inside: list[bool] = []
    size: dict[str, list[float]] = defaultdict(list)
    for row in json.loads((HERE / "published.json").read_text())["rows"]:
        where = {key: row[key] for key in ("device", "backend", "model", "recipe", "runtime", "source")}
        if "unusable" in row or row.get("fitted"):
            say(unusable=where, why=row.get("unusable", "the device's own figure is made from it"))
            continue
        device = catalogue.load(row["device"])
        rates = speed.rates(device, row["backend"])
        if "joules" in row and device.power:
            joules = device.power.decode.value / row["sustained"]
            say(
                row=where,
                what="joules",
                measured=row["joules"],
                predicted=round(joules, 3),
                error=round(joules / row["joules"] - 1, 3),
                conditions="power / measured speed",
            )
        config, family = arch.load({"max_position_embeddings": 8192, **known[row["model"]]})
        specs = family.specs(config)
        types = recipes.types(row["recipe"], specs, family.shape(config).queries_per_kv)
        for what in ("decode", "prefill", "sustained"):
            if what not in row:
                continue
            if what == "prefill":
                found = speed.prefill(rates, specs, types)
                if found is None:
                    say(unusable=where, why="no figure of prefill, and none is predicted")
                    continue
                guess = found
            else:
                read = shape(known[row["model"]], row["recipe"], DEPTH)[0]
                guess = speed.decode(rates, read).times(
                    rates.sustained or 1.0 if what == "sustained" else 1.0
                )
            error, within = guess.value / row[what] - 1, guess.low <= row[what] <= guess.high
            own = "own" if rates.measured else "class"
            size[f"{what}, figures of its {own}"].append(abs(error))
            inside.append(within)
            say(
                row=where,
                what=what,
                measured=row[what],
                predicted=round(guess.value, 2),
                interval=[round(guess.low, 2), round(guess.high, 2)],
                error=round(error, 3),
                inside=within,
            )
    for key, values in size.items():
        say(
            rows=key,
            count=len(values),
            median=round(statistics.median(values), 3),
            worst=round(max(values), 3),
        )
    say(rows="all", count=len(inside), within_interval=round(sum(inside) / len(inside), 3))


def predictions(known: Iterable[Device]) -> None:
    """One small model on every device that has a file, so that a new one is looked at."""
    read = shape(models()["models"]["llama-3.2-1b"], "Q4_0", DEPTH)[0]
    for device in known:
        for backend in device.backends:
            rates = speed.rates(device, backend)
            guess = speed.decode(rates, read)
            say(
                device=device.name,
                backend=backend,
                model="llama-3.2-1b Q4_0",
                decode=round(guess.value, 1),
                interval=[round(guess.low, 1), round(guess.high, 1)],
                measured=sorted(rates.measured),
            )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--phones", type=Path, required=True)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    cells = load(given.phones)
    leave_one_out(cells)
    tables = fitted(cells)
    if given.write:
        kept = json.loads(given.write.read_text()) if given.write.is_file() else {}
        text = json.dumps(kept | classes(tables), indent=1)
        text = re.sub(r"\{\s+([^{}]*?)\s+\}", lambda m: "{" + re.sub(r"\s+", " ", m[1]) + "}", text)
        given.write.write_text(text + "\n", encoding="utf-8")
        speed.classes.cache_clear()
    published()
    predictions(catalogue.all_devices())


if __name__ == "__main__":
    main()
