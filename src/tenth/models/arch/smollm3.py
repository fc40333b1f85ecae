"""SmolLM3: Llama's shape, with no rotary positions in every fourth layer (arXiv 2501.18795)."""

from __future__ import annotations

from tenth.core.errors import InputError
from tenth.models.arch._base import Architecture, layer_types
from tenth.models.arch._config import Config, flag, integer

STEP = 4  # fixed in llama.cpp's graph


class SmolLM3(Architecture):
    """Which layers go without rotary positions is fixed in the graph, so another pattern is refused."""

    def complete(self, config: Config) -> Config:
        """Which layers go without rotary positions, and which look through a window, as lists."""
        config = super().complete(config)
        layers = integer(config, "num_hidden_layers", high=512)
        if config["no_rope_layers"] is None:
            step = integer(config, "no_rope_layer_interval")
            config["no_rope_layers"] = [int((i + 1) % step != 0) for i in range(layers)]
        if config["layer_types"] is None:
            on = flag(config, "use_sliding_window") and config["sliding_window"] is not None
            rotated = config["no_rope_layers"]
            if not isinstance(rotated, list) or len(rotated) < layers:
                raise InputError(f"config.json: no_rope_layers must be a list of {layers} numbers")
            config["layer_types"] = layer_types(on and not rotated[i] for i in range(layers))
        return config

    def validate(self, config: Config) -> None:
        """Refuse patterns of rotary layers that the graph does not have, and biases."""
        self.no_biases(config, "attention_bias", "mlp_bias")
        if config["no_rope_layers"] != [int((i + 1) % STEP != 0) for i in range(self.shape(config).layers)]:
            raise InputError(
                f"config.json: no_rope_layers must skip every {STEP}th layer, as"
                " llama.cpp's smollm3 graph does"
            )


ARCHITECTURE = SmolLM3(
    model_type="smollm3",
    gguf_arch="smollm3",
    defaults={
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": None,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "use_sliding_window": False,
        "sliding_window": None,
        "no_rope_layers": None,
        "no_rope_layer_interval": STEP,
        "layer_types": None,
    },
    nullable=frozenset({"num_key_value_heads"}),
    rope_theta=2000000.0,
    interleaved=True,
)
