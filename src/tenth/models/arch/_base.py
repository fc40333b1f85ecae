"""What an architecture is: a table role -> (tensor, row axis, column axis), and the GGUF keys that go with
it.

The table is all that names tensors. Axes are names ("hidden", "ffn", "heads", "kv_heads", "vocab",
"head_dim"); a fused tensor's axis is a sum in storage order ("heads+kv_heads+kv_heads"). What prunes or
widens a model goes by axis names only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from tenth.core.errors import InputError
from tenth.core.records import TensorSpec
from tenth.models.arch import _blocks, _rope
from tenth.models.arch._config import Config, flag, integer, number, only

Axis = str


class Entry(NamedTuple):
    """One line of the table. columns is None for a vector."""

    source: str  # Hugging Face name; {i} is the layer
    rows: Axis
    columns: Axis | None = None


EMBEDDING = Entry("model.embed_tokens.weight", "vocab", "hidden")
HEAD = Entry("lm_head.weight", "vocab", "hidden")
NORM = Entry("model.norm.weight", "hidden")

LLAMA_BLOCK: dict[str, Entry] = {
    "attn_norm.weight": Entry("model.layers.{i}.input_layernorm.weight", "hidden"),
    "attn_q.weight": Entry("model.layers.{i}.self_attn.q_proj.weight", "heads", "hidden"),
    "attn_k.weight": Entry("model.layers.{i}.self_attn.k_proj.weight", "kv_heads", "hidden"),
    "attn_v.weight": Entry("model.layers.{i}.self_attn.v_proj.weight", "kv_heads", "hidden"),
    "attn_output.weight": Entry("model.layers.{i}.self_attn.o_proj.weight", "hidden", "heads"),
    "ffn_norm.weight": Entry("model.layers.{i}.post_attention_layernorm.weight", "hidden"),
    "ffn_gate.weight": Entry("model.layers.{i}.mlp.gate_proj.weight", "ffn", "hidden"),
    "ffn_up.weight": Entry("model.layers.{i}.mlp.up_proj.weight", "ffn", "hidden"),
    "ffn_down.weight": Entry("model.layers.{i}.mlp.down_proj.weight", "hidden", "ffn"),
}
QKV_BIAS: dict[str, Entry] = {
    "attn_q.bias": Entry("model.layers.{i}.self_attn.q_proj.bias", "heads"),
    "attn_k.bias": Entry("model.layers.{i}.self_attn.k_proj.bias", "kv_heads"),
    "attn_v.bias": Entry("model.layers.{i}.self_attn.v_proj.bias", "kv_heads"),
}
QK_NORM: dict[str, Entry] = {
    "attn_q_norm.weight": Entry("model.layers.{i}.self_attn.q_norm.weight", "head_dim"),
    "attn_k_norm.weight": Entry("model.layers.{i}.self_attn.k_norm.weight", "head_dim"),
}


@dataclass(frozen=True)
class Architecture:
    """A family of models. A subclass overrides what its family does otherwise; methods take the merged
    config.
    """

    model_type: str
    gguf_arch: str
    table: Mapping[str, Entry] = field(default_factory=lambda: dict(LLAMA_BLOCK))  # of one block
    final: Mapping[str, Entry] = field(default_factory=lambda: {"output_norm.weight": NORM})
    sequential: bool = True  # o_proj's and down_proj's outputs enter the residual stream as they are, in turn
    interleaved: bool = (
        False  # llama.cpp rotates neighbouring pairs in this family: rows of q and k are reordered
    )
    rope_kinds: tuple[str, ...] = ("default", "dynamic", "linear", "yarn")
    activations: tuple[str, ...] = ("silu",)
    activation_key: str = "hidden_act"
    defaults: Mapping[str, Any] = field(
        default_factory=dict
    )  # of keys that published configs of the family leave out
    prefixes: tuple[str, ...] = ()  # of tensor names in multimodal checkpoints; removed
    ignored: tuple[str, ...] = ()  # beginnings of tensor names that the text model does without

    def of(self, config: Config) -> Architecture:
        """The architecture with the graph that this config needs: another one where blocks differ in width.

        Without a refusal: `fits` has it.
        """
        if config.get(_blocks.KEY) is not None and self.gguf_arch == _blocks.SAME:
            return dataclasses.replace(self, gguf_arch=_blocks.GRAPH)
        return self

    # -- sizes -----------------------------------------------------------------------------------------------

    def complete(self, config: Config) -> Config:
        """The config with the family's defaults where keys are missing."""
        return {**self.defaults, **{key: value for key, value in config.items() if value is not None}}

    def heads(self, config: Config, layer: int | None = None) -> tuple[int, int]:
        """(query heads, key-value heads) of one block, or of the widest."""
        config = self.complete(config)
        heads = integer(config, "num_attention_heads", high=4096)
        shared = integer(config, "num_key_value_heads", heads, high=4096)
        if heads % shared:
            raise InputError(
                f"config.json: {heads} attention heads are not a multiple of {shared} key-value heads"
            )
        if layer is None or _blocks.KEY not in config:
            return heads, shared
        own = self.sizes(config)["num_key_value_heads"][layer]
        return heads // shared * own, own

    def sizes(self, config: Config) -> dict[str, list[int]]:
        """Each block's "intermediate_size" and "num_key_value_heads"."""
        config = self.complete(config)
        widest = {
            "intermediate_size": integer(config, "intermediate_size"),
            "num_key_value_heads": self.heads(config)[1],
        }
        return _blocks.sizes(config, self.layers(config), widest)

    def head_dim(self, config: Config) -> int:
        """Length of one head."""
        config = self.complete(config)
        hidden, heads = integer(config, "hidden_size"), self.heads(config)[0]
        if config.get("head_dim") is None and hidden % heads:
            raise InputError(
                f"config.json: hidden_size {hidden} is not a multiple of {heads} heads,"
                " and head_dim is missing"
            )
        size = integer(config, "head_dim", hidden // heads, high=1 << 14)
        if size % 2:
            raise InputError(f"config.json: head_dim {size} must be even for rotary positions")
        return size

    def layers(self, config: Config) -> int:
        """Number of blocks; llama.cpp holds at most 512."""
        return integer(self.complete(config), "num_hidden_layers", high=512)

    def axes(self, config: Config, layer: int | None = None) -> dict[Axis, int]:
        """Size of every named axis of one block, or of the widest; "heads" and "kv_heads" count rows, not
        heads.
        """
        config = self.complete(config)
        heads, shared = self.heads(config, layer)
        size, ffn = self.head_dim(config), integer(config, "intermediate_size")
        if layer is not None and _blocks.KEY in config:
            ffn = self.sizes(config)["intermediate_size"][layer]
        return {
            "vocab": integer(config, "vocab_size"),
            "hidden": integer(config, "hidden_size"),
            "ffn": ffn,
            "heads": heads * size,
            "kv_heads": shared * size,
            "head_dim": size,
        }

    def tied(self, config: Config) -> bool:
        """Whether the head is the embedding."""
        return flag(self.complete(config), "tie_word_embeddings")

    def rotary(self, config: Config) -> int:
        """Rotated values of a head."""
        rope = self.rope(config)
        share = number({**self.complete(config), **rope}, "partial_rotary_factor", 1.0, low=1e-3, high=1.0)
        rotated = int(self.head_dim(config) * share)
        if rotated < 2 or rotated % 2:
            raise InputError(
                f"config.json: partial_rotary_factor = {share} rotates {rotated} values"
                " of a head; it must be even"
            )
        return rotated

    def rope(self, config: Config) -> dict[str, Any]:
        """Rotary parameters of (full-attention) layers."""
        return _rope.parameters(self.complete(config))

    def context_limit(self, config: Config) -> tuple[int, str]:
        """(the longest context at which the GGUF computes what the model does, the reason)."""
        config = self.complete(config)
        most = integer(config, "max_position_embeddings", 2048, high=1 << 30)
        window = self.window(config)
        if window is not None and window < most:
            return (
                window,
                f"llama.cpp has no sliding window for {self.gguf_arch}; this model's is {window} tokens",
            )
        return most, "max_position_embeddings"

    def window(self, config: Config) -> int | None:
        """A sliding window that the runtime's graph does not have; contexts are held within it."""
        if config.get("sliding_window") is None:
            return None
        return integer(config, "sliding_window", high=1 << 30)

    # -- what is written -------------------------------------------------------------------------------------

    def block(self, config: Config) -> dict[str, Entry]:  # noqa: ARG002
        """The table of one block under this config."""
        return dict(self.table)

    def entries(self, config: Config) -> list[tuple[str, Entry, int | None]]:
        """(role, line of the table with the layer filled in, layer) of every tensor, in file order."""
        config = self.complete(config)
        block, attention = self.block(config), self.sizes(config)["num_key_value_heads"]
        lines: list[tuple[str, Entry, int | None]] = [("token_embd.weight", EMBEDDING, None)]
        for i in range(self.layers(config)):
            lines += [
                (role, entry._replace(source=entry.source.format(i=i)), i)
                for role, entry in block.items()
                if attention[i] or not role.startswith("attn_")
            ]
        lines += [(role, entry, None) for role, entry in self.final.items()]
        return lines if self.tied(config) else [*lines, ("output.weight", HEAD, None)]

    def residual_outputs(self, config: Config, index: int) -> tuple[str, str]:
        """Hugging Face names of the two matrices of a block that write into the residual stream."""
        block = self.block(config)
        out, down = (block[role].source.format(i=index) for role in ("attn_output.weight", "ffn_down.weight"))
        return out, down

    def specs(self, config: Config) -> list[TensorSpec]:
        """Every tensor of the GGUF, in file order."""
        config = self.complete(config)
        axes, heads = self.axes(config), self.heads(config)
        own: dict[int | None, tuple[dict[Axis, int], tuple[int, int]]] = {}
        if _blocks.KEY in config:
            own = {i: (self.axes(config, i), self.heads(config, i)) for i in range(self.layers(config))}
        return [
            self._spec(role, entry, layer, *own.get(layer, (axes, heads)))
            for role, entry, layer in self.entries(config)
        ]

    def _spec(
        self, role: str, entry: Entry, layer: int | None, axes: dict[Axis, int], heads: tuple[int, int]
    ) -> TensorSpec:
        shape = tuple(sum(axes[a] for a in axis.split("+")) for axis in (entry.rows, entry.columns) if axis)
        stem, _, kind = role.rpartition(".")
        turned = {"attn_q": heads[0], "attn_k": heads[1]} if self.interleaved else {}
        return TensorSpec(
            name=role if layer is None else f"blk.{layer}.{role}",
            source=entry.source,
            shape=shape,
            role=stem if kind == "weight" else f"{stem}_{kind}",
            layer=layer,
            linear=len(shape) == 2,
            heads=turned.get(stem, 0),
            add=self.offset(role),
        )

    def offset(self, role: str) -> float:  # noqa: ARG002
        """What is added to every value of the tensor with this role."""
        return 0.0

    def metadata(self, config: Config) -> dict[str, Any]:
        """GGUF keys of the model (not of its tokenizer): int, float, str, bool or a list of one of them."""
        config = self.complete(config)
        axes, a = self.axes(config), self.gguf_arch
        heads, shared = self.heads(config)
        ffn: int | list[int] = axes["ffn"]
        queries: int | list[int] = heads
        keys: int | list[int] = shared
        if _blocks.KEY in config:
            own = self.sizes(config)
            ffn, keys = own["intermediate_size"], own["num_key_value_heads"]
            queries = [heads // shared * count for count in keys]
        return {
            f"{a}.block_count": self.layers(config),
            f"{a}.context_length": self.context_limit(config)[0],
            f"{a}.embedding_length": axes["hidden"],
            f"{a}.feed_forward_length": ffn,
            f"{a}.attention.head_count": queries,
            f"{a}.attention.head_count_kv": keys,
            f"{a}.attention.key_length": axes["head_dim"],
            f"{a}.attention.value_length": axes["head_dim"],
            f"{a}.vocab_size": axes["vocab"],
            **self.epsilon(config),
            **_rope.metadata(a, config, self.rope(config), self.rotary(config)),
            **self.extra_metadata(config),
        }

    def epsilon(self, config: Config) -> dict[str, Any]:
        """The norm's epsilon."""
        return {
            f"{self.gguf_arch}.attention.layer_norm_rms_epsilon": number(
                config, "rms_norm_eps", 1e-6, high=1.0
            )
        }

    def extra_metadata(self, config: Config) -> dict[str, Any]:  # noqa: ARG002
        """Keys that only this family has."""
        return {}

    def extra_tensors(self, config: Config) -> dict[str, np.ndarray]:
        """Small float32 tensors computed from the config (rotary factors)."""
        config = self.complete(config)
        return _rope.tensors(config, self.rope(config), self.rotary(config))

    def normalised_config(self, config: Config) -> Config:
        """The config with what a block is by its number written out as a list, where it can be."""
        return config

    def standalone_config(self, config: Config) -> dict[str, Any]:  # noqa: ARG002
        """Keys of config.json that are other ones where the text model stands in a folder of its own."""
        return {}

    def block_path(self) -> str:
        """Module path of the block list in transformers' model."""
        return "model.layers"

    # -- what is refused -------------------------------------------------------------------------------------

    def check(self, config: Config) -> None:
        """InputError for a setting that a GGUF of this family cannot carry."""
        config = self.complete(config)
        if config.get("quantization_config") is not None:
            raise InputError(
                "config.json has quantization_config: this checkpoint is already"
                " quantised; give the original one"
            )
        for key in ("num_local_experts", "num_experts", "n_routed_experts"):
            if config.get(key):
                raise InputError(
                    f"config.json: {key} = {config[key]!r:.60}: mixtures of experts are not supported"
                )
        only(
            config,
            self.activation_key,
            self.activations,
            self.activations[0],
            "llama.cpp's graph has another",
        )
        kind = self.rope(config)["rope_type"]
        if kind not in self.rope_kinds:
            raise InputError(
                f"config.json: rope type {kind!r} has no place in a {self.gguf_arch}"
                f" GGUF; supported: {', '.join(self.rope_kinds)}"
            )
        self.validate(config)
        self.fits(config)
        self.specs(config)
        self.metadata(config)
        self.extra_tensors(config)

    def fits(self, config: Config) -> None:
        """InputError where blocks differ in width and the runtime has no graph for that."""
        config = self.complete(config)
        if _blocks.KEY not in config:
            return
        if self.gguf_arch != _blocks.GRAPH:
            raise InputError(
                "blocks of different widths run in llama.cpp's deci graph alone, which is Llama's;"
                f" a {self.model_type} model needs the same in every block"
            )
        if any(role.endswith(".bias") for role in self.block(config)):
            raise InputError("blocks of different widths run in llama.cpp's deci graph, which has no biases")
        if not self.sizes(config)["num_key_value_heads"][0]:
            raise InputError("block 0 must keep attention: llama.cpp takes the length of a head from it")

    def validate(self, config: Config) -> None:
        """The family's own refusals."""

    def no_biases(self, config: Config, *keys: str) -> None:
        """Refuse configs whose flags add biases for which the family's graph has no slot."""
        for key in keys:
            only(config, key, [False], False, f"llama.cpp's {self.gguf_arch} graph has no such tensors")

    def whole_heads(self, config: Config) -> None:
        """Refuse head_dim != hidden_size / heads, where the family's graph takes it for granted."""
        axes = self.axes(config)
        if axes["heads"] != axes["hidden"]:
            raise InputError(
                f"config.json: heads x head_dim = {axes['heads']} differs from"
                f" hidden_size = {axes['hidden']},"
                f" which llama.cpp's {self.gguf_arch} graph does not allow"
            )
