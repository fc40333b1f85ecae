"""Special tokens of a model folder: which ones begin text, end it and end a turn; and its chat template."""

from __future__ import annotations

from pathlib import Path

from tenth.core.errors import InputError
from tenth.models.formats.hf import JsonObject, read_optional
from tenth.models.formats.vocabulary import CONTROL, UNUSED, Vocabulary

# Ends of a turn, by the names under which chat models publish them, most specific first.
TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "<|end_of_text|>")
# What ends an answer in llama.cpp by its name alone (llama-vocab.cpp). A model with one of the second set and
# "</s>" does not end with "</s>".
ENDS_BY_NAME = {
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>"),
    *("<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]"),
    *("<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "[e~["),
    *("<\uff5cend\u2581of\u2581sentence\uff5c>", "<|ifm|im_end|>"),
}
WRITTEN_OUT = {"unk": "unknown", "pad": "padding"}  # roles in the keys of a GGUF
DEFAULT_END = {"gpt2": 11, "llama": 2}  # the end of text that llama.cpp takes where a file names none


def add_ids(
    keys: JsonObject,
    vocabulary: Vocabulary,
    added: tuple[str | None, str | None],
    folder: Path,
    settings: JsonObject,
    config: JsonObject,
) -> list[str]:
    """Put the special tokens' ids among the GGUF keys, and whether text begins and ends with one.

    added: texts of the tokens that the tokenizer itself puts first and last. Returns remarks on ends of an
    answer that llama.cpp will not know. InputError for a model in which no token can end a text.
    """
    named = read_optional(folder / "special_tokens_map.json")
    generation = read_optional(folder / "generation_config.json")
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
    ends = [*_ids(generation.get("eos_token_id"), vocabulary), *_ids(config.get("eos_token_id"), vocabulary)]
    remarks = _add_ends(found, list(dict.fromkeys(ends)), ids, vocabulary)
    if "eos" not in found:
        found["eos"], remark = _any_end(keys["tokenizer.ggml.model"], vocabulary)
        remarks.append(remark)
    keys |= {key_of(role): token_id for role, token_id in found.items()}
    return remarks


def key_of(role: str) -> str:
    """The GGUF key of the token with a role, such as "bos" or "pad"."""
    return f"tokenizer.ggml.{WRITTEN_OUT.get(role, role)}_token_id"


def _add_ends(
    found: dict[str, int], ends: list[int], ids: dict[str, int], vocabulary: Vocabulary
) -> list[str]:
    """Give the tokens that end an answer the three places of a GGUF: eos, eot (turn) and eom (message).

    ends: ids that generation_config.json and config.json name. Those that llama.cpp knows by name need no
    place. A remark for each that is left without one.
    """
    turns = [ids[text] for text in TURN_ENDS if text in ids and vocabulary.is_control(ids[text])]
    if first := turns or ends:
        found.setdefault("eos", first[0])
    nameless = [i for i in ends if vocabulary.texts[i] not in ENDS_BY_NAME and i != found.get("eos")]
    message = [ids[text] for text in ("<|eom_id|>",) if text in ids]
    # A place goes to whom it serves: a nameless end first, then the name's owner, for programs that ask.
    if nameless and len(nameless) < 2 and turns and not message:
        found |= {"eot": turns[0], "eom": nameless[0]}
    else:
        places = (*nameless[:2], *((turns or ends)[:1] if not nameless else ()))
        found |= dict(zip(("eot", "eom"), places, strict=False))
        if message and "eom" not in found:
            found["eom"] = message[0]
    return [
        f"token {i} ({vocabulary.texts[i]!r:.40}) should end an answer, and will not do so in llama.cpp:"
        " a GGUF has room for three"
        for i in nameless
        if i not in [found.get(place) for place in ("eos", "eot", "eom")]
    ]


def _any_end(model: str, vocabulary: Vocabulary) -> tuple[int, str]:
    """(a token that is never text, a remark) for a model that names no end of text.

    llama.cpp would take one by its number, whatever it is.
    """
    default = DEFAULT_END[model]
    for kind in (UNUSED, CONTROL):
        never = [token for token, held in vocabulary.types.items() if held == kind]
        if never:
            token = default if default in never else never[-1]
            return token, (
                "neither tokenizer_config.json nor config.json names the token that ends a text:"
                f" {token} ({vocabulary.texts[token]!r:.40}) stands for it"
            )
    raise InputError(
        "neither tokenizer_config.json nor config.json names the token that ends a text (eos_token), and"
        f" llama.cpp would end it at {default} ({vocabulary.texts.get(default, '')!r:.40}); name one"
    )


def text_of(value: object, key: str = "content") -> str | None:
    """A token's text, given as such or as an object that has it under key."""
    value = value.get(key) if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def _ids(value: object, vocabulary: Vocabulary) -> list[int]:
    """Token ids, given as one or as a list; what is no id of this vocabulary is left out."""
    values = value if isinstance(value, list) else [value]
    return [v for v in values if type(v) is int and v in vocabulary.texts]


def chat_template(folder: Path, settings: JsonObject) -> str | None:
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
