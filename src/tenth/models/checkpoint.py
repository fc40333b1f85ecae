"""A model as it lies in its folder: config, architecture and tensors that are read when asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from tenth.core.errors import InputError
from tenth.core.records import TensorSpec
from tenth.models import arch as architectures
from tenth.models.arch import OUTSIDE, Architecture, Entry
from tenth.models.formats.hf import JsonObject, LazyTensor, agree, open_weights, read_json, same_values
from tenth.models.shape import ModelShape
from tenth.models.source import model_name

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
)
CONFIG_LIMIT = 16_000_000  # bytes
HEAD = "lm_head.weight"  # what transformers calls the output head of every family
EMBEDDED = "model.embed_tokens.weight"  # and its embedding
SAMPLE = 1 << 16  # bytes of data hashed at each of SAMPLES places of a file
SAMPLES = 16
CHUNK = 16_000_000  # weights looked at together
# Constants that old exporters saved; the runtime computes them.
CONSTANTS = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias", "position_ids")


@dataclass(frozen=True)
class Checkpoint:
    """An opened model folder; no weight is in memory. tensors has Hugging Face's names of the text model."""

    path: Path
    name: str
    config: JsonObject  # of the text model, completed with the family's defaults
    arch: Architecture
    tensors: dict[str, LazyTensor]
    other: dict[str, str] = field(default_factory=dict)  # tensors of types that are no plain floats
    headers: dict[Path, bytes] = field(default_factory=dict, repr=False)

    @property
    def shape(self) -> ModelShape:
        """The model's sizes, made once from its completed config."""
        return self.arch.shape(self.config)

    def block(self) -> dict[str, Entry]:
        """The architecture's table of one block of this model."""
        return self.arch.block(self.config)

    def residual_outputs(self, index: int) -> tuple[str, str]:
        """Names of the two matrices of block `index` that write into the residual stream."""
        block = self.block()
        out, down = (block[role].source.format(i=index) for role in ("attn_output.weight", "ffn_down.weight"))
        return out, down

    def hash(self) -> str:
        """SHA-256, hex, of what identifies the model.

        Over config.json and the tokenizer's files whole; and of each safetensors file its size, its header,
        and 64 KiB of data at 16 evenly spaced places. Names and times of files do not count.
        """
        digest = hashlib.sha256()
        for name in ("config.json", *TOKENIZER_FILES):
            if (self.path / name).is_file():
                data = (self.path / name).read_bytes()
                digest.update(f"{name} {len(data)}\n".encode() + data)
        for path, header in self.headers.items():
            size, start = path.stat().st_size, 8 + len(header)
            digest.update(f"weights {size} {len(header)}\n".encode() + header)
            with path.open("rb") as file:
                for place in range(SAMPLES):
                    file.seek(start + max(0, size - start - SAMPLE) * place // (SAMPLES - 1))
                    digest.update(file.read(SAMPLE))
        return digest.hexdigest()

    def implied_specs(self) -> list[TensorSpec]:
        """Every tensor of the GGUF in file order, as config.json implies it; the folder may lack some."""
        return self.arch.specs(self.config)

    def specs(self) -> list[TensorSpec]:
        """Every tensor of the GGUF in file order, each found in the folder with the shape that config.json
        implies.

        InputError names a tensor that is missing, has another shape, is stored in a type that holds no plain
        floats, or is in the folder without a place in the architecture.
        """
        self.arch.fits(self.config)
        specs = self.implied_specs()
        for spec in specs:
            tensor = self.tensors.get(spec.source)
            if tensor is None and spec.source in self.other:
                raise InputError(
                    f"{self.path}: tensor {spec.source!r} is stored as {self.other[spec.source]:.20};"
                    " only F32, F16 and BF16 checkpoints can be fitted, give the original one"
                )
            if tensor is None:
                raise InputError(
                    f"{self.path}: tensor {spec.source!r} is missing; the folder is not complete"
                )
            if tensor.shape != spec.shape:
                raise InputError(
                    f"{self.path}: tensor {spec.source!r} has shape {list(tensor.shape)},"
                    f" config.json implies {list(spec.shape)}"
                )
        known = {spec.source for spec in specs} | {HEAD}
        if strange := [
            n for n in (*self.tensors, *self.other) if n not in known and not n.endswith(CONSTANTS)
        ]:
            raise InputError(
                f"{self.path}: tensor {strange[0]!r:.100} ({len(strange)} such) has no place in architecture"
                f" {self.arch.model_type!r} with this config.json; leaving it out would be another model"
            )
        return specs

    def notes(self) -> list[str]:
        """What a person should know: where the runtime tokenizes differently, and a window that limits the
        context.
        """
        from tenth.models.formats.tokenizer import tokenizer_metadata

        limit, reason = self.arch.context_limit(self.config)
        windowed = [f"contexts are held to {limit} tokens: {reason}"] if "window" in reason else []
        return windowed + tokenizer_metadata(self.path, self.config).notes

    def check_finite(self, progress: Callable[[float], None] | None = None) -> None:
        """Read every weight once; InputError names the first tensor and row with a NaN or infinity.

        progress is called with the number of weights read so far.
        """
        read = 0
        for spec in self.specs():
            tensor = self.tensors[spec.source]
            step = max(1, CHUNK // max(1, spec.count // spec.shape[0]))
            for start in range(0, spec.shape[0], step):
                rows = tensor.load(start, min(start + step, spec.shape[0]))
                bad = ~np.isfinite(rows)
                if bad.any():
                    row = start + int(np.argwhere(bad)[0][0])
                    raise InputError(
                        f"{tensor.path}: tensor {spec.source!r} holds a NaN or infinity in row {row}"
                    )
                read += rows.size
                if progress is not None:
                    progress(read)


def open_config(path: Path) -> tuple[JsonObject, Architecture]:
    """(completed config, architecture) from config.json alone; path is it or its folder."""
    if not path.exists():
        raise InputError(f"{path} does not exist; give a Hugging Face model folder")
    return architectures.load(read_json(path / "config.json" if path.is_dir() else path, CONFIG_LIMIT))


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a model folder: config and headers only, never the weights.

    Raises InputError for a folder, config.json, index or safetensors file that is missing, malformed or
    contradictory, for weights that are only there as pickle, and for an architecture that is not known.
    """
    if path.is_file():
        raise InputError(f"{path} is a file; give the model's folder")
    config, architecture = open_config(path)
    weights = open_weights(path)
    names = _names(architecture, config, path, [*weights.tensors, *weights.other, *weights.absent])
    tensors: dict[str, LazyTensor] = {}
    for name, tensor in weights.tensors.items():
        plain = names[name]
        if plain in tensors:
            agree(tensor, tensors[plain], "transformers takes one of them by its place")
        elif plain is not None:
            tensors[plain] = tensor
    config = _with_head(path, config, architecture, tensors)
    tied = architecture.shape(config).tied
    for name, place in weights.absent.items():
        plain = names[name]
        if plain is not None and not plain.endswith(CONSTANTS) and not (tied and plain in (HEAD, EMBEDDED)):
            raise InputError(
                f"{path}: the index places tensor {name!r:.100} in {place}, which does not hold it"
            )
    return Checkpoint(
        path=path,
        name=model_name(path),
        config=config,
        arch=architecture,
        tensors=tensors,
        other={plain: kind for name, kind in weights.other.items() if (plain := names[name]) is not None},
        headers=weights.headers,
    )


def _names(
    architecture: Architecture, config: JsonObject, path: Path, found: list[str]
) -> dict[str, str | None]:
    """What the tensors are called in the text model alone, by their names in the files; None for those that
    it does without.

    As transformers' from_pretrained finds them: a `model.` too many or too few does not matter, and a model
    with eyes has its language model below one of the architecture's prefixes.
    """
    known = {spec.source for spec in architecture.specs(config)} | {HEAD}
    names: dict[str, str | None] = {}
    for name in found:
        inner = architecture.inner_name(name)
        if inner is None:
            names[name] = None
        elif inner == OUTSIDE:
            raise InputError(
                f"{path}: tensor {name!r:.100} is not part of the language model, whose names begin with"
                f" {' or '.join(architecture.prefixes)}: transformers would not read it; rename the tensors"
            )
        elif inner.removeprefix("model.") in known:
            names[name] = inner.removeprefix("model.")
        else:
            names[name] = f"model.{inner}" if f"model.{inner}" in known else inner
    return names


def _with_head(
    path: Path, config: JsonObject, architecture: Architecture, tensors: dict[str, LazyTensor]
) -> JsonObject:
    """The config with the output head as transformers reads it: where the head is tied to the embedding by
    config.json, but the file has another, both count; where it has the head alone, that is the embedding.
    """
    head, embedded = tensors.get(HEAD), tensors.get(EMBEDDED)
    if head is None or not architecture.shape(config).tied:
        return config
    if embedded is None:
        tensors[EMBEDDED] = replace(head, name=EMBEDDED)
        return config
    if same_values(head, embedded):
        return config
    untied = {**config, "tie_word_embeddings": False}
    try:
        architecture.check(untied)
    except InputError:
        raise InputError(
            f"{path}: tie_word_embeddings is true, but {HEAD} differs from {EMBEDDED}; transformers computes"
            f" with both, and llama.cpp's {architecture.gguf_arch} graph has no head of its own"
        ) from None
    return untied
