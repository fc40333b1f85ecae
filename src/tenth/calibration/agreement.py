"""Whether our reading of a model folder is transformers' own: compared once, before anything is built on it.

The file that we would write, unquantised, runs in llama.cpp on one window of text; the folder is loaded by
transformers' from_pretrained, with its own reading of config.json, of the tensors' names and of what is tied.
No code of ours stands between the folder and those logits, so a misread key shows as KL, instead of hiding in
both the original and the copy.

Large models are not held in memory: from_pretrained gets placeholders of no size for the weights, each with
an address of its own, and a module's real weights are read when the module is called.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import nn

from tenth.calibration.settings import Agreement
from tenth.core.divergence import divergence, log_softmax
from tenth.core.errors import InputError
from tenth.core.jobs import Compute, Emit
from tenth.core.records import Runtime
from tenth.models.checkpoint import Checkpoint, open_checkpoint
from tenth.models.formats.gguf import write_gguf
from tenth.models.formats.hf import LazyTensor, read_header, read_optional
from tenth.models.text import bundled
from tenth.runtime.llama import Session

LENGTH = 64  # tokens of the window, its first one as the tokenizer begins a text
LIMIT = 1e-2  # nats of KL at any of its positions
WHOLE = 500_000_000  # weights that transformers may hold at once, as float32
PLAIN = 300_000_000  # weights up to which the file is float32; above, a matrix keeps the type that it has
TEXT = 4000  # characters of the bundled text, more than LENGTH tokens of any tokenizer


def compare(model: Path, folder: Path, compute: Compute, emit: Emit) -> Agreement:
    """Run one window in both; `folder` holds the file meanwhile. Emits {"done": 0..3, "total": 3}.

    InputError where a text begins with different tokens, where transformers cannot load the model, and where
    the KL of a position is above LIMIT.
    """
    checkpoint, gguf = open_checkpoint(model), folder / "unquantised.gguf"
    write_gguf(checkpoint, _types(checkpoint), gguf)
    emit({"done": 1, "total": 3})
    try:
        ids, ours = _llama_cpp(checkpoint, gguf, compute.threads)
    finally:
        gguf.unlink()
    emit({"done": 2, "total": 3})
    if compute.threads:
        torch.set_num_threads(compute.threads)
    theirs = transformers_logits(checkpoint, ids)
    emit({"done": 3, "total": 3})
    return _agreement(model, ours, theirs)


def _agreement(model: Path, ours: np.ndarray, theirs: np.ndarray) -> Agreement:
    """InputError where they do not agree."""
    if ours.shape != theirs.shape:
        raise InputError(
            f"{model}: transformers gives logits of {theirs.shape[1]} tokens, our file of {ours.shape[1]};"
            " vocab_size in config.json is not the embedding's"
        )
    kl = divergence(log_softmax(theirs), log_softmax(ours))
    worst = int(np.argmax(np.where(np.isnan(kl), np.inf, kl)))
    if kl[worst] <= LIMIT:
        return Agreement(tokens=len(kl), kl=float(kl[worst]), position=worst, mean=float(kl.mean()))
    first = int(np.flatnonzero(~(kl <= LIMIT))[0])
    hint = (
        "already the first token differs: look for weights, norms or activations that are not the model's"
        if first == 0
        else "the tokens before agree: look at rope_theta, rope_scaling and the windows in config.json"
    )
    raise InputError(
        f"{model}: llama.cpp does not compute what transformers does: KL {kl[first]:.2g} at token {first} of"
        f" {len(kl)} (the worst is {kl[worst]:.2g}; {LIMIT:g} is allowed); {hint}; please report this model"
    )


def _types(checkpoint: Checkpoint) -> dict[str, str]:
    """Types that lose nothing: BF16 for matrices of a large model that are, else F32."""
    linear = [spec for spec in checkpoint.specs() if spec.linear]
    if sum(spec.count for spec in linear) <= PLAIN:
        return {}
    return {spec.name: "BF16" for spec in linear if checkpoint.tensors[spec.source].dtype == "BF16"}


def _llama_cpp(checkpoint: Checkpoint, gguf: Path, threads: int) -> tuple[np.ndarray, np.ndarray]:
    """(the window's ids, llama.cpp's logits [tokens, vocabulary])."""
    length = min(LENGTH, checkpoint.arch.context_limit(checkpoint.config)[0])
    runtime = Runtime(
        n_ctx=length, n_ubatch=length, type_k="F32", type_v="F32", flash_attention=False, threads=threads
    )
    with Session.open(gguf, runtime) as session:
        _check_beginning(checkpoint.path, session.tokenize("").tolist()[:1])
        ids = session.tokenize(bundled()[:TEXT])[:length].astype(np.int64)
        return ids, session.decode(ids)


def _check_beginning(model: Path, ours: list[int]) -> None:
    """InputError where llama.cpp begins a text with another token than the tokenizer does: as its
    tokenizer.json says, or as transformers makes it.

    A folder with a tokenizer.model alone and no word on add_bos_token says nothing: transformers 5.24 then
    begins with none, although its own documentation of LlamaTokenizer promises one, as version 4 gave.
    """
    if not (model / "tokenizer.json").exists() and not _says_how_to_begin(model):
        return
    others: list[list[int]] = []
    with suppress(Exception):  # of many kinds, for files that the tokenizer's own check has words for
        import tokenizers

        others.append(tokenizers.Tokenizer.from_file(str(model / "tokenizer.json")).encode("").ids[:1])
    if ours in others:
        return
    with suppress(Exception):
        from transformers import AutoTokenizer

        found = AutoTokenizer.from_pretrained(model, trust_remote_code=False, local_files_only=True)
        others.append(found("")["input_ids"][:1])
    if others and ours not in others:
        expected = others[-1] or "no token of its own"
        raise InputError(
            f"{model}: llama.cpp begins a text with {ours or 'no token of its own'}, the model's tokenizer"
            f" with {expected}; look at add_bos_token and bos_token in tokenizer_config.json"
        )


def _says_how_to_begin(model: Path) -> bool:
    return "add_bos_token" in read_optional(model / "tokenizer_config.json")


# -- transformers --------------------------------------------------------------------------------------------


def transformers_logits(checkpoint: Checkpoint, ids: np.ndarray, whole: int = WHOLE) -> np.ndarray:
    """What transformers computes from the folder in float32, eagerly: [tokens, vocabulary].

    whole: the most weights that are held in memory together; of a larger model, one matrix is at a time.
    InputError where transformers refuses the folder, or does not find all weights.
    """
    os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    import transformers

    logs: Any = transformers.utils.logging
    logs.disable_progress_bar()
    count = sum(int(np.prod(tensor.shape, dtype=np.int64)) for tensor in checkpoint.tensors.values())
    try:
        if count <= whole:
            model = _loaded(checkpoint.path)
        else:
            model = _streamed(checkpoint.path, list(checkpoint.headers))
        with torch.no_grad():
            out = model(input_ids=torch.from_numpy(ids)[None], use_cache=False, return_dict=True)
            logits: np.ndarray = out.logits[0].float().numpy()
    except InputError:
        raise
    except Exception as error:  # of many kinds
        reason = (str(error).strip().splitlines() or [""])[0]
        raise InputError(
            f"{checkpoint.path}: transformers cannot run this model, so that nothing says what it should"
            f" compute: {type(error).__name__}: {reason:.200}"
        ) from error
    return logits


def _config(folder: Path) -> Any:
    """transformers' own reading of config.json."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if getattr(config, "quantization_config", None) == {}:
        del config.quantization_config  # which transformers 5 stumbles over
    config.return_dict = True
    return config


