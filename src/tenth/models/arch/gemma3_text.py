"""Gemma 3 (arXiv 2503.19786): norms on q and k, five windowed layers to one full, two rotary bases."""

from __future__ import annotations

from tenth.core.errors import InputError
from tenth.models.arch import _rope
from tenth.models.arch._base import QK_NORM
from tenth.models.arch._config import Config, integer, number, only
from tenth.models.arch.gemma2 import BLOCK, DEFAULTS, Gemma
from tenth.models.formats.vocabulary import Keys

LOCAL_THETA = 10000.0  # the rotary base of windowed layers where none is given


class Gemma3(Gemma):
    """Windowed layers rotate with a base of their own; only full layers are stretched."""

    hidden_scale_layers = 62

    def full_period(self, config: Config) -> int:
        """As the config has it, or the sixth."""
        return integer({"sliding_window_pattern": 6} | config, "sliding_window_pattern", high=512)

    def rope_parameters(self, config: Config) -> Config:
        """Of each kind of layer; older configs have scaling and bases of their own beside them."""
        given = config.get("rope_parameters")
        given, scaling = {} if given is None else given, config.get("rope_scaling")
        if not isinstance(given, dict) or not isinstance(scaling, dict | None):
            raise InputError("config.json: rope_parameters / rope_scaling must be an object")
        rope = dict(given)
        for kind, scaled, base, usual in (
            ("full_attention", scaling or {}, "rope_theta", self.rope_theta),
            ("sliding_attention", {}, "rope_local_base_freq", LOCAL_THETA),
        ):
            own = {"rope_type": "default"} if rope.get(kind) is None else rope[kind]
            if not isinstance(own, dict):
                raise InputError(f"config.json: rope_parameters.{kind} must be an object")
            rope[kind] = _rope.completed(config, {"rope_theta": config.get(base, usual), **own, **scaled})
        return rope

    def rope(self, config: Config) -> Config:
        """The rotary parameters of the full-attention layers."""
        parameters: Config = config["rope_parameters"]["full_attention"]
        return parameters

    def extra_metadata(self, config: Config) -> Keys:
        """The local base, and a cap where there is one."""
        local = config["rope_parameters"]["sliding_attention"]
        only(local, "rope_type", ["default"], "windowed layers cannot be scaled in a gemma3 GGUF")
        keys = {
            **super().extra_metadata(config),
            f"{self.gguf_arch}.rope.freq_base_swa": number(local, "rope_theta", low=1.0),
        }
        if config.get("final_logit_softcapping"):
            keys[f"{self.gguf_arch}.final_logit_softcapping"] = number(
                config, "final_logit_softcapping", low=1e-3
            )
        return keys

    def standalone_config(self, config: Config) -> Config:  # noqa: ARG002
        """The entries with which the text model stands alone."""
        return {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]}

    def validate(self, config: Config) -> None:
        """Capped attention scores have no place."""
        super().validate(config)
        why = "llama.cpp's gemma3 graph caps no attention scores"
        only(config, "attn_logit_softcapping", [None, 0], why)


ARCHITECTURE = Gemma3(
    model_type="gemma3_text",
    gguf_arch="gemma3",
    defaults={
        "vocab_size": 262208,
        **DEFAULTS,
        "max_position_embeddings": 131072,
        "final_logit_softcapping": None,
        "attn_logit_softcapping": None,
        "use_bidirectional_attention": False,
    },
    nullable=frozenset({"sliding_window", "use_bidirectional_attention"}),
    rope_theta=1000000.0,
    sequential=False,
    windowed=True,
    table={**BLOCK, **QK_NORM},
    rope_kinds=("default", "dynamic", "linear"),
    activations=("gelu_pytorch_tanh",),
    activation_key="hidden_activation",
)
