"""What a plan will hold in llama.cpp, part by part, from numbers alone.

Read from llama.cpp b11549 and checked against its log and against the resident size of real runs:

    weights   every tensor, padded to 32 bytes, mapped from the file
    repacked  a second copy of matrices whose type this CPU has interleaved kernels for (ggml-cpu/repack.cpp),
              the head's copy of a tied embedding included
    kv        of every layer cells * (row of K + row of V); cells = context padded to 256, in a sliding-window
              layer the least of that and window + n_ubatch, padded to 256 (llama-kv-cache-iswa.cpp)
    compute   n_ubatch * (inputs + the larger of the widest block's attention and feed-forward stage), or the
              logits;
              + work buffer: activations converted for the widest product, scratch of each thread
    output    rows of logits handed out, 4 bytes * vocabulary each
    base      code, graph metadata, vocabulary
    margin    kept free: what the prediction and two proofs of one file differ by

One row of logits is asked for at a time, as llama-server does (n_outputs_max). A host that leaves that
setting at its default reserves n_ubatch rows, but does not touch those pages while it generates.

The constants were measured on x86-64 Linux with models of 1k to 150k tokens and 2 to 48 layers: code 10.8 MB;
heap 4.25 MB, 200 bytes per token and 240 more per BPE merge, 5.5 MB at the least; 1.3 KB per graph slot, of
which there are max(1024, 8 * tensors). On 16 configurations of a 46M-parameter model (43 to 230 MB; six
mixtures, batches of 8 to 512, repacking, quantised caches, flash attention off) the total was off by at most
2.5 %; so it was on 18 where its blocks differ in width (-2.2 to +0.4 %).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pydantic import Field

from tenth.core.ggml import FLOATS, KV_TYPES, StorageType, storage_type
from tenth.core.records import MemoryParts, Record, Runtime, TensorSpec
from tenth.models.formats.gguf import storage, tensor_bytes
from tenth.models.shape import ModelShape
from tenth.runtime.llama import cores

_ALIGN = 32
CELLS = 256  # tokens: llama.cpp rounds contexts up to multiples
_TILE = 64  # queries and keys of a flash-attention tile (ggml-cpu/common.h)
_ACTIVATION_BYTES = {256: 292, 32: 36}  # of a block of Q8_K; of Q8_1, which Q8_0 (34) stays below
_TILED_SLOT = 512 * 1024  # scratch per thread of the tiled K- and I-quant product (ggml-cpu/tiled)
_THREAD = 64 * 1024  # touched stack of an OpenMP thread

UBATCHES = (8, 16, 32, 64, 128, 256, 512)


class Constants(Record):
    """Measured constants in bytes, and corrections learnt from a proof; saved with the plan."""

    code: int = Field(default=10_800_000, ge=0)  # pages of the library that are used
    heap: int = Field(default=4_250_000, ge=0)  # beside the vocabulary
    heap_least: int = Field(default=5_500_000, ge=0)  # with it: what a small one leaves unused is held too
    graph_slot: float = Field(default=1_320, ge=0)  # per slot of the graph's tables
    token: float = Field(default=200, ge=0)  # per entry of the vocabulary
    merge: float = Field(default=240, ge=0)  # per BPE merge
    weights_factor: float = Field(default=1, gt=0)
    repacked_factor: float = Field(default=1, gt=0)
    kv_factor: float = Field(default=1, gt=0)
    compute_factor: float = Field(default=1, gt=0)
    base_extra: int = 0  # added to base, may be negative
    # Twenty proofs of one file differ by 0.13 MB (in pages of the library that the kernel maps beside those
    # that are read), and the prediction is off by 0.2 MB more, by 0.5 MB with 262k tokens (docs/log.md).
    margin: int = Field(default=300_000, ge=0)  # bytes kept free
    margin_token: float = Field(default=1, ge=0)  # and per entry of the vocabulary


def _pad(value: int, to: int) -> int:
    return -(-value // to) * to


def memory(
    shape: ModelShape,
    specs: Sequence[TensorSpec],
    types: Mapping[str, str],
    runtime: Runtime,
    constants: Constants | None = None,
    merges: int | None = None,
) -> MemoryParts:
    """The bytes of every part when a file of `types` runs with `runtime`.

    types: GGUF tensor name -> ggml type of linear tensors, all else is F32. merges: BPE merges of the
    tokenizer; None guesses from the vocabulary and the family.
    """
    constants = constants or Constants()
    weights = sum(_pad(tensor_bytes(spec, storage(spec, types)), _ALIGN) for spec in specs)
    kv = _kv(shape, runtime)
    compute = round(_compute(shape, specs, types, runtime) * constants.compute_factor)
    output = 4 * shape.vocab
    merges = _guess_merges(shape) if merges is None else merges
    slots = max(1024, 8 * len(specs))
    heap = constants.heap + constants.token * shape.vocab + constants.merge * merges
    base = constants.code + max(constants.heap_least, heap) + constants.graph_slot * slots
    base += _THREAD * _threads(runtime) + constants.base_extra
    # While loading, the file's header is resident beside the vocabulary made of it; caches take its place.
    header = 18 * shape.vocab + 20 * merges
    base += max(0, header - kv - compute - output)
    return MemoryParts(
        weights=round(weights * constants.weights_factor),
        repacked=round(_repacked(specs, types) * constants.repacked_factor) if runtime.repack else 0,
        kv=round(kv * constants.kv_factor),
        compute=compute,
        output=output,
        base=max(0, round(base)),
        margin=round(constants.margin + constants.margin_token * shape.vocab),
    )


def _threads(runtime: Runtime) -> int:
    return runtime.threads or cores()


def _guess_merges(shape: ModelShape) -> int:
    """Gemma's vocabulary is SentencePiece; Llama 3's has 280,147 merges; BPE has about one per token."""
    if shape.gguf_arch.startswith("gemma"):
        return 0
    return 280_147 if shape.vocab in (128_256, 128_258) else shape.vocab


def _repacked(specs: Sequence[TensorSpec], types: Mapping[str, str]) -> int:
    tied = not any(spec.name == "output.weight" for spec in specs)
    total = 0
    for spec in specs:
        multiplied = spec.linear and (spec.name != "token_embd.weight" or tied)
        if multiplied and storage_type(storage(spec, types)).repackable(spec.shape[0], spec.columns):
            total += _pad(tensor_bytes(spec, storage(spec, types)), _ALIGN)
    return total


def cells(runtime: Runtime, window: int = 0) -> int:
    """Tokens that the cache of a layer holds; window 0 is full attention."""
    full = _pad(runtime.n_ctx, CELLS)
    if not window:
        return full
    return _pad(min(full, window + min(runtime.n_ubatch, runtime.n_ctx)), CELLS)


def _kv(shape: ModelShape, runtime: Runtime) -> int:
    total, widest = 0, shape.axes()["kv_heads"]
    for window, keys in zip(shape.windows, _kv_widths(shape), strict=True):
        # Without flash attention V is transposed, and then as wide as that of the widest block.
        values = keys if runtime.flash_attention else widest
        row = storage_type(runtime.type_k).row_bytes(keys) + storage_type(runtime.type_v).row_bytes(values)
        total += cells(runtime, window) * row
    return total


def _kv_widths(shape: ModelShape) -> list[int]:
    """Values of a token's keys in each block, and as many of its values."""
    return [heads * size for heads, size in zip(shape.kv_heads, shape.head_dims, strict=True)]


