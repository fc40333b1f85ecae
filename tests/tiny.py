"""Tiny random models and tokenizers of every family, made on the spot."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

VOCABULARY = 384  # of the models; the tokenizers have fewer tokens, as published ones often do


def longrope(pairs: int, original: int, **more: float) -> dict[str, Any]:
    """Settings of LongRoPE for heads with that many rotated pairs. llama.cpp rounds its context up to 256
    tokens.
    """
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0 + 0.1 * i for i in range(pairs)],
        "long_factor": [2.0 + 0.5 * i for i in range(pairs)],
        "original_max_position_embeddings": original,
        **more,
    }
    return {"rope_parameters": rope, "original_max_position_embeddings": original}


COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8}
LOCAL_GLOBAL = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 100000.0, "factor": 8.0},
}

# What each family has beyond the common shape: name of the variant -> settings of its config.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "llama": {
        "tied": {"tie_word_embeddings": True},
        "head_dim": {"head_dim": 32, "tie_word_embeddings": False},
        "biases": {"attention_bias": True, "mlp_bias": True},
        "llama3": {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 64}},
        "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
        "yarn": {"rope_parameters": YARN},
        "yarn_attention": {"rope_parameters": {**YARN, "attention_factor": 1.3}},
    },
    "mistral": {"window": {"sliding_window": 48, "head_dim": 32}, "no_window": {"sliding_window": None}},
    "qwen2": {
        "untied": {"tie_word_embeddings": False},
        "tied": {"tie_word_embeddings": True},
        "yarn": {"rope_parameters": YARN},
    },
    "qwen3": {"untied": {"head_dim": 32}, "tied": {"head_dim": 32, "tie_word_embeddings": True}},
    "phi": {
        "partial": {
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
        },
        "no_gqa": {"num_key_value_heads": 4},
    },
    "phi3": {
        "plain": {"sliding_window": None},
        "short_factors": {**longrope(8, original=256), "max_position_embeddings": 512},
        "long_factors": longrope(8, original=32),
        "partial": {**longrope(6, original=32, partial_rotary_factor=0.75), "tie_word_embeddings": True},
    },
    "gemma2": {"softcaps": {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.0}},
    "gemma3_text": {
        "windows": {
            **GEMMA,
            "num_hidden_layers": 6,
            "rope_parameters": LOCAL_GLOBAL,
            "final_logit_softcapping": 1.0,
        },
        "untied": {
            **GEMMA,
            "num_hidden_layers": 3,
            "tie_word_embeddings": False,
            "layer_types": ["full_attention"] + ["sliding_attention"] * 2,
        },
    },
    "gemma3": {"eyes": {**GEMMA, "num_hidden_layers": 6, "rope_parameters": LOCAL_GLOBAL}},
    "smollm3": {
        "nope": {"num_hidden_layers": 4},
        "untied": {"num_hidden_layers": 4, "tie_word_embeddings": False},
    },
}


def make_config(model_type: str, variant: str | None = None, **changes: Any) -> Any:
    """transformers' config object of a tiny model."""
    from transformers import CONFIG_MAPPING

    mapping: Any = CONFIG_MAPPING
    variants = VARIANTS[model_type]
    settings = {**COMMON, **variants[variant or next(iter(variants))], **changes}
    if model_type == "gemma3":
        vision = {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
        }
        return mapping["gemma3"](
            text_config=settings, vision_config={**vision, "patch_size": 14}, mm_tokens_per_image=4
        )
    return mapping[model_type](**settings)


def make_model(
    folder: Path,
    model_type: str = "llama",
    variant: str | None = None,
    seed: int = 0,
    dtype: str = "float32",
    **changes: Any,
) -> Any:
    """Write a tiny random model with a tokenizer to the folder; returns the float32 transformers model.

    Every parameter is random, norms and biases too; matrices are large enough that attention is far from
    uniform; MLPs with GELU count for little, because llama.cpp's is a table of half-precision values.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    config = make_config(model_type, variant, **changes)
    auto: Any = AutoModelForImageTextToText if model_type == "gemma3" else AutoModelForCausalLM
    model = auto.from_config(config, attn_implementation="eager").eval()
    randomise(model, seed)
    kind = getattr(torch, dtype)
    model.to(kind).to(torch.float32)
    model.to(kind).save_pretrained(folder)
    model.to(torch.float32)
    write_tokenizer(folder, "gpt-2")
    return model


def randomise(model: Any, seed: int = 0) -> None:
    """Random values for every parameter of a transformers model."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                gain = 0.5 if name.endswith("fc2.weight") else 1.5
                head = "embed" in name or "lm_head" in name
                parameter.copy_(noise * (0.1 if head else gain * parameter.shape[-1] ** -0.5))
            elif name.endswith("bias"):
                parameter.copy_(0.2 * noise)
            else:
                parameter.add_(0.3 * noise - (0.6 if "post_feedforward" in name else 0.0))


# -- tokenizers ----------------------------------------------------------------------------------------------