def _loaded(
    folder: Path, kind: Any = None, config: Any = None, weights: dict[str, torch.Tensor] | None = None
) -> Any:
    """The folder's model by from_pretrained, as float32; weights: instead of those in its files, for a model
    of that class and config.
    """
    import transformers

    auto: Any = transformers.AutoModelForCausalLM
    source = (
        {"trust_remote_code": False, "local_files_only": True} if weights is None else {"state_dict": weights}
    )
    model, info = (kind or auto).from_pretrained(
        folder if weights is None else None,
        config=config or _config(folder),
        dtype=torch.float32,
        attn_implementation="eager",
        use_safetensors=True,
        output_loading_info=True,
        **source,
    )
    missing = sorted({*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])})
    if missing:
        raise InputError(
            f"{folder}: transformers does not find the weights of {missing[0]} ({len(missing)} such) and"
            " would make them up; give a complete folder"
        )
    return model.eval()


def _streamed(folder: Path, files: list[Path]) -> Any:
    """The model with placeholders for its weights, which are read whenever a module is called."""
    import transformers

    auto: Any = transformers.AutoModelForCausalLM
    tensors: dict[str, LazyTensor] = {}
    for file in files:
        tensors |= read_header(file)[0]
    config = _config(folder)
    with torch.device("meta"):
        kind = type(auto.from_config(config, trust_remote_code=False))
    largest = max((tensor.shape for tensor in tensors.values()), key=lambda shape: int(np.prod(shape)))
    placeholders, places = {}, {}
    for number, (name, tensor) in enumerate(tensors.items()):
        # Embedding and head are compared by from_pretrained, which ties them where they are the same.
        value = _checksum(tensor) if tensor.shape == largest else number
        placeholders[name] = torch.full((1,), value, dtype=torch.float32).expand(tensor.shape)
        places[placeholders[name].data_ptr()] = tensor
    model = _loaded(folder, kind, config, dict(placeholders))
    for module in model.modules():
        held = {name: places[p.data_ptr()] for name, p in module.named_parameters(recurse=False)}
        if held:
            module.forward = _filling(module, held)
    model.placeholders = placeholders  # whose addresses must stay theirs
    return model


def _filling(module: nn.Module, held: dict[str, LazyTensor]) -> Callable[..., Any]:
    """The module's forward pass with its weights in memory for that long."""
    forward = module.forward

    @contextmanager
    def filled() -> Iterator[None]:
        before = {name: getattr(module, name) for name in held}
        for name, tensor in held.items():
            setattr(module, name, nn.Parameter(torch.from_numpy(tensor.load()), requires_grad=False))
        try:
            yield
        finally:
            for name, placeholder in before.items():
                setattr(module, name, placeholder)

    def call(*args: Any, **kwargs: Any) -> Any:
        with filled():
            return forward(*args, **kwargs)

    return call


def _checksum(tensor: LazyTensor) -> int:
    """Of the values, 24 bits, which a float32 holds."""
    found, step = 0, max(1, (1 << 22) // max(1, tensor.shape[-1]))
    for start in range(0, tensor.shape[0], step):
        found = crc32(tensor.load(start, min(start + step, tensor.shape[0])).data, found)
    return found & 0xFFFFFF
