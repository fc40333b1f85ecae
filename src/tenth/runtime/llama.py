"""llama.cpp's C interface by ctypes, out of the one shared object of the pinned ``xllamacpp`` wheel.

The wheel's Python interface is a server; it gives neither the logits of all positions nor the encoders, but
its shared object exports llama.cpp's whole C interface (not on Windows). The structures of
`tenth.runtime.llama_h` move between releases, so the wheel is pinned exactly and `library` compares the
defaults that llama.cpp fills in with the known ones before anything is passed by value.

Asserts of llama.cpp end the process: open sessions only in a child (`tenth.core.jobs.run`).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.metadata
import importlib.util
import logging
import os
import re
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from tenth.core import jobs
from tenth.core.errors import InputError, NativeError
from tenth.core.ggml import storage_type
from tenth.core.progress import one_line
from tenth.core.records import Runtime
from tenth.runtime.llama_h import CONTEXT_DEFAULTS, LOG, MODEL_DEFAULTS, SIGNATURES, Batch

PINNED = "2026.10.11549"
_ADVICE = f"install it with: pip install xllamacpp=={PINNED} (Linux or macOS; on Windows use WSL)"
_MIB = 1 << 20
UNKNOWN, CONTROL, USER_DEFINED = 1 << 0, 1 << 3, 1 << 4  # llama.h, llama_token_attr
_INFO, _ERROR = 2, 4  # ggml_log_level


class _Journal:
    """llama.cpp's log: the last lines for error messages, all lines of a `capture`, the rest to `logging`."""

    def __init__(self) -> None:
        self.tail: deque[tuple[int, str]] = deque(maxlen=60)
        self._capture: list[tuple[int, str]] | None = None
        self._logger = logging.getLogger("tenth.runtime.llama")
        self.callback = LOG(self._receive)

    def _receive(self, level: int, text: bytes | None, _user: int | None) -> None:
        line = (text or b"").decode("utf-8", "replace").strip()
        if level < _INFO or not line.strip("."):
            return
        self.tail.append((level, line))
        # Its lines hold a model's own strings: in the log they are told from asserts and tracebacks.
        self._logger.debug("%s%s", jobs.SAID, one_line(line))
        if self._capture is not None and len(self._capture) < 20_000:
            self._capture.append((level, line))

    @contextlib.contextmanager
    def capture(self) -> Iterator[list[tuple[int, str]]]:
        lines: list[tuple[int, str]] = []
        self._capture = lines
        try:
            yield lines
        finally:
            self._capture = None


_journal = _Journal()


def _reason(lines: Sequence[tuple[int, str]]) -> str:
    """The most telling error line of llama.cpp; its other lines may be a model's own words."""
    errors = [line for level, line in lines if level >= _ERROR]
    telling = [line for line in errors if "error loading model" in line or "failed to initialize" in line]
    return (telling or errors or ["no reason was given"])[0]


def _locate() -> Path:
    """The shared object, found without running the wheel's own start-up code."""
    try:
        version = importlib.metadata.version("xllamacpp")
    except importlib.metadata.PackageNotFoundError:
        raise NativeError(f"xllamacpp is not installed; {_ADVICE}") from None
    if version != PINNED:
        raise NativeError(f"xllamacpp {version} is installed, {PINNED} is needed; {_ADVICE}")
    spec = importlib.util.find_spec("xllamacpp")
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        for file in sorted(Path(folder).glob("xllamacpp*.so")):
            return file
    raise NativeError(f"no shared object of xllamacpp under {folders or 'any folder'}; {_ADVICE}")


def _check(lib: ctypes.CDLL) -> None:
    """Refuse a library whose structures are not laid out as ours: the defaults would land elsewhere."""
    for params, expected in (
        (lib.llama_model_default_params(), MODEL_DEFAULTS),
        (lib.llama_context_default_params(), CONTEXT_DEFAULTS),
    ):
        wrong = [f"{k}={getattr(params, k)}" for k, v in expected.items() if getattr(params, k) != v]
        if wrong:
            raise NativeError(
                f"llama.cpp's structures are not those of b11549 ({', '.join(wrong)}); {_ADVICE}"
            )


