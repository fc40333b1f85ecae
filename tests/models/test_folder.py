"""Folders written anew: from_pretrained and open_checkpoint find the same model in them."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import VARIANTS, VOCABULARY, make_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tenth.calibration.layerwise import LayerwiseModel
from tenth.core.errors import InputError, OutputError
from tenth.models.checkpoint import Checkpoint, open_checkpoint
from tenth.models.edit import keep_layers, replaced, take
from tenth.models.formats import folder as folders
from tenth.models.formats.folder import write_folder

EVERY = [(family, variant) for family, variants in VARIANTS.items() for variant in variants]


def loaded(folder: Path) -> Any:
    model, report = AutoModelForCausalLM.from_pretrained(
        folder,
        trust_remote_code=False,
        local_files_only=True,
        attn_implementation="eager",
        output_loading_info=True,
    )
    assert not any(report.values()), report  # nothing missing, left over or of another shape
    return model.eval()


def logits(model: Any, vocabulary: int = VOCABULARY) -> torch.Tensor:
    ids = np.random.default_rng(3).integers(0, vocabulary, (2, 40))
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.from_numpy(ids), use_cache=False).logits
    return found


def same_tensors(one: Checkpoint, other: Checkpoint) -> None:
    assert [spec.source for spec in one.specs()] == [spec.source for spec in other.specs()]
    for spec in one.specs():
        np.testing.assert_array_equal(one.tensors[spec.source].load(), other.tensors[spec.source].load())


@pytest.mark.parametrize(("family", "variant"), EVERY)
def test_logits_are_those_of_the_original(family: str, variant: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "old", family, variant)
    old = open_checkpoint(tmp_path / "old")
    done: list[float] = []
    size = write_folder(old, tmp_path / "new", progress=done.append)
    assert done[-1] * 4 == size == 4 * sum(spec.count for spec in old.specs())
    new = loaded(tmp_path / "new")
    torch.testing.assert_close(logits(new), logits(model), rtol=0, atol=0)
    assert new.dtype == torch.float32
    same_tensors(old, open_checkpoint(tmp_path / "new"))
    text = "The cat's hat, naïve 你好"
    tokenizers = [AutoTokenizer.from_pretrained(tmp_path / name) for name in ("old", "new")]
    assert tokenizers[0](text)["input_ids"] == tokenizers[1](text)["input_ids"]


@pytest.mark.parametrize("family", sorted(VARIANTS))
def test_edits_are_those_of_the_state_dict(family: str, tmp_path: Path) -> None:
    """Vocabulary, width and new values, against the same done by hand to transformers' own tensors."""
    model = make_model(tmp_path / "old", family)
    words, width = list(range(300, 7, -1)), [*range(40), *range(50, 90)]
    checkpoint = take(take(open_checkpoint(tmp_path / "old"), "vocab", words), "ffn", width)
    last = max((s for s in checkpoint.specs() if s.role == "ffn_down"), key=lambda s: s.layer or 0)
    doubled = 2 * checkpoint.tensors[last.source].load()
    write_folder(replaced(checkpoint, {last.source: doubled}), tmp_path / "new")
    text = model.model.language_model if family == "gemma3" else model.model
    state = {f"model.{name}": value for name, value in text.state_dict().items()}
    state |= {name: value for name, value in model.state_dict().items() if name.startswith("lm_head")}
    for name, value in state.items():
        if "embed_tokens" in name or "lm_head" in name:
            state[name] = value[words]
        elif "gate_up" in name:
            state[name] = torch.cat([half[width] for half in value.chunk(2)])
        elif any(part in name for part in ("gate_proj", "up_proj", "fc1")):
            state[name] = value[width]
        elif ("down_proj" in name or "fc2" in name) and value.ndim == 2:
            state[name] = value[:, width] * (2 if name == last.source else 1)
    new = loaded(tmp_path / "new")
    found = new.state_dict()
    assert found.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(found[name], value), name
    assert torch.isfinite(logits(new, len(words))).all()


