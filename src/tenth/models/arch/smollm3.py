"""SmolLM3: Llama's shape, with no rotary positions in every fourth layer (arXiv 2501.18795)."""

from __future__ import annotations

from typing import Any

from tenth.core.errors import InputError
from tenth.models.arch._base import Architecture
from tenth.models.arch._config import Config, flag, integer, only

STEP = 4  # fixed in llama.cpp's graph


class SmolLM3(Architecture):
    """Which layers go without rotary positions is fixed in the graph, so another pattern is refused."""

    def window(self, config: Config) -> int | None:
        """Only where it is switched on."""
        return super().window(config) if flag(config, "use_sliding_window") else None

    def rotated(self, config: Config) -> Any:
        """For each layer 1, or 0 where it goes without."""
        step = integer(config, "no_rope_layer_interval", STEP, high=1 << 16)
        return config.get("no_rope_layers") or [int((i + 1) % step != 0) for i in range(self.layers(config))]

    def normalised_config(self, config: Config) -> Config:
        """Which layers have rotary positions."""
        rest = {key: value for key, value in config.items() if key != "no_rope_layer_interval"}
        return {**rest, "no_rope_layers": self.rotated(config)}

    def validate(self, config: Config) -> None:
        """The pattern, and biases."""
        self.no_biases(config, "attention_bias", "mlp_bias")
        only(
            {**config, **self.rope(config)},
            "partial_rotary_factor",
            [1.0],
            1.0,
            "llama.cpp rotates whole heads here",
        )
        if self.rotated(config) != [int((i + 1) % STEP != 0) for i in range(self.layers(config))]:
            raise InputError(
                f"config.json: no_rope_layers must skip every {STEP}th layer, as"
                " llama.cpp's smollm3 graph does"
            )


ARCHITECTURE = SmolLM3(
    model_type="smollm3",
    gguf_arch="smollm3",
    interleaved=True,
    defaults={"tie_word_embeddings": True, "num_key_value_heads": 4, "rope_theta": 2000000.0},
)
