"""Model folders as strangers publish them: every layout of weights that transformers reads, or should not.

A layout is a function that changes the folder of a tiny model. `compared` says what became of it: its logits
in transformers beside those of our unquantised GGUF in llama.cpp.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tiny import make_model

from tenth.core.errors import InputError
from tenth.core.records import Runtime
from tenth.models.checkpoint import open_checkpoint
from tenth.models.formats.gguf import write_gguf
from tenth.runtime.llama import Session

Tensors = dict[str, torch.Tensor]
LENGTH = 40  # tokens
WITHIN = 1e-2  # of logits
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Compared:
    """A folder in transformers and in llama.cpp."""

    verdict: (
        str  # "equal", "refused" (by us), "different", "unrun" (transformers cannot: the first check says so)
    )
    difference: float = 0.0  # of logits, the largest
    why: str = ""  # what was said

    @property
    def silent(self) -> bool:
        """Whether a person gets another model, and is told nothing."""
        return self.verdict == "different"


def their_logits(folder: Path, ids: np.ndarray) -> np.ndarray | str:
    """What transformers computes from the folder; why it does not, or leaves weights to chance."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
            return_dict=True,
        )
        if missing := sorted(set(info["missing_keys"]) | {key for key, *_ in info["mismatched_keys"]}):
            return f"transformers does not find {missing[0]}"
        with torch.no_grad():
            out = model(input_ids=torch.from_numpy(ids)[None], use_cache=False, return_dict=True)
        logits: np.ndarray = out.logits[0].numpy()
    except Exception as error:  # of many kinds
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return logits


def our_logits(folder: Path, ids: np.ndarray, gguf: Path) -> np.ndarray:
    """What llama.cpp computes from our float32 GGUF of the folder, within the context that it is made for."""
    checkpoint = open_checkpoint(folder)
    ids = ids[: checkpoint.arch.context_limit(checkpoint.config)[0]]
    write_gguf(checkpoint, {}, gguf)
    exact = {"type_k": "F32", "type_v": "F32", "flash_attention": False}
    with Session.open(gguf, Runtime(n_ctx=LENGTH, n_ubatch=LENGTH, threads=1, **exact)) as session:
        logits = session.decode(ids)
    gguf.unlink()
    return logits


def compared(folder: Path, reference: Path | None = None) -> Compared:
    """Both readings of a folder; reference: the folder that transformers should read instead."""
    vocabulary = int(json.loads((folder / "config.json").read_text()).get("vocab_size") or 384)
    ids = np.random.default_rng(1).integers(3, min(vocabulary, 384), LENGTH)
    try:
        ours = our_logits(folder, ids, folder.with_suffix(".gguf"))
    except InputError as error:
        return Compared("refused", why=str(error))
    theirs = their_logits(reference or folder, ids)
    if isinstance(theirs, str):
        return Compared("unrun", why=theirs)
    difference = float(np.abs(ours - theirs[: len(ours)]).max())
    return Compared("equal" if difference <= WITHIN else "different", difference)


# -- changes of a folder -------------------------------------------------------------------------------------


def set_config(folder: Path, **changes: Any) -> None:
    """Other values in config.json; None stays null."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def tensors(folder: Path) -> Tensors:
    """Of model.safetensors."""
    found: Tensors = load_file(folder / SINGLE)
    return found


def save(folder: Path, found: Tensors) -> None:
    """As model.safetensors."""
    save_file({name: t.contiguous() for name, t in found.items()}, folder / SINGLE, metadata={"format": "pt"})


def split(folder: Path, found: Tensors | None = None) -> dict[str, str]:
    """Two shards and an index in the place of model.safetensors; which tensor is where."""
    found = tensors(folder) if found is None else found
    (folder / SINGLE).unlink()
    names, places = sorted(found), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: found[name] for name in part}, folder / shard, metadata={"format": "pt"})
        places |= dict.fromkeys(part, shard)
    write_index(folder, places)
    return places


def write_index(folder: Path, places: dict[str, str]) -> None:
    """The index of shards."""
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def add_to_shard(folder: Path, shard: str, more: Tensors) -> None:
    """More tensors in a shard."""
    save_file(load_file(folder / shard) | more, folder / shard, metadata={"format": "pt"})


def noise(like: torch.Tensor) -> torch.Tensor:
    """Values that have nothing to do with the model's."""
    return 0.1 * torch.randn(like.shape, generator=torch.Generator().manual_seed(9))