def kv_read(shape: ModelShape, runtime: Runtime, depth: int) -> dict[str, float]:
    """Bytes of the cache that one token decoded after `depth` others reads, by ggml type."""
    by_type: dict[str, float] = {}
    for window, width in zip(shape.windows, _kv_widths(shape), strict=True):
        for kind in (runtime.type_k, runtime.type_v):
            read = float(min(depth, window or depth) * storage_type(kind).row_bytes(width))
            by_type[kind.upper()] = by_type.get(kind.upper(), 0.0) + read
    return by_type


def _compute(
    shape: ModelShape, specs: Sequence[TensorSpec], types: Mapping[str, str], runtime: Runtime
) -> int:
    """The touched graph buffer plus the CPU backend's work buffer.

    In floats per token of a batch, found on a grid of shapes with llama.cpp's own report (H hidden, F
    feed-forward, A and K widths of queries and keys): attention A + 2K + 4H, feed-forward 3F + 4H (without a
    gate, as in Phi-2, F + 5H); 40 bytes of indices. Without flash attention they gain H and 2K, and attention
    the scores of all heads. The report also has H floats per token for embeddings given as input, which stay
    untouched. It is met within 1 % in nine families, 5 % without flash attention.
    """
    batch = min(runtime.n_ubatch, runtime.n_ctx)
    kinds = [cells(runtime, window) for window in set(shape.windows)]  # one mask each
    axes = shape.axes()
    a, k, h, f = (axes[axis] for axis in ("heads", "kv_heads", "hidden", "ffn"))
    mask = 2 if runtime.flash_attention else 4
    gated = any(
        spec.role == "ffn_gate" or (spec.role == "ffn_up" and spec.shape[0] == 2 * f) for spec in specs
    )
    attention, feed_forward = a + 2 * k + 4 * h, 3 * f + 4 * h if gated else f + 5 * h
    if not runtime.flash_attention:
        attention += h + max(shape.heads) * max(kinds)
        feed_forward += 2 * k
    inputs = 40 + mask * sum(kinds)
    graph = batch * inputs + max(batch * 4 * max(attention, feed_forward), 4 * (shape.vocab + 5 * h))
    return graph + _rotation(shape, runtime) + _work(shape, specs, types, runtime, batch)