@functools.cache
def library() -> ctypes.CDLL:
    """The checked library; loaded once per process.

    Its functions have their argument types declared (`SIGNATURES`): besides those a `Session` uses, the
    encoder ``ggml_quantize_chunk`` (it aborts the process where a type needs an importance matrix and gets
    none) and ``ggml_get_type_traits``.
    Raises NativeError, with what to install, for a missing or different wheel.
    """
    path = _locate()
    try:
        lib = ctypes.CDLL(str(path))
        for name, (result, *arguments) in SIGNATURES.items():
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise NativeError(
            f"{path.name} cannot be used: {error}; {_ADVICE} and apt-get install libgomp1"
        ) from None
    _check(lib)
    lib.llama_log_set(_journal.callback, None)
    lib.llama_backend_init()
    return lib


def build() -> str:
    """Which llama.cpp this is and what it was compiled for, in one line."""
    lib = library()
    features = re.findall(r"(\w+) = 1", lib.llama_print_system_info().decode())
    return f"llama.cpp b{PINNED.rsplit('.', 1)[1]} ({' '.join(features)})"


def dequantize(data: np.ndarray, type_name: str, columns: int) -> np.ndarray:
    """Decode rows with ggml's own routine.

    data: uint8 [rows, row bytes]; returns float32 [rows, columns]. Raises InputError where sizes disagree.
    """
    kind = storage_type(type_name)
    data = np.ascontiguousarray(data, np.uint8)
    if not kind.holds(columns) or data.shape[-1] != kind.row_bytes(columns):
        raise InputError(f"rows of {data.shape[-1]} bytes are not rows of {columns} weights in {type_name}")
    rows = data.reshape(-1, data.shape[-1])
    if kind.name == "F32":
        return rows.view(np.float32).copy()
    traits = library().ggml_get_type_traits(kind.number).contents
    if not traits.to_float:
        raise InputError(f"ggml has no decoder for type {type_name}")
    out = np.empty((rows.shape[0], columns), np.float32)
    traits.to_float(rows.ctypes.data, out.ctypes.data, out.size)
    return out


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# From the line's beginning: a model's own strings come after a key and "=".
_BUFFER = re.compile(r"\w+:\s+(\S+)\s+(model|KV|compute|output) buffer size =\s*([0-9]{1,9}\.[0-9]+) MiB")


def _buffers(lines: Sequence[tuple[int, str]]) -> dict[str, int]:
    """Bytes of llama.cpp's buffers by kind, from its log (which rounds to 0.01 MiB)."""
    sizes = dict.fromkeys(("mapped", "model", "repack", "kv", "compute", "output"), 0)
    for _, line in lines:
        if match := _BUFFER.match(line):
            device, kind, size = match.groups()
            if kind == "model":
                kind = "mapped" if "Mapped" in device else "repack" if "REPACK" in device else "model"
            sizes[kind.lower()] += round(float(size) * _MIB)
    return sizes


def _library_for(path: Path | str) -> ctypes.CDLL:
    """The library, to open that file with. InputError where there is none."""
    if not Path(path).is_file():
        raise InputError(f"no GGUF file at {path}")
    # What llama.cpp opens, Python's hooks do not see.
    sys.audit("tenth.runtime.llama.open", os.fspath(path))
    return library()


def _loaded(
    path: Path | str, params: ctypes.Structure, lines: Sequence[tuple[int, str]], stack: contextlib.ExitStack
) -> int:
    """A model's handle, freed with the stack; NativeError with llama.cpp's reason, of its lines, for none."""
    lib = library()
    model: int | None = lib.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise NativeError(f"llama.cpp cannot load {path}: {_reason(lines)}")
    stack.callback(lib.llama_model_free, model)
    return model


