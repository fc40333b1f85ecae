"""What an architecture is: a table role -> (tensor, row axis, column axis), and the GGUF keys that go with
it.

The table is all that names tensors. Axes are names ("hidden", "ffn", "heads", "kv_heads", "vocab",
"head_dim"); a fused tensor's axis is a sum in storage order ("heads+kv_heads+kv_heads"). What prunes or
widens a model goes by axis names only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tenth.core.errors import InputError
from tenth.core.records import TensorSpec
from tenth.models.arch import _blocks, _rope
from tenth.models.arch._config import Config, flag, integer, number, only
from tenth.models.formats.vocabulary import Keys
from tenth.models.shape import ModelShape

Axis = str
OUTSIDE = ""  # instead of the name of a tensor that lies beside the language model


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


def layer_types(sliding: Iterable[bool]) -> list[str]:
    """transformers' names of layers that look through a window, or at everything."""
    return ["sliding_attention" if each else "full_attention" for each in sliding]


@dataclass(frozen=True)
class Architecture:
    """A family of models. A subclass overrides what its family does otherwise.

    `complete` fills in what a config.json leaves out; all other methods take the completed config.
    """

    model_type: str
    gguf_arch: str
    defaults: Mapping[str, object]  # of config.json's keys, as in transformers' config class of the family
    nullable: frozenset[str] = frozenset()  # keys whose default is a value, and where null means another
    rope_theta: float = 10000.0  # the rotary base where none is given
    table: Mapping[str, Entry] = field(default_factory=lambda: dict(LLAMA_BLOCK))  # of one block
    final: Mapping[str, Entry] = field(default_factory=lambda: {"output_norm.weight": NORM})
    sequential: bool = True  # o_proj's and down_proj's outputs enter the residual stream as they are, in turn
    interleaved: bool = (
        False  # llama.cpp rotates neighbouring pairs in this family: rows of q and k are reordered
    )
    windowed: bool = False  # llama.cpp's graph has the sliding windows of this family
    partial: bool = False  # a part of each head may be rotated
    rope_kinds: tuple[str, ...] = ("default", "dynamic", "linear", "yarn")
    activations: tuple[str, ...] = ("silu",)
    activation_key: str = "hidden_act"
    prefixes: tuple[str, ...] = ()  # of tensor names in multimodal checkpoints; removed
    ignored: tuple[str, ...] = ()  # beginnings of tensor names that the text model does without

    def of(self, config: Config) -> Architecture:
        """The architecture with the graph that this config needs: another one where blocks differ in width.

        Without a refusal: `fits` has it.
        """
        if _blocks.differ(config) and self.gguf_arch == _blocks.SAME:
            return dataclasses.replace(self, gguf_arch=_blocks.GRAPH)
        return self

    # -- what config.json says -------------------------------------------------------------------------------

    def complete(self, config: Config) -> Config:
        """The config with every key that is left out filled as transformers' config class fills it.

        Keys that depend on others are written out too, and ``rope_parameters`` has what older forms say.
        Tokens' ids are left alone: they are the tokenizer's. InputError for a null that the class refuses.
        """
        for key, usual in self.defaults.items():
            if usual is not None and key not in self.nullable and config.get(key, usual) is None:
                raise InputError(
                    f"config.json: {key} is null; give its value, or leave it out for the family's, {usual}"
                )
        config = {**self.defaults, **config}
        heads = integer(config, "num_attention_heads", high=4096)
        if config["num_key_value_heads"] is None:
            config["num_key_value_heads"] = heads
        if config["head_dim"] is None:
            hidden = integer(config, "hidden_size")
            if hidden % heads:
                raise InputError(
                    f"config.json: hidden_size {hidden} is not a multiple of {heads} heads,"
                    " and head_dim is missing"
                )
            config["head_dim"] = hidden // heads
        config["rope_parameters"] = self.rope_parameters(config)
        return config

    def rope_parameters(self, config: Config) -> Config:
        """The rotary parameters in transformers' present form."""
        return _rope.parameters(config, self.rope_theta)

    def shape(self, config: Config) -> ModelShape:
        """The model's sizes. InputError for what no model can have, or llama.cpp cannot hold."""
        heads = integer(config, "num_attention_heads", high=4096)
        shared = integer(config, "num_key_value_heads", high=4096)
        if heads % shared:
            raise InputError(
                f"config.json: {heads} attention heads are not a multiple of {shared} key-value heads"
            )
        head_dim = integer(config, "head_dim", high=1 << 14)
        if head_dim % 2:
            raise InputError(f"config.json: head_dim {head_dim} must be even for rotary positions")
        layers = integer(config, "num_hidden_layers", high=512)  # llama.cpp's most
        widest = {"intermediate_size": integer(config, "intermediate_size"), "num_key_value_heads": shared}
        own = _blocks.sizes(config, layers, widest)
        window = (self.window(config) if self.windowed else None) or 0
        return ModelShape(
            gguf_arch=self.gguf_arch,
            vocab=integer(config, "vocab_size"),
            hidden=integer(config, "hidden_size"),
            ffn=tuple(own["intermediate_size"]),
            heads=tuple(heads // shared * count for count in own["num_key_value_heads"]),
            kv_heads=tuple(own["num_key_value_heads"]),
            head_dims=(head_dim,) * layers,
            windows=tuple(window if sliding else 0 for sliding in self.sliding(config)),
            tied=flag(config, "tie_word_embeddings"),
        )

    def sliding(self, config: Config) -> list[bool]:
        """For each layer, whether it looks through the sliding window in transformers."""
        layers = integer(config, "num_hidden_layers", high=512)
        if "layer_types" not in self.defaults:
            return ["sliding_window" in self.defaults and config["sliding_window"] is not None] * layers
        kinds, known = config["layer_types"], layer_types([True, False])
        if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in known for kind in kinds):
            raise InputError(f"config.json: layer_types must be {layers} of {' or '.join(known)}")
        return [kind == known[0] for kind in kinds]

    def window(self, config: Config) -> int | None:
        """The tokens of the sliding window; None where no layer looks through it."""
        return integer(config, "sliding_window", high=1 << 30) if any(self.sliding(config)) else None

    def context_limit(self, config: Config) -> tuple[int, str]:
        """(the longest context at which the GGUF computes what the model does, the reason)."""
        most = integer(config, "max_position_embeddings", high=1 << 30)
        window = self.window(config)
        if window is not None and window < most and not self.windowed:
            return (
                window,
                f"llama.cpp has no sliding window for {self.gguf_arch}; this model's is {window} tokens",
            )
        return most, "max_position_embeddings"

    def rope(self, config: Config) -> Config:
        """The rotary parameters of the layers, of those with full attention where there are two kinds."""
        parameters: Config = config["rope_parameters"]
        return parameters

    def short_context(self, config: Config) -> int | None:
        """The context up to which llama.cpp rotates with LongRoPE's short factors, as transformers does with
        texts up to that length; None where the factors do not depend on a length.
        """
        rope = self.rope(config)
        key = "original_max_position_embeddings"
        return integer(rope, key) if rope["rope_type"] == "longrope" else None

    def rotary(self, config: Config) -> int:
        """How many values of a head are rotated."""
        share = number({"partial_rotary_factor": 1.0} | self.rope(config), "partial_rotary_factor", 1e-3, 1.0)
        rotated = int(integer(config, "head_dim", high=1 << 14) * share)
        if share != 1.0 and not self.partial:
            raise InputError(
                f"config.json: partial_rotary_factor = {share}, but llama.cpp rotates whole heads here"
            )
        if rotated < 2 or rotated % 2:
            raise InputError(
                f"config.json: partial_rotary_factor = {share} rotates {rotated} values"
                " of a head; it must be even"
            )
        return rotated

    # -- what is written -------------------------------------------------------------------------------------

    def block(self, config: Config) -> dict[str, Entry]:  # noqa: ARG002
        """The table of one block under this config."""
        return dict(self.table)

    def entries(self, config: Config) -> list[tuple[str, Entry, int | None]]:
        """(role, line of the table with the layer filled in, layer) of every tensor, in file order."""
        block, shape = self.block(config), self.shape(config)
        lines: list[tuple[str, Entry, int | None]] = [("token_embd.weight", EMBEDDING, None)]
        for i in range(shape.layers):
            lines += [
                (role, entry._replace(source=entry.source.format(i=i)), i)
                for role, entry in block.items()
                if shape.kv_heads[i] or not role.startswith("attn_")
            ]
        lines += [(role, entry, None) for role, entry in self.final.items()]
        return lines if shape.tied else [*lines, ("output.weight", HEAD, None)]

    def specs(self, config: Config) -> list[TensorSpec]:
        """Every tensor of the GGUF, in file order."""
        shape = self.shape(config)
        return [self._spec(role, entry, layer, shape) for role, entry, layer in self.entries(config)]

    def _spec(self, role: str, entry: Entry, layer: int | None, shape: ModelShape) -> TensorSpec:
        axes = shape.axes(layer)
        sides = tuple(sum(axes[a] for a in axis.split("+")) for axis in (entry.rows, entry.columns) if axis)
        stem, _, kind = role.rpartition(".")
        turned = 0
        if self.interleaved and layer is not None:
            turned = {"attn_q": shape.heads[layer], "attn_k": shape.kv_heads[layer]}.get(stem, 0)
        return TensorSpec(
            name=role if layer is None else f"blk.{layer}.{role}",
            source=entry.source,
            shape=sides,
            role=stem if kind == "weight" else f"{stem}_{kind}",
            layer=layer,
            linear=len(sides) == 2,
            heads=turned,
            add=self.offset(role),
        )

    def offset(self, role: str) -> float:  # noqa: ARG002
        """What is added to every value of the tensor with this role."""
        return 0.0

    def metadata(self, config: Config) -> Keys:
        """GGUF keys of the model (not of its tokenizer): int, float, str, bool or a list of one of them."""
        shape, a = self.shape(config), self.gguf_arch
        head_dim = max(shape.head_dims)

        def each(sizes: tuple[int, ...]) -> int | list[int]:
            return list(sizes) if _blocks.differ(config) else max(sizes)

        return {
            f"{a}.block_count": shape.layers,
            f"{a}.context_length": self.context_limit(config)[0],
            f"{a}.embedding_length": shape.hidden,
            f"{a}.feed_forward_length": each(shape.ffn),
            f"{a}.attention.head_count": each(shape.heads),
            f"{a}.attention.head_count_kv": each(shape.kv_heads),
            f"{a}.attention.key_length": head_dim,
            f"{a}.attention.value_length": head_dim,
            f"{a}.vocab_size": shape.vocab,
            **self.epsilon(config),
            **_rope.metadata(a, config, self.rope(config), self.rotary(config)),
            **self.extra_metadata(config),
        }

    def epsilon(self, config: Config) -> Keys:
        """The GGUF key of the norm's epsilon, and its value."""
        key = f"{self.gguf_arch}.attention.layer_norm_rms_epsilon"
        return {key: number(config, "rms_norm_eps", high=1.0)}

    def extra_metadata(self, config: Config) -> Keys:  # noqa: ARG002
        """Keys that only this family has."""
        return {}

    def extra_tensors(self, config: Config) -> dict[str, np.ndarray]:
        """Small float32 tensors computed from the config (rotary factors)."""
        return _rope.tensors(self.rope(config), self.rotary(config))

    def inner_name(self, name: str) -> str | None:
        """A tensor's name in the text model's own folder; None for what that does without, OUTSIDE for a name
        where transformers does not look.
        """
        if name.startswith(self.ignored):
            return None
        if not self.prefixes or name.startswith("lm_head."):
            return name
        for prefix in self.prefixes:
            if name.startswith(prefix):
                inner = name.removeprefix(prefix)
                return OUTSIDE if inner.startswith("lm_head.") and prefix.startswith("model.") else inner
        return OUTSIDE

    def standalone_config(self, config: Config) -> Config:  # noqa: ARG002
        """Keys of config.json that are other ones where the text model stands in a folder of its own."""
        return {}

    def block_path(self) -> str:
        """Module path of the block list in transformers' model."""
        return "model.layers"

    # -- what is refused -------------------------------------------------------------------------------------

    def check(self, config: Config) -> None:
        """InputError for a setting that a GGUF of this family cannot carry."""
        if config.get("quantization_config"):
            raise InputError(
                "config.json has quantization_config: this checkpoint is already"
                " quantised; give the original one"
            )
        if config.get("transformers_weights") is not None:
            raise InputError(
                "config.json: transformers_weights names another file of weights; call that file"
                " model.safetensors, and remove the key"
            )
        for key in ("num_local_experts", "num_experts", "n_routed_experts"):
            if config.get(key):
                raise InputError(
                    f"config.json: {key} = {config[key]!r:.60}: mixtures of experts are not supported"
                )
        only({"is_causal": True} | config, "is_causal", [True], "llama.cpp's graph is causal")
        only(config, self.activation_key, self.activations, "llama.cpp's graph has another")
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
        if not _blocks.differ(config):
            return
        if self.gguf_arch != _blocks.GRAPH:
            raise InputError(
                "blocks of different widths run in llama.cpp's deci graph alone, which is Llama's;"
                f" a {self.model_type} model needs the same in every block"
            )
        if any(role.endswith(".bias") for role in self.block(config)):
            raise InputError("blocks of different widths run in llama.cpp's deci graph, which has no biases")
        if not self.shape(config).kv_heads[0]:
            raise InputError("block 0 must keep attention: llama.cpp takes the length of a head from it")

    def validate(self, config: Config) -> None:
        """Raise InputError for what the family's graph in llama.cpp cannot express."""

    def no_biases(self, config: Config, *keys: str) -> None:
        """Refuse configs whose flags add biases for which the family's graph has no slot."""
        for key in keys:
            only(config, key, [False], f"llama.cpp's {self.gguf_arch} graph has no such tensors")

    def whole_heads(self, config: Config) -> None:
        """Refuse head_dim != hidden_size / heads, where the family's graph takes it for granted."""
        axes = self.shape(config).axes()
        if axes["heads"] != axes["hidden"]:
            raise InputError(
                f"config.json: heads x head_dim = {axes['heads']} differs from"
                f" hidden_size = {axes['hidden']},"
                f" which llama.cpp's {self.gguf_arch} graph does not allow"
            )
