"""Measure a finished bundle on this machine: speed over depth, memory, energy, and that it needs no network.

    check the file -> rest (with an energy counter) -> run (depth.py) -> compare the answers (check.py)
                   -> offline (offline.py) -> OUT/measure.json

What a fit measured stays in scorecard.json; this is the same file on the machine that will run it. It needs
no torch. Answers that are not the file's are an error: a fast wrong run is no measurement.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tenth import __version__
from tenth.core import divergence, jobs
from tenth.core.errors import InputError, NativeError, OutputError
from tenth.core.format import megabytes
from tenth.core.metrics import reading, repeated
from tenth.core.progress import Reporter
from tenth.core.records import Depth, Machine, Measurement, Offline, Plan, Reading, Sample, Scorecard
from tenth.core.store import claimed, write_text
from tenth.devices import machine
from tenth.measurement import check, counters, depth, energy, offline
from tenth.models import text
from tenth.runtime.bundle import LOG, MEASUREMENT, Bundle, open_bundle, read_bundle

FIRST = 512  # the depth after 0; each further one is twice as deep
_LETTERS = (
    8  # of text for every token of context; where a tokenizer makes fewer of them, the text starts anew
)
_PROMPT = 500  # letters of text before the first token
_BUSY = 0.5  # load average per core above which a machine was not at rest


@dataclass(frozen=True)
class MeasureSettings:
    """What a person wants measured, and how."""

    depths: tuple[int, ...] = ()  # empty: `usual_depths`
    repeats: int = 3
    minutes: float = 0.0  # of decoding without a pause; 0 for none
    counter: str = "auto"  # of energy; "none", or one of counters.known()
    idle: float = 30.0  # seconds at rest before an energy counter is used
    root: Path = counters.ROOT  # where the system's files are


def measure(folder: Path, settings: MeasureSettings, reporter: Reporter) -> Measurement:
    """Run the bundle in `folder` and write its measure.json.

    Where no energy counter can be used, the plan's estimates for its device stand in, named so. Raises
    InputError (no bundle, a changed file, a depth beyond its context, a counter asked for that cannot be
    used), NativeError (llama.cpp fails, or its answers differ), OutputError.
    """
    with claimed(folder, f"{folder} is being made or measured by another run of tenth; wait for it"):
        return _measured(folder, settings, reporter)


def _measured(folder: Path, settings: MeasureSettings, reporter: Reporter) -> Measurement:
    """See `measure`."""
    bundle = open_bundle(folder)
    card = read_bundle(folder)[1]
    depths = _depths(settings.depths, bundle.plan.runtime.n_ctx)
    if settings.repeats < 1 or settings.minutes < 0:
        raise InputError("--repeats takes 1 or more, --minutes 0 or more")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{folder} cannot be written, and measure.json goes there; copy it elsewhere")
    source, without = counters.choose(settings.counter, settings.root)
    _compare_digest(bundle.gguf, card, reporter)

    load, heat = machine.load(), machine.celsius()
    figures, by_counter = _run(bundle, depths, settings, source, reporter)
    checks = _check(figures, bundle, reporter)
    isolated, more = _offline(card.sample, bundle, reporter)
    readings = _readings(figures, bundle.plan)
    readings += by_counter or energy.planned(bundle.plan)
    readings.append(_connections(isolated))
    where = machine.describe(bundle.plan.runtime.threads, load, heat)
    measurement = Measurement(
        tenth=__version__,
        runtime=figures.build,
        model=card.model,
        sha256=card.sha256,
        machine=where,
        readings=readings,
        depths=_by_depth(figures),
        over_time=figures.long_run.series if figures.long_run else [],
        energy=_energy(source, settings.counter, bundle.plan),
        without=without,
        checks=checks + more,
        offline=isolated,
        notes=_notes(where),
    )
    write_text(folder / MEASUREMENT, measurement.model_dump_json(indent=1))
    return measurement


def _run(
    bundle: Bundle,
    depths: Sequence[int],
    settings: MeasureSettings,
    source: counters.Source | None,
    reporter: Reporter,
) -> tuple[depth.DepthFigures, list[Reading]]:
    """The figures of a run at every depth, and the energy readings of a counter."""
    prose, runtime = text.bundled(), bundle.plan.runtime
    job = depth.MeasureDepths(
        gguf=bundle.gguf,
        runtime=runtime,
        text=prose[: _LETTERS * runtime.n_ctx],
        prompt=prose[:_PROMPT],
        depths=list(depths),
        repeats=settings.repeats,
        seconds=60 * settings.minutes,
        phase=energy.least_seconds(source) if source else None,
    )
    with ExitStack() as stack:
        ledger = energy.Ledger(stack.enter_context(counters.Meter(source))) if source else None
        if ledger:
            with reporter.step("rest, to know the power of an idle machine", 1.0) as advance:
                ledger.rest(settings.idle, advance)
        with reporter.step("run at every depth", 1.0) as advance:

            def on_event(event: jobs.Event) -> None:
                if ledger:
                    ledger.on_event(event)
                if "done" in event:
                    advance(event["done"])
                if event.get("begin") == "sustained":
                    reporter.say(f"keep decoding for {settings.minutes:g} min")

            figures = jobs.run(job, on_event, jobs.Surroundings(bundle.folder / LOG))
        return figures, ledger.readings() if ledger else []


def usual_depths(n_ctx: int) -> tuple[int, ...]:
    """0, 512, 1024, 2048 ... and the deepest that leaves room to measure both speeds."""
    last = n_ctx - sum(depth.sizes(n_ctx))
    doubling = [0]
    while max(2 * doubling[-1], FIRST) < last:
        doubling.append(max(2 * doubling[-1], FIRST))
    prefill, decode = depth.sizes(n_ctx)
    return (*doubling, last) if last >= doubling[-1] + decode + prefill // 2 else tuple(doubling)


def _depths(wanted: Sequence[int], n_ctx: int) -> tuple[int, ...]:
    """In order; InputError for one that the context has no room for."""
    _, decode = depth.sizes(n_ctx)
    chosen = sorted(set(wanted)) or list(usual_depths(n_ctx))
    if chosen[0] < 0 or chosen[-1] + decode > n_ctx:
        wrong = chosen[0] if chosen[0] < 0 else chosen[-1]
        raise InputError(
            f"depth {wrong} is not possible: the bundle has a context of {n_ctx} tokens, and decoding"
            f" is measured over {decode}; give 0 to {n_ctx - decode}, or fit with a longer --context"
        )
    for one, other in pairwise(chosen):
        if other - one < decode:
            raise InputError(f"depths {one} and {other} overlap; keep them {decode} tokens apart")
    return tuple(chosen)


def _compare_digest(gguf: Path, card: Scorecard, reporter: Reporter) -> None:
    """InputError where the file is not the one that the scorecard is about."""
    digest, done = hashlib.sha256(), 0
    with reporter.step("check the file", gguf.stat().st_size, "B") as advance, gguf.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            done += len(block)
            advance(done)
    if digest.hexdigest() != card.sha256:
        raise InputError(
            f"{gguf} is not the file that scorecard.json is about (SHA-256 {digest.hexdigest()[:12]}..."
            f" instead of {card.sha256[:12]}...); copy the bundle again, or fit again"
        )


def _check(figures: depth.DepthFigures, bundle: Bundle, reporter: Reporter) -> list[str]:
    """What the timed answers were compared with; NativeError where they differ."""
    scored = figures.scored
    job = check.Rescore(
        gguf=bundle.gguf,
        runtime=bundle.plan.runtime,
        ids=figures.ids,
        scored=[(position, token) for position, token, _ in scored],
    )
    with reporter.step("compare the answers", 1.0) as advance:
        around = jobs.Surroundings(bundle.folder / LOG, {"OMP_WAIT_POLICY": "passive"})
        again = jobs.run(job, lambda event: advance(event["done"]), around)
    apart = divergence.difference([nats for *_, nats in scored], again)
    compared = []
    for what, nats in (
        ("the timed runs with each other", figures.difference),
        ("with an independent run that reads all tokens at once", apart),
    ):
        if not nats <= check.TOLERANCE:
            raise NativeError(
                f"the answers of the timed run are not the file's: {what}, log-probabilities differ by"
                f" {nats:.3g} nats on average ({check.TOLERANCE} allowed); nothing is reported"
            )
        compared.append(f"{len(scored)} tokens compared {what}: log-probabilities {nats:.2g} nats apart")
    return compared


def _offline(sample: Sample | None, bundle: Bundle, reporter: Reporter) -> tuple[Offline, list[str]]:
    """The offline proof, and what its answer was compared with."""
    job = check.Answer(
        gguf=bundle.gguf,
        runtime=bundle.plan.runtime,
        text=sample.text if sample else text.bundled()[:_PROMPT],
        tokens=sample.tokens if sample else None,
    )
    with reporter.step("answer without a network", 1.0):
        answer, isolated = offline.enclose(job, bundle.folder, bundle.folder / LOG)
    if sample is None:
        return isolated, ["the machine that made the bundle recorded no answer to compare with"]
    if answer.prompt != sample.prompt:
        raise NativeError("this machine's llama.cpp splits text into other tokens than the making one's")
    nats = divergence.difference(answer.logprobs, sample.logprobs)
    if not nats <= check.TOLERANCE:
        raise NativeError(
            f"the answer differs from the one recorded when the bundle was made by {nats:.3g} nats a token"
            f" ({check.TOLERANCE} allowed); this processor's kernels or the settings are at fault"
        )
    count = len(sample.tokens)
    return isolated, [f"{count} tokens compared with the machine that made it: {nats:.2g} nats apart"]


def _readings(figures: depth.DepthFigures, plan: Plan) -> list[Reading]:
    runs = "median, half range"
    prompt = f"{figures.prompt_tokens} tokens of prompt"
    cold = "after dropping the file from the page cache, where the system allows that"
    held = figures.held
    above = f"above the {megabytes(held.interpreter)} MB of the measuring interpreter"
    deepest = f"{plan.runtime.n_ctx} tokens of context; {above}; {megabytes(plan.memory.held)} MB predicted"
    anonymous = "all else: KV cache, buffers, vocabulary"
    state = f"n_ubatch {plan.runtime.n_ubatch}, KV {plan.runtime.type_k}/{plan.runtime.type_v}"
    faults = f"after the cold first answer ({figures.cold_faults}); pages read from storage while running"
    return [
        repeated("load", figures.load, f"open the file and make the context; {runs}"),
        reading("load_cold", figures.load_cold, cold),
        repeated("ttft", figures.ttft, f"text to first token, {prompt}; {state}; {runs}"),
        reading("ttft_cold", figures.ttft_cold, f"{prompt}; {cold}"),
        reading("peak", held.peak, f"all resident memory; {deepest}"),
        reading("peak_file_backed", held.peak_file_backed, f"pages of files: weights and code; {above}"),
        reading("peak_anonymous", held.peak_anonymous, f"{anonymous}; {above}"),
        reading("major_faults", figures.faults, faults),
        *(_kept(figures.long_run) if figures.long_run else []),
    ]


def _kept(long_run: depth.LongRun) -> list[Reading]:
    """The speeds at both ends of a long run, and what it kept of the first."""
    first, last = long_run.first, long_run.last
    window = f"{long_run.window:.0f} s of {long_run.tokens} tokens without a pause, 0 to {depth.ROUND} deep"
    return [
        reading("decode_first", first, f"first {window}"),
        reading("decode_last", last, f"last {window}"),
        reading("kept", last / first if first else 0.0, "last over first"),
    ]


def _by_depth(figures: depth.DepthFigures) -> list[Depth]:
    depths = []
    for row in figures.depths:
        tokens = figures.decode_tokens
        detail = f"{tokens} tokens, one by one, after {row.depth}; median, half range"
        decode = repeated("decode", row.decode, detail)
        prefill = None
        if row.prefill:
            detail = f"{row.prefill_tokens} tokens after {row.depth + tokens}; median, half range"
            prefill = repeated("prefill", row.prefill, detail)
        depths.append(Depth(depth=row.depth, decode=decode, prefill=prefill))
    return depths


def _connections(proof: Offline) -> Reading:
    blind = f"; not seen: {proof.blind}" if proof.blind else ""
    how = f"loading and answering; {proof.network}; {proof.method}{blind}"
    return reading("connections", proof.connections, how)


def _energy(source: counters.Source | None, asked: str, plan: Plan) -> str:
    if source:
        return f"counter {source.name}: {source.scope}"
    why = "no counter is wanted" if asked == "none" else "no counter can be used"
    if plan.forecast and energy.planned(plan):
        return f"estimated for {plan.forecast.device}, as planned: {why}"
    return f"not measured: {why}, and the plan names no device to estimate it for"


def _notes(where: Machine) -> list[str]:
    """A remark where others used the machine: before, or beside our own threads."""
    before, after = where.load_before, where.load_after
    if before is None or after is None or max(before, after - where.threads) <= _BUSY * where.cores:
        return []
    return [
        f"others used the machine (load {before:.2f} before, {after:.2f} after, {where.cores} cores):"
        " its own speeds are higher, and what it kept of them says nothing about heat"
    ]