class LlamaVocabulary:
    """A GGUF's tokenizer as llama.cpp runs it. Use it in a `with`."""

    def __init__(self, model: int, stack: contextlib.ExitStack) -> None:
        lib = library()
        self._stack = stack
        self._vocab = lib.llama_model_get_vocab(model)
        self.n_vocab: int = lib.llama_vocab_n_tokens(self._vocab)
        self.end: int = lib.llama_vocab_eos(self._vocab)  # the token that ends a text; -1 for none
        first = lib.llama_vocab_bos(self._vocab) if lib.llama_vocab_get_add_bos(self._vocab) else -1
        self.begin: list[int] = [first] if first >= 0 else []  # what it puts before a text by itself

    @classmethod
    def load(cls, path: Path | str) -> LlamaVocabulary:
        """Of a GGUF, without its weights; the file may hold none.

        Raises InputError for a missing file, NativeError with llama.cpp's reason where it refuses.
        """
        params = _library_for(path).llama_model_default_params()
        params.vocab_only = True
        with contextlib.ExitStack() as stack, _journal.capture() as lines:
            model = _loaded(path, params, lines, stack)
            return cls(model, stack.pop_all())
        raise AssertionError("unreachable")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free what was loaded; harmless when repeated."""
        self._stack.close()

    def ends(self, token: int) -> bool:
        """Whether a token ends a text or a turn."""
        return bool(library().llama_vocab_is_eog(self._vocab, token))

    def markers(self) -> tuple[list[int], list[int]]:
        """(special tokens, which are read in a text where `tokenize` parses; others that always are)."""
        attributes = [library().llama_vocab_get_attr(self._vocab, i) for i in range(self.n_vocab)]
        special = [i for i, held in enumerate(attributes) if held & (UNKNOWN | CONTROL)]
        return special, [
            i for i, held in enumerate(attributes) if held & USER_DEFINED and not held & (UNKNOWN | CONTROL)
        ]

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; those of special tokens are their names."""
        size = 64
        while True:
            out = ctypes.create_string_buffer(size)
            count = library().llama_token_to_piece(self._vocab, token, out, size, 0, True)
            if count >= 0:
                return out.raw[:count]
            size = -count

    def tokenize(self, text: str, special: bool = True, parse: bool = True) -> np.ndarray:
        """Token ids, int32.

        special: add the begin and end tokens that the model wants; parse: read the names of special tokens
        in the text as those tokens. Raises NativeError where llama.cpp refuses.
        """
        raw = text.encode()
        ids = np.empty(len(raw) + 8, np.int32)
        count = library().llama_tokenize(
            self._vocab, raw, len(raw), ids.ctypes.data, ids.size, special, parse
        )
        if count < 0:
            raise NativeError(f"llama.cpp cannot tokenize a text of {len(raw)} bytes")
        return ids[:count].copy()