def _rotation(shape: ModelShape, runtime: Runtime) -> int:
    """Hadamard matrices that spread outliers of quantised keys and values (llama-kv-cache.cpp)."""
    head = math.gcd(*shape.head_dims)
    if head % 64:
        return 0
    side = 64
    while head % (2 * side) == 0:
        side *= 2
    keys = 4 * side * side if runtime.type_k.upper() not in FLOATS else 0
    return keys + (4 * 64 * 64 if runtime.type_v.upper() not in FLOATS else 0)


def _work(
    shape: ModelShape, specs: Sequence[TensorSpec], types: Mapping[str, str], runtime: Runtime, batch: int
) -> int:
    """ggml_graph_plan's work_size: the largest need of a single node."""
    threads = _threads(runtime)
    tile = _TILE * (4 * max(shape.head_dims) + 2 * _TILE)
    largest = 4 * tile * threads if runtime.flash_attention else 0
    for spec in specs:
        if spec.linear and spec.layer is not None:
            kind = storage_type(storage(spec, types))
            activations = batch * _activation_row(kind, spec.columns)
            largest = max(largest, activations + (_TILED_SLOT * threads if kind.tiled else 0))
    return largest


def _activation_row(kind: StorageType, columns: int) -> int:
    """Bytes of a row of activations converted for a product with weights of this type."""
    if kind.activation_block is None:
        return 0 if kind.name == "F32" else 2 * columns
    return columns // kind.activation_block * _ACTIVATION_BYTES[kind.activation_block]


def corrected(constants: Constants, predicted: MemoryParts, parts: Mapping[str, int]) -> Constants:
    """Constants with which the prediction of the proven configuration equals what was measured.

    parts: of a Proof: llama.cpp's report ("mapped", "repack", "kv", "compute") and the "peak". Parts that
    llama.cpp reports become factors; what is left of the peak goes to the base.
    """
    changes: dict[str, float] = {}
    total = predicted.held
    for field, key, value in (
        ("weights_factor", "mapped", predicted.weights),
        ("repacked_factor", "repack", predicted.repacked),
        ("kv_factor", "kv", predicted.kv),
    ):
        seen = parts.get(key, 0)
        if value and seen:
            changes[field] = getattr(constants, field) * seen / value
            total += seen - value
    seen = parts.get("compute", 0)
    # The report is of reserved bytes without the work buffer, the prediction of touched ones with it.
    if seen and predicted.compute and not 0.6 < seen / predicted.compute < 1.4:
        changes["compute_factor"] = constants.compute_factor * seen / predicted.compute
        total += seen - predicted.compute
    if peak := parts.get("peak", 0):
        changes["base_extra"] = constants.base_extra + peak - total
    return constants.model_copy(update=changes)


def possible_runtimes(shape: ModelShape, context: int, threads: int = 0) -> list[Runtime]:
    """Every way to run a context that llama.cpp's CPU backend supports, without repacking.

    KV types: all pairs of `KV_TYPES` whose blocks divide a head; quantised ones need flash attention, which
    is on throughout. Pairs other than f16+f16 leave the tiled kernel, which makes long prefills slower.
    """
    head = math.gcd(*shape.head_dims)
    kinds = [kind for kind in KV_TYPES if storage_type(kind).holds(head)]
    batches = sorted({min(batch, context) for batch in UBATCHES})
    return [
        Runtime(n_ctx=context, n_ubatch=batch, type_k=k, type_v=v, threads=threads)
        for batch in batches
        for k in kinds
        for v in kinds
    ]
