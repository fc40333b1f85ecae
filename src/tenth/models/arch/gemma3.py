"""Gemma 3 with eyes: only its language model is taken, under the text model's tensor names."""

from __future__ import annotations

import dataclasses

from tenth.models.arch import gemma3_text

ARCHITECTURE = dataclasses.replace(
    gemma3_text.ARCHITECTURE,
    model_type="gemma3",
    prefixes=("language_model.", "model.language_model."),
    ignored=(
        "vision_tower.",
        "multi_modal_projector.",
        "model.vision_tower.",
        "model.multi_modal_projector.",
    ),
)