def _embedding(found: Tensors) -> str:
    return next(name for name in found if name.endswith("embed_tokens.weight"))


def _norm(found: Tensors) -> str:
    """The last norm of the language model."""
    return next(
        name
        for name in found
        if re.search(r"(^|\.)(norm|final_layernorm)\.weight$", name) and "vision" not in name
    )


def _renamed(rename: Callable[[str], str]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        save(folder, {rename(name): tensor for name, tensor in tensors(folder).items()})

    return change


def _below(prefix: str) -> Callable[[Path], None]:
    """The language model's tensors below another prefix than a model with eyes has them."""
    return _renamed(
        lambda name: re.sub(r"^language_model\.model\.|^model\.(?=embed|layers|norm|final)", prefix, name)
    )


def other_head(folder: Path) -> None:
    """Case 02: a head of other values, although config.json ties it."""
    found = tensors(folder)
    save(folder, found | {HEAD: noise(found[_embedding(found)])})


def same_head(folder: Path) -> None:
    found = tensors(folder)
    save(folder, found | {HEAD: found[_embedding(found)].clone()})


def head_alone(folder: Path) -> None:
    """A tied model saved under its head's name."""
    found = tensors(folder)
    save(folder, found | {HEAD: found.pop(_embedding(found))})


def head_of_another_shape(folder: Path) -> None:
    found = tensors(folder)
    save(folder, found | {HEAD: found[_embedding(found)][:-8].clone()})


def single_beside_shards(folder: Path) -> None:
    """Case 03: a later saving beside an index and its shards."""
    found = tensors(folder)
    split(folder)
    save(folder, {name: 1.3 * tensor for name, tensor in found.items()})


def index_left_over(folder: Path) -> None:
    """The shards are gone, their index is not."""
    found = tensors(folder)
    for shard in set(split(folder).values()):
        (folder / shard).unlink()
    save(folder, found)


def shards(folder: Path) -> None:
    split(folder)


def index_without_a_tensor(folder: Path) -> None:
    """A tensor that a shard holds and the index leaves out counts."""
    places = split(folder)
    del places[sorted(places)[3]]
    write_index(folder, places)


def index_with_an_absent_head(folder: Path) -> None:
    places = split(folder)
    write_index(folder, {**places, HEAD: min(places.values())})


def index_with_a_lost_head(folder: Path) -> None:
    """The same where the model needs it."""
    found = tensors(folder)
    found.pop(HEAD, None)
    places = split(folder, found)
    write_index(folder, {**places, HEAD: min(places.values())})


def index_with_an_absent_tensor(folder: Path) -> None:
    places = split(folder)
    write_index(folder, {**places, "model.extra.weight": min(places.values())})


def index_with_another_shard(folder: Path) -> None:
    """The index places a tensor in the shard that does not hold it."""
    places = split(folder)
    name = sorted(places)[0]
    write_index(folder, {**places, name: max(places.values())})


def shard_without_an_index(folder: Path) -> None:
    split(folder)
    (folder / INDEX).unlink()


def stray_shard(folder: Path) -> None:
    split(folder)
    save_file({"x": torch.zeros(1)}, folder / "model-00003-of-00003.safetensors")


def same_twice(folder: Path) -> None:
    """A tensor in both shards."""
    found = tensors(folder)
    split(folder)
    name = _norm(found)
    for number in (1, 2):
        add_to_shard(folder, f"model-{number:05d}-of-00002.safetensors", {name: found[name]})


def twice_with_other_values(folder: Path) -> None:
    found = tensors(folder)
    split(folder)
    name = _norm(found)
    for number in (1, 2):
        add_to_shard(folder, f"model-{number:05d}-of-00002.safetensors", {name: number * found[name]})


def under_two_names(folder: Path) -> None:
    found = tensors(folder)
    name = _norm(found)
    save(folder, found | {name.removeprefix("model."): 2 * found[name], f"model.{name}": 3 * found[name]})


def under_two_names_alike(folder: Path) -> None:
    found = tensors(folder)
    name = _norm(found)
    save(folder, found | {f"model.{name}": found[name].clone()})


def mixed_types(folder: Path) -> None:
    kinds = (torch.float32, torch.float16, torch.bfloat16)
    save(folder, {name: t.to(kinds[i % 3]) for i, (name, t) in enumerate(sorted(tensors(folder).items()))})


def float64(folder: Path) -> None:
    save(folder, {name: tensor.double() for name, tensor in tensors(folder).items()})


def pickle_alone(folder: Path) -> None:
    torch.save(tensors(folder), folder / "pytorch_model.bin")
    (folder / SINGLE).unlink()


def pickle_beside(folder: Path) -> None:
    torch.save({name: 2 * tensor for name, tensor in tensors(folder).items()}, folder / "pytorch_model.bin")


def another_shape(folder: Path) -> None:
    found = tensors(folder)
    name = next(name for name in found if name.endswith(("o_proj.weight", "dense.weight")))
    save(folder, found | {name: found[name][:, :-8].clone()})


def missing_layer(folder: Path) -> None:
    save(folder, {name: tensor for name, tensor in tensors(folder).items() if ".layers.1." not in name})


def extra_layer(folder: Path) -> None:
    found = tensors(folder)
    more = {
        re.sub(r"\.layers\.1\.", ".layers.77.", name): t.clone()
        for name, t in found.items()
        if ".layers.1." in name
    }
    save(folder, found | more)


def constants(folder: Path) -> None:
    """What old exporters saved of the rotary positions, with other values than the config's."""
    found = tensors(folder)
    prefix = _embedding(found).removesuffix("embed_tokens.weight")
    save(folder, found | {f"{prefix}layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))


def distributed(folder: Path) -> None:
    save_file(tensors(folder), folder / "shard-00000-model-00001-of-00001.safetensors")


def other_file(folder: Path) -> None:
    """config.json names another file of weights, which transformers reads."""
    save_file({name: 2 * t for name, t in tensors(folder).items()}, folder / "other.safetensors")
    set_config(folder, transformers_weights="other.safetensors")


def variant(folder: Path) -> None:
    """A second saving under a variant's name is not read."""
    save_file({name: 2 * t for name, t in tensors(folder).items()}, folder / "model.fp16.safetensors")
    save_file({name: 2 * t for name, t in tensors(folder).items()}, folder / "consolidated.safetensors")


# Each with whether the model is tied; None: as the family's first variant is.
LAYOUTS: dict[str, tuple[Callable[[Path], None], bool | None]] = {
    **{f.__name__: (f, True) for f in (other_head, same_head, head_alone, head_of_another_shape)},
    "index_with_an_absent_head": (index_with_an_absent_head, True),
    "index_with_a_lost_head": (index_with_a_lost_head, False),
    "no_head": (_renamed(lambda name: "lost" if name == HEAD else name), False),
    **{
        f.__name__: (f, None)
        for f in (
            single_beside_shards,
            index_left_over,
            shards,
            index_without_a_tensor,
            index_with_an_absent_tensor,
            index_with_another_shard,
            shard_without_an_index,
            stray_shard,
            same_twice,
            twice_with_other_values,
            under_two_names,
            under_two_names_alike,
            mixed_types,
            float64,
            pickle_alone,
            pickle_beside,
            another_shape,
            missing_layer,
            extra_layer,
            constants,
            adapter,
            distributed,
            other_file,
            variant,
        )
    },
    "quantization_config_empty": (lambda folder: set_config(folder, quantization_config={}), None),
    "quantization_config_null": (lambda folder: set_config(folder, quantization_config=None), None),
    "quantization_config": (
        lambda folder: set_config(folder, quantization_config={"quant_method": "x"}),
        None,
    ),
    "a_prefix_more": (_renamed(lambda name: f"model.{name}"), None),
    "a_prefix_less": (_renamed(lambda name: name.removeprefix("model.")), None),
    **{
        f"below_{prefix or 'nothing'}": (_below(prefix), None)
        for prefix in (
            "",
            "model.",
            "language_model.",
            "language_model.model.",
            "model.language_model.",
            "model.language_model.model.",
            "language_model.model.model.",
            "model.model.language_model.",
            "text_model.",
            "transformer.",
            "base_model.model.model.",
        )
    },
}


def make_layout(folder: Path, family: str, layout: str) -> Path | None:
    """A tiny model of a family in that layout; the folder that transformers reads as this one should be read,
    where it refuses this one without need.
    """
    change, tied = LAYOUTS[layout]
    changes = {} if tied is None or family == "gemma3" else {"tie_word_embeddings": tied}
    make_model(folder, family, **changes)
    if layout != "quantization_config_empty":
        change(folder)
        return None
    plain = folder.with_name(f"{folder.name}-plain")
    make_model(plain, family, **changes)
    change(folder)  # transformers 5 wants a quant_method, older ones took it for none
    return plain
