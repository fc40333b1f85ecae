"""The one layer loop: transformers' own modules, one block in memory at a time.

The model is built on torch's meta device, so it holds no weight. A block is filled from the checkpoint as
float32 when its turn comes and emptied after it. What a block is called with (masks, rotary tables, per-layer
kinds of attention) is not rebuilt here: the model's own forward pass runs once with every block replaced by a
recorder, and the recorded arguments are used again. They depend on the length of the window only, never on
its content, so one recording serves every window.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tenth.core import digests
from tenth.core.errors import InputError
from tenth.core.store import atomic
from tenth.models.checkpoint import HEAD, Checkpoint
from tenth.models.formats.folder import text_config

TOGETHER = 8  # windows that keep a GPU busy
Call = tuple[tuple[Any, ...], dict[str, Any]]  # what a block gets beside the hidden states


class _Recorder(nn.Module):
    """Stands where a block stood: notes the call, hands the hidden states on (or those it was given)."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self._block = [block]  # in a list, so that it is no submodule
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        self.seen: torch.Tensor | None = None
        self.instead: torch.Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._block[0], name)  # forward passes ask blocks for their kind of attention

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.seen, self.args, self.kwargs = hidden, args, kwargs
        return hidden if self.instead is None else self.instead


class LayerwiseModel:
    """A checkpoint as a sequence: embedding, blocks, head. Hidden states are float32 [batch, tokens, hidden].

    Peak memory is the largest of: one block, the embedding, the final norm and head; each as float32.
    device: where torch computes, "cpu" or "cuda"; InputError where there is none.
    """

    def __init__(self, checkpoint: Checkpoint, threads: int = 0, device: str = "cpu") -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise InputError("torch finds no CUDA device here; leave out --device-compute cuda")
        self.checkpoint, self.device = checkpoint, torch.device(device)
        if threads:
            torch.set_num_threads(threads)
        self.model = _skeleton(checkpoint, self.device)
        parent, name = self._parent(checkpoint.arch.block_path())
        self.blocks: list[nn.Module] = list(getattr(parent, name))
        self._recorders = [_Recorder(block) for block in self.blocks]
        setattr(parent, name, nn.ModuleList(self._recorders))
        self._prefix = checkpoint.arch.block_path()
        self._calls: dict[int, list[Call]] = {}
        self.width: int = self.model.config.hidden_size
        self.together = TOGETHER if device == "cuda" else 1  # windows worth running at once

    @contextmanager
    def embed(self) -> Iterator[Callable[[np.ndarray], torch.Tensor]]:
        """A function from a window of ids [length] to hidden states [1, length, hidden], as scaled."""
        with self._filled(self.embedding, self._name_of(self.embedding)):
            yield lambda tokens: self.embedded(tokens[None])

    def embedded(self, tokens: np.ndarray) -> torch.Tensor:
        """Ids [batch, length] to hidden states [batch, length, hidden], as scaled; inside `embed`."""
        self._enter(input_ids=self.ids(tokens))
        seen = self._recorders[0].seen
        assert seen is not None
        return seen

    def ids(self, tokens: np.ndarray) -> torch.Tensor:
        """Token ids as torch wants them."""
        return moved(tokens.astype(np.int64), self.device)

    @contextmanager
    def block(self, index: int) -> Iterator[nn.Module]:
        """Block `index` with its weights, for the length of the with statement."""
        with self._filled(self.blocks[index], f"{self._prefix}.{index}"):
            yield self.blocks[index]

    def run(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        """Block `index` (filled) on hidden states; keeps the graph where torch is told to."""
        args, kwargs = self._call(index, hidden.shape[1])
        out = self.blocks[index](hidden, *args, **kwargs)
        result: torch.Tensor = out[0] if isinstance(out, tuple) else out
        return result

    def states(self, folder: Path, windows: np.ndarray) -> Hidden:
        """Where hidden states of the windows [count, T] at the boundaries of blocks are kept."""
        count, length = windows.shape
        return Hidden(folder, count, length, self.width, self.device, self.together)

    def embed_windows(self, windows: np.ndarray, state: Hidden) -> None:
        """Write what enters the first block, boundary 0."""
        with self.embed() as embed:
            state.write(0, (embed(window) for window in windows))

    def advance(self, index: int, state: Hidden) -> None:
        """Run block `index` (filled) on the hidden states that enter it and write those that leave it."""
        state.write(index + 1, (self.run(index, hidden) for hidden in state.read(index)))

    @contextmanager
    def head(self) -> Iterator[nn.Linear]:
        """Final norm and output head with their weights; yields the head's linear module."""
        head = self.model.get_output_embeddings()
        blocks = {f"{self._prefix}.{i}." for i in range(len(self.blocks))}
        kept = [
            (name, module)
            for name, module in self.model.named_modules()
            if name
            and module is not self.embedding
            and not any(name.startswith(b) for b in blocks)
            and any(True for _ in module.parameters(recurse=False))
        ]
        try:
            for name, module in kept:
                self._fill(module, name)
            yield head
        finally:
            for _, module in kept:
                _empty(module)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The model's end (norm, head, soft-capping) on the last block's hidden states; inside `head`."""
        self._recorders[-1].instead = hidden
        try:
            out: torch.Tensor = self.model(inputs_embeds=torch.zeros_like(hidden), use_cache=False).logits
            return out
        finally:
            self._recorders[-1].instead = None

    @property
    def embedding(self) -> nn.Embedding:
        """The input embedding's module."""
        module: nn.Embedding = self.model.get_input_embeddings()
        return module

    def linears(self, index: int) -> dict[nn.Linear, str]:
        """The linear modules of a block and the checkpoint's names of their weights."""
        named = self.blocks[index].named_modules()
        return {m: f"{self._prefix}.{index}.{n}.weight" for n, m in named if isinstance(m, nn.Linear)}

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Every module by the checkpoint's name of it."""
        yield from self.model.named_modules()
        for index, block in enumerate(self.blocks):
            for name, module in block.named_modules():
                yield f"{self._prefix}.{index}.{name}", module

    def source_of(self, module: nn.Module, index: int | None = None) -> str:
        """The checkpoint's name of a linear module's weight; index: the block it is in."""
        if index is None:
            return f"{self._name_of(module)}.weight"
        name = next(n for n, m in self.blocks[index].named_modules() if m is module)
        return f"{self._prefix}.{index}.{name}.weight"

    def _enter(self, **inputs: torch.Tensor) -> None:
        """The model's forward up to its blocks; the recorders keep what arrives there."""
        base = self.model.get_decoder()
        norms = {n: m for n, m in base.named_children() if "norm" in n}  # empty now, and after the blocks
        for name in norms:
            setattr(base, name, nn.Identity())
        try:
            base(**inputs, use_cache=False)
        finally:
            for name, norm in norms.items():
                setattr(base, name, norm)

    def _call(self, index: int, length: int) -> Call:
        if length not in self._calls:
            with torch.no_grad():
                self._enter(inputs_embeds=torch.zeros(1, length, self.width, device=self.device))
            self._calls[length] = [(r.args, r.kwargs) for r in self._recorders]
        return self._calls[length][index]

    def _parent(self, path: str) -> tuple[nn.Module, str]:
        parent, _, name = path.rpartition(".")
        return self.model.get_submodule(parent), name

    def _name_of(self, module: nn.Module) -> str:
        names: Iterator[str] = (n for n, m in self.model.named_modules() if m is module)
        return next(names)

    @contextmanager
    def _filled(self, module: nn.Module, prefix: str) -> Iterator[None]:
        self._fill(module, prefix)
        try:
            yield
        finally:
            _empty(module)

    def _fill(self, module: nn.Module, prefix: str) -> None:
        state = {}
        for name, _ in module.named_parameters():
            source = f"{prefix}.{name}"
            if source == HEAD and self.checkpoint.shape.tied:
                source = self.source_of(self.embedding)
            if source not in self.checkpoint.tensors:
                raise InputError(
                    f"{self.checkpoint.path}: tensor {source!r}, which transformers expects, is missing"
                )
            state[name] = torch.from_numpy(self.checkpoint.tensors[source].load()).to(self.device)
        module.load_state_dict(state, assign=True, strict=False)
        module.requires_grad_(False)


class Hidden:
    """Hidden states [windows, length, width] float32 in files, by key; `together` windows in memory at a time
    (one, unless a GPU wants more to do).
    """

    def __init__(
        self,
        folder: Path,
        windows: int,
        length: int,
        width: int,
        device: torch.device | str = "cpu",
        together: int = 1,
    ) -> None:
        self.folder, self.windows, self.length, self.width = folder, windows, length, width
        self.device, self.together = device, together

    def has(self, key: int | str) -> bool:
        """Whether that key was written whole."""
        return self._path(key).exists()

    def write(self, key: int | str, hidden: Iterable[torch.Tensor]) -> None:
        """Write every window; atomic."""
        with atomic(self._path(key)) as partial, partial.open("wb") as file:
            for window in hidden:
                window.detach().cpu().numpy().tofile(file)

    def read(self, key: int | str) -> Iterator[torch.Tensor]:
        """The windows in order, [up to `together`, length, width] at a time."""
        size = self.length * self.width
        with self._path(key).open("rb") as file:
            for start in range(0, self.windows, self.together):
                count = min(self.together, self.windows - start)
                part = torch.from_numpy(np.fromfile(file, np.float32, count * size))
                yield part.reshape(count, self.length, self.width).to(self.device)

    def drop(self, key: int | str) -> None:
        """Remove one key's file."""
        digests.forget(self._path(key))

    def clear(self) -> None:
        """Remove every file."""
        for path in self.folder.glob("hidden-*.f32"):
            digests.forget(path)

    def _path(self, key: int | str) -> Path:
        return self.folder / f"hidden-{key}.f32"


def _skeleton(checkpoint: Checkpoint, device: torch.device) -> Any:
    """The model on the meta device, its buffers (rotary frequencies, embedding scales) with real values."""
    os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    import transformers

    auto: Any = transformers.AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = text_config(checkpoint)
        try:
            config = transformers.CONFIG_MAPPING[settings["model_type"]].from_dict(settings)
        except Exception as error:  # of many kinds, for keys that concern transformers alone
            reason = str(error).replace("\n", " ")
            raise InputError(f"{checkpoint.path}: transformers refuses config.json: {reason:.300}") from error
        # The other kernels leave soft-capping out.
        capped = getattr(config, "attn_logit_softcapping", None)
        with torch.device("meta"):
            model = auto.from_config(
                config,
                dtype=torch.float32,
                attn_implementation="eager" if capped else "sdpa",
                trust_remote_code=False,
            )
    _narrowed(model, checkpoint)
    for module in model.modules():
        held = [name for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        for name in held:
            setattr(module, name, torch.empty_like(getattr(module, name), device=device))
        if held:
            model._init_weights(module)  # transformers' own way to restore what is computed, not stored
    return model.eval()


def moved(values: np.ndarray, device: torch.device | str) -> torch.Tensor:
    """The values on a device; a GPU is not waited for."""
    tensor = torch.from_numpy(values)
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class _NoAttention(nn.Module):
    """Stands where a block without KV heads has its attention: adds nothing."""

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        return torch.zeros_like(hidden_states), None


def _narrowed(model: Any, checkpoint: Checkpoint) -> None:
    """Give blocks that are narrower than config.json's widest their own linear modules."""
    shapes = {spec.source: spec.shape for spec in checkpoint.implied_specs()}
    for name, module in list(model.named_modules()):
        shape = shapes.get(f"{name}.weight")
        if isinstance(module, nn.Linear) and shape and shape != tuple(module.weight.shape):
            own = nn.Linear(shape[1], shape[0], bias=module.bias is not None, device="meta")
            model.set_submodule(name, own)
    norm, output = (checkpoint.block()[f"{role}.weight"].source for role in ("attn_norm", "attn_output"))
    for layer, kept in enumerate(checkpoint.shape.kv_heads):
        if not kept:
            model.set_submodule(norm.removesuffix(".weight").format(i=layer), nn.Identity())
            model.set_submodule(output.rsplit(".", 2)[0].format(i=layer), _NoAttention())


def _empty(module: nn.Module) -> None:
    """Drop the parameters' memory; buffers stay."""
    for part in module.modules():
        for name, value in part.named_parameters(recurse=False):
            part.register_parameter(
                name, nn.Parameter(torch.empty_like(value, device="meta"), requires_grad=False)
            )
