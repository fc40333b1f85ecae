"""Gemma 3 with eyes: only its language model is taken, under the text model's tensor names."""

from __future__ import annotations

from tenth.core.errors import InputError
from tenth.models.arch import gemma3_text
from tenth.models.arch._config import Config

# Keys that count although they stand outside text_config.
OUTER = (
    "quantization_config",
    "transformers_weights",
    "is_causal",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


class Gemma3WithEyes(gemma3_text.Gemma3):
    """What the language model is stands in text_config; whether its head is tied, beside it."""

    def complete(self, config: Config) -> Config:
        """Take the language model's config out of the multimodal one and complete it."""
        inner = {} if config.get("text_config") is None else config["text_config"]
        if not isinstance(inner, dict):
            raise InputError("config.json: text_config must be an object")
        outer = {key: config[key] for key in OUTER if key in config}
        tied = config.get("tie_word_embeddings", True)
        names = {"model_type": self.model_type, "tie_word_embeddings": False if tied is None else tied}
        return super().complete({**outer, **inner, **names})


ARCHITECTURE = Gemma3WithEyes(
    **{
        **vars(gemma3_text.ARCHITECTURE),
        "model_type": "gemma3",
        # As models of different age, and different savings of them, have it; the longest first.
        "prefixes": ("model.model.language_model.", "model.language_model.", "language_model."),
        "ignored": (
            "vision_tower.",
            "multi_modal_projector.",
            "model.vision_tower.",
            "model.multi_modal_projector.",
        ),
    }
)