def test_fewer_blocks(tmp_path: Path) -> None:
    model = make_model(tmp_path / "old", num_hidden_layers=4)
    write_folder(keep_layers(open_checkpoint(tmp_path / "old"), [0, 3]), tmp_path / "new")
    model.model.layers = torch.nn.ModuleList([model.model.layers[0], model.model.layers[3]])
    torch.testing.assert_close(logits(loaded(tmp_path / "new")), logits(model), rtol=0, atol=0)


@pytest.mark.parametrize(("dtype", "kind"), [("F16", torch.float16), ("BF16", torch.bfloat16)])
def test_half_precision(dtype: Any, kind: torch.dtype, tmp_path: Path) -> None:
    make_model(tmp_path / "old")
    write_folder(open_checkpoint(tmp_path / "old"), tmp_path / "new", dtype)
    old, new = load_file(tmp_path / "old/model.safetensors"), load_file(tmp_path / "new/model.safetensors")
    assert all(torch.equal(new[name], value.to(kind)) for name, value in old.items() if name in new)
    assert loaded(tmp_path / "new").dtype == kind
    config = json.loads((tmp_path / "new/config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == str(kind).removeprefix("torch.")


def test_shards_and_the_same_bytes(tmp_path: Path) -> None:
    make_model(tmp_path / "old")
    old = open_checkpoint(tmp_path / "old")
    for name in ("a", "b"):
        write_folder(old, tmp_path / name, shard_bytes=60_000)
    files = sorted(path.name for path in (tmp_path / "a").glob("*.safetensors"))
    assert len(files) > 2
    assert all((tmp_path / "a" / name).stat().st_size < 110_000 for name in files)  # 384 x 64 F32 alone
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    same_tensors(old, open_checkpoint(tmp_path / "a"))
    assert torch.equal(logits(loaded(tmp_path / "a")), logits(loaded(tmp_path / "old")))
    # Fewer shards over more: those of before would contradict the index.
    write_folder(old, tmp_path / "a", shard_bytes=150_000)
    same_tensors(old, open_checkpoint(tmp_path / "a"))
    write_folder(old, tmp_path / "a")
    same_tensors(old, open_checkpoint(tmp_path / "a"))


def test_a_tied_head_is_written_once(tmp_path: Path) -> None:
    """Some folders hold it a second time; what is done to the embedding is done to the head."""
    make_model(tmp_path / "old", "llama", "tied")
    tensors = load_file(tmp_path / "old/model.safetensors")
    both = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    save_file(both, tmp_path / "old/model.safetensors", {"format": "pt"})
    checkpoint = take(open_checkpoint(tmp_path / "old"), "vocab", list(range(300)))
    write_folder(checkpoint, tmp_path / "new")
    assert "lm_head.weight" not in load_file(tmp_path / "new/model.safetensors")
    layerwise = LayerwiseModel(checkpoint)
    with layerwise.head() as head:
        assert torch.equal(head.weight, tensors["model.embed_tokens.weight"][:300])


def test_tokenizer_files_can_be_others(tmp_path: Path) -> None:
    make_model(tmp_path / "old")
    (tmp_path / "old/generation_config.json").write_text('{"eos_token_id": 2}')
    files = {"tokenizer_config.json": b'{"eos_token": "x"}', "vocab.json": b"{}"}
    write_folder(open_checkpoint(tmp_path / "old"), tmp_path / "new", tokenizer=files)
    for name in ("tokenizer.json", "generation_config.json"):
        assert (tmp_path / "new" / name).read_bytes() == (tmp_path / "old" / name).read_bytes()
    assert all((tmp_path / "new" / name).read_bytes() == data for name, data in files.items())


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    make_model(tmp_path / "old")
    old = open_checkpoint(tmp_path / "old")
    name = "model.layers.1.mlp.up_proj.weight"
    large = old.tensors[name].load()
    large[3, 5] = 1e5
    with pytest.raises(InputError, match=rf"{name} holds values beyond 65504"):
        write_folder(replaced(old, {name: large}), tmp_path / "new", "F16")
    assert not list((tmp_path / "new").iterdir())
    write_folder(replaced(old, {name: large}), tmp_path / "new", "BF16")
    with pytest.raises(InputError, match="is the model that is read"):
        write_folder(old, tmp_path / "old/../old")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_folder(old, tmp_path / "file")
    same_tensors(old, open_checkpoint(tmp_path / "old"))


def test_interrupted_folders_are_no_models(tmp_path: Path) -> None:
    make_model(tmp_path / "old")
    old = open_checkpoint(tmp_path / "old")

    def stop(done: float) -> None:
        assert not (tmp_path / "new/config.json").exists()  # a killed process would leave it so
        if done > 50_000:
            raise KeyboardInterrupt

    write_folder(old, tmp_path / "new")
    with pytest.raises(KeyboardInterrupt):
        write_folder(old, tmp_path / "new", progress=stop)
    assert not list((tmp_path / "new").iterdir())


def test_a_slice_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model(tmp_path / "old", intermediate_size=4096, num_hidden_layers=1)
    old = open_checkpoint(tmp_path / "old")
    monkeypatch.setattr(folders, "CHUNK_BYTES", 16_384)
    (tmp_path / "old/tokenizer.json").write_text("{}")  # read whole
    tracemalloc.start()
    write_folder(old, tmp_path / "new", "F16")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400_000 < max(spec.count for spec in old.specs()) * 4
    whole = load_file(tmp_path / "old/model.safetensors")
    assert all(
        torch.equal(value, whole[name].half())
        for name, value in load_file(tmp_path / "new/model.safetensors").items()
    )


def test_values_are_replaced(tmp_path: Path) -> None:
    make_model(tmp_path / "old")
    old = open_checkpoint(tmp_path / "old")
    name, norm = "model.layers.0.mlp.down_proj.weight", "model.norm.weight"
    values = np.random.default_rng(0).standard_normal((64, 96)).astype(np.float32)
    np.save(tmp_path / "rows.npy", values)
    new = replaced(old, {name: tmp_path / "rows.npy", norm: np.ones(64)})
    np.testing.assert_array_equal(new.tensors[name].load(3, 9), values[3:9])
    np.testing.assert_array_equal(new.tensors[norm].load(), np.ones(64, np.float32))
    narrow = take(new, "ffn", [5, 1])
    np.testing.assert_array_equal(narrow.tensors[name].load(), values[:, [5, 1]])
    again = replaced(narrow, {name: narrow.tensors[name], norm: old.tensors[norm]})
    same_tensors(again, replaced(narrow, {norm: old.tensors[norm].load()}))
    np.save(tmp_path / "double.npy", values.astype(np.float64))
    np.save(tmp_path / "columns.npy", np.asfortranarray(values))
    (tmp_path / "text.npy").write_text("rows")
    for wrong, message in (
        ({name: values[:, :7]}, r"cannot become \[64, 7\]"),
        ({"model.norm.bias": np.ones(64)}, "no place"),
        ({name: tmp_path / "double.npy"}, "float32 rows, not float64"),
        ({name: tmp_path / "columns.npy"}, "in columns"),
        ({name: tmp_path / "text.npy"}, "no readable"),
        ({name: tmp_path / "absent.npy"}, "no readable"),
    ):
        with pytest.raises(InputError, match=message):
            replaced(old, wrong)


def test_defaults_of_the_family_are_written_out(tmp_path: Path) -> None:
    model = make_model(
        tmp_path / "old", "mistral", "no_window", num_attention_heads=16, num_key_value_heads=8
    )
    config = json.loads((tmp_path / "old/config.json").read_text())
    del config["num_key_value_heads"]
    config |= {"auto_map": {"AutoModelForCausalLM": "evil.Model"}, "_name_or_path": "elsewhere"}
    (tmp_path / "old/config.json").write_text(json.dumps(config))
    write_folder(open_checkpoint(tmp_path / "old"), tmp_path / "new")
    written = json.loads((tmp_path / "new/config.json").read_text())
    assert written["num_key_value_heads"] == 8
    assert written["sliding_window"] is None  # a missing one would be 4096
    assert not {"auto_map", "_name_or_path"} & written.keys()
    assert torch.equal(logits(loaded(tmp_path / "new")), logits(model))
