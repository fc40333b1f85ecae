"""Special tokens of a model folder: which ones begin text, end it and end a turn; and its chat template."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenth.core.errors import InputError
from tenth.models.formats.hf import read_json

if TYPE_CHECKING:
    from tenth.models.formats.vocabulary import Vocabulary

# Ends of a turn, by the names under which chat models publish them, most specific first.
TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "<|end_of_text|>")


def add_ids(
    keys: dict[str, Any],
    vocabulary: Vocabulary,
    added: tuple[str | None, str | None],
    folder: Path,
    settings: dict[str, Any],
    config: dict[str, Any],
) -> None:
    """Put the special tokens' ids among the GGUF keys, and whether text begins and ends with one.

    added: texts of the tokens that the tokenizer itself puts first and last.
    """
    named = (
        read_json(folder / "special_tokens_map.json")
        if (folder / "special_tokens_map.json").is_file()
        else {}
    )
    generation = (
        read_json(folder / "generation_config.json") if (folder / "generation_config.json").is_file() else {}
    )
    ids = {text: token for token, text in vocabulary.texts.items()}
    found: dict[str, int] = {}
    for role in ("bos", "eos", "unk", "pad"):
        text = text_of(settings.get(f"{role}_token")) or text_of(named.get(f"{role}_token"))
        numbers = _ids(config.get(f"{role}_token_id"), vocabulary)
        if text in ids:
            found[role] = ids[text]
        elif numbers:
            found[role] = numbers[0]
    for side, role in enumerate(("bos", "eos")):
        token = added[side]
        wanted = settings.get(f"add_{role}_token")
        switch = wanted if isinstance(wanted, bool) else token is not None
        if switch and token in ids:
            found[role] = ids[token]
        keys[f"tokenizer.ggml.add_{role}_token"] = switch and role in found
    ends = {*_ids(generation.get("eos_token_id"), vocabulary), *_ids(config.get("eos_token_id"), vocabulary)}
    named_ends = [ids[text] for text in TURN_ENDS if text in ids and vocabulary.is_control(ids[text])]
    turn_ends = named_ends or sorted(ends)
    if turn_ends:
        found.setdefault("eos", turn_ends[0])
        found["eot"] = turn_ends[0]
    for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"), ("eot", "eot")):
        if role in found:
            keys[f"tokenizer.ggml.{key}_token_id"] = found[role]
    if "<|eom_id|>" in ids:
        keys["tokenizer.ggml.eom_token_id"] = ids["<|eom_id|>"]


def text_of(value: Any, key: str = "content") -> str | None:
    """A token's text, given as such or as an object that has it under key."""
    value = value.get(key) if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def _ids(value: Any, vocabulary: Vocabulary) -> list[int]:
    """Token ids, given as one or as a list; what is no id of this vocabulary is left out."""
    values = value if isinstance(value, list) else [value]
    return [v for v in values if type(v) is int and v in vocabulary.texts]


def chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    """The chat template (Jinja), from chat_template.jinja or tokenizer_config.json; of several, the default
    one.
    """
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_bytes()[:4_000_000].decode("utf-8")
        except UnicodeDecodeError:
            raise InputError(f"{file} is not UTF-8 text") from None
    template = settings.get("chat_template")
    if isinstance(template, list):
        by_name = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = by_name.get("default", next(iter(by_name.values()), None))
    return template if isinstance(template, str) else None