CORPUS = [
    "The quick brown fox doesn't jump over the lazy dog's 1234567 bones; it'll wait, they've said. SHOUT!",
    "def f(x, y):\n    return x + y  # sum\n\n\n\tif x == 10:\n\t\tprint('yes', \"no\")\n",
    "naïve café œuvre Straße ΑΒΓ αβγ Привет мир שלום عالم नमस्ते 你好世界 こんにちは 한국어 🙂👍🏽 ½ ² ٣",
    "The cat sat on the mat. The dog sat on the log.   Spaces   and\ttabs.\r\nWindows lines.\n\n \n  end  ",
]
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SP_SPECIALS = ["<unk>", "<s>", "</s>"]
SPACE = "\u2581"


def regexes() -> dict[str, tuple[Any, ...]]:
    """The pre-tokenizers of published byte-level tokenizers, as their tokenizer.json spells them."""
    contraction = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    tail = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    cased = (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+{0}"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*{0}"
    )
    qwen2 = contraction + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + tail
    any_space = qwen2.replace("| ?[^", r"|\s*[^")
    return {
        "gpt-2": (),
        "smollm": ("digits",),
        "qwen2": (qwen2,),
        "qwen35": (
            contraction + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}|" + tail.replace(r"\p{L}", r"\p{L}\p{M}"),
        ),
        "llama-bpe": (contraction + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + tail,),
        "dbrx": (
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*"
            r"|\s*[\r\n]|\s+(?!\S)|\s+",
        ),
        "tekken": (cased.replace("{0}", "") + r"|\p{N}|" + tail.replace("n]*", "n/]*", 1),),
        "gpt-4o": (
            cased.replace("{0}", contraction + "?") + r"|\p{N}{1,3}|" + tail.replace("n]*", "n/]*", 1),
        ),
        "any-space": (any_space,),
        "any-space-merged": (any_space,),
    }


@cache
def byte_level(kind: str, size: int = 330) -> Any:
    """A byte-level BPE trained on CORPUS with the pre-tokenizer of that name."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    skip = kind in ("llama-bpe", "tekken")
    tokenizer = Tokenizer(models.BPE(ignore_merges=skip))
    parts: list[Any] = []
    for regex in regexes()[kind]:
        if regex == "digits":
            parts.append(pre_tokenizers.Digits(individual_digits=True))
        else:
            parts.append(
                pre_tokenizers.Split(
                    Regex(regex), "removed" if kind == "dbrx" else "isolated", invert=kind == "dbrx"
                )
            )
    own = kind in ("gpt-2", "smollm")
    parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=own))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts) if len(parts) > 1 else parts[0]
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    # The published tokenizer with that definition has no merges of white space.
    corpus = [" ".join(line.split()) for line in CORPUS] if kind == "any-space" else CORPUS
    tokenizer.train_from_iterator(corpus * 3, trainer)
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("    ", normalized=False)])
    return tokenizer


@cache
def sentencepiece_style(kind: str) -> Any:
    """A byte_fallback BPE as converted from a SentencePiece model: "llama" (space in front) or "gemma"
    (none).
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    counts: dict[str, int] = {}
    for line in CORPUS:
        for word in line.replace(" ", " " + SPACE).split(" "):
            for i in range(len(word)):
                for j in range(i + 2, min(len(word), i + 6) + 1):
                    counts[word[i:j]] = counts.get(word[i:j], 0) + 1
    specials = (
        SP_SPECIALS
        if kind == "llama"
        else ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    )
    letters = sorted(
        {c for line in CORPUS for c in line if c.isascii() and c not in " \n\t\r"} | {SPACE, "é", "α"}
    )
    pieces = [
        p
        for p, n in sorted(counts.items(), key=lambda e: (-e[1] * len(e[0]), e[0]))
        if set(p) <= set(letters)
    ][:120]
    if kind == "gemma":
        pieces = [SPACE * n for n in (2, 3, 4)] + pieces
    made = [p for p in pieces if any(_reachable(p[:i], p[i:], letters, pieces) for i in range(1, len(p)))]
    tokens = [*specials, *(f"<0x{i:02X}>" for i in range(256)), *made, *letters]
    rank = {p: i for i, p in enumerate(made)}
    held = set(made) | set(letters)
    merges = [
        (p[:i], p[i:])
        for p in sorted(made, key=rank.__getitem__)
        for i in range(1, len(p))
        if p[:i] in held and p[i:] in held
    ]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    replace = normalizers.Replace(" ", SPACE)
    bos = "<s>" if kind == "llama" else "<bos>"
    if kind == "llama":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replace])
    else:
        tokenizer.normalizer = replace
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in specials])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
    )
    return tokenizer


def _reachable(left: str, right: str, letters: list[str], pieces: list[str]) -> bool:
    known = {*letters, *pieces}
    return left in known and right in known


def write_tokenizer(folder: Path, kind: str) -> Any:
    """Write tokenizer.json and tokenizer_config.json of that kind; returns the `tokenizers` object."""
    style = kind in ("llama", "gemma")
    tokenizer = sentencepiece_style(kind) if style else byte_level(kind)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    end = {"llama": "</s>", "gemma": "<eos>"}.get(kind, "<|endoftext|>")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": end,
        "chat_template": "{{ messages[0].content }}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return tokenizer


def write_sentencepiece(folder: Path, **more: Any) -> None:
    """Train a tokenizer.model of 400 BPE pieces on CORPUS; more: further settings of the trainer."""
    import sentencepiece

    (folder / "corpus.txt").write_text("\n".join(CORPUS * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        **more,
    )