class Session(LlamaVocabulary):
    """A model opened by llama.cpp, with one sequence of at most `n_ctx` tokens. Use it in a `with`.

    buffers: bytes by kind as llama.cpp reports them: "mapped" (the file's pages), "model" (read without
    mmap), "repack", "kv", "compute", "output" (one row of logits; more are allocated when asked for).
    """

    def __init__(
        self, model: int, context: int, n_batch: int, buffers: dict[str, int], stack: contextlib.ExitStack
    ) -> None:
        super().__init__(model, stack)
        lib = library()
        self.buffers = buffers
        self.n_batch = n_batch
        self.n_ctx: int = lib.llama_n_ctx(context)
        self._context = context
        self.n_trained: int = lib.llama_model_n_ctx_train(model)  # context that the model was made for

    @classmethod
    def open(
        cls, path: Path | str, runtime: Runtime, *, n_batch: int = 0, outputs: int = 0, swa_full: bool = False
    ) -> Session:
        """Load a GGUF and make a context as `runtime` says.

        n_batch: the most tokens that `decode` hands over at once, 0 for the runtime's n_ubatch. outputs: the
        most rows of logits that one piece may ask for (0: all); llama-server sets 1 per user, which spares a
        reserve of n_ubatch * vocabulary floats. swa_full: keep what lies outside an attention window too,
        which `keep` needs.
        Raises InputError for a missing file, NativeError with llama.cpp's reason where it refuses.
        """
        lib = _library_for(path)
        model_params, params = lib.llama_model_default_params(), lib.llama_context_default_params()
        model_params.load_mode = 1  # mmap
        model_params.use_extra_bufts = runtime.repack
        model_params.n_gpu_layers = 0
        params.n_ctx, params.n_batch = runtime.n_ctx, min(n_batch or runtime.n_ubatch, runtime.n_ctx)
        params.n_ubatch = min(runtime.n_ubatch, params.n_batch)
        params.n_outputs_max = outputs
        params.n_threads = params.n_threads_batch = runtime.threads or cores()
        params.type_k, params.type_v = (
            storage_type(runtime.type_k).number,
            storage_type(runtime.type_v).number,
        )
        params.flash_attn_type = int(runtime.flash_attention)
        params.swa_full = swa_full
        with contextlib.ExitStack() as stack, _journal.capture() as lines:
            model = _loaded(path, model_params, lines, stack)
            context = lib.llama_init_from_model(model, params)
            if not context:
                raise NativeError(f"llama.cpp cannot make a context for {path}: {_reason(lines)}")
            stack.callback(lib.llama_free, context)
            return cls(model, context, params.n_batch, _buffers(lines), stack.pop_all())
        raise AssertionError("unreachable")

    @classmethod
    def serving(cls, path: Path | str, runtime: Runtime) -> Session:
        """Load a GGUF as a plan says to run it: one user, one row of logits at a time, as llama-server does.

        Raises what `open` raises.
        """
        return cls.open(path, runtime, outputs=1)

    def close(self) -> None:
        """Free context and model; harmless when repeated."""
        super().close()
        self._context = 0

    def clear(self) -> None:
        """Forget all tokens that were seen."""
        lib = library()
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)

    def keep(self, count: int) -> bool:
        """Forget all tokens but the first `count`; False, and all are forgotten, where the model cannot."""
        lib = library()
        if count and lib.llama_memory_seq_rm(lib.llama_get_memory(self._context), 0, count, -1):
            return True
        self.clear()
        return not count

    def decode(
        self, tokens: Sequence[int] | np.ndarray, pos0: int = 0, all_logits: bool = True
    ) -> np.ndarray:
        """Run tokens at positions pos0.., in pieces of n_batch.

        Returns float32 logits [n, vocabulary]: of every token, or (n = 1) of the last only.
        Raises NativeError for ids outside the vocabulary, a full context, or a failure of llama.cpp.
        """
        lib = library()
        ids = np.ascontiguousarray(tokens, np.int32)
        n = ids.size
        if not n or ids.min() < 0 or ids.max() >= self.n_vocab:
            raise NativeError(f"token ids must be one or more of 0..{self.n_vocab - 1}")
        if not self._context or pos0 + n > self.n_ctx:
            raise NativeError(f"{pos0 + n} tokens do not fit the context of {self.n_ctx} of an open session")
        positions = np.arange(pos0, pos0 + n, dtype=np.int32)
        logits_wanted = np.full(n, all_logits, np.int8)
        logits_wanted[-1] = 1
        out = np.empty((n if all_logits else 1, self.n_vocab), np.float32)
        done = 0
        for start in range(0, n, self.n_batch):
            piece = slice(start, min(start + self.n_batch, n))
            a, b, c = ids[piece], positions[piece], logits_wanted[piece]
            batch = Batch(a.size, a.ctypes.data, None, b.ctypes.data, None, None, c.ctypes.data)
            status = lib.llama_decode(self._context, batch)
            if status:
                raise NativeError(f"llama_decode failed with status {status}: {_reason(_journal.tail)}")
            rows = int(c.sum())
            if rows:
                address = lib.llama_get_logits(self._context)
                values = np.ctypeslib.as_array(
                    ctypes.cast(address, ctypes.POINTER(ctypes.c_float)), (rows, self.n_vocab)
                )
                out[done : done + rows] = values
                done += rows
        return out
