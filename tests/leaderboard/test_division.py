from __future__ import annotations

from pathlib import Path
from typing import Any

import forged
import gguf
import numpy as np
import pytest
import tiny_gguf

from tenth.core.records import Runtime
from tenth.devices import catalogue, energy, speed
from tenth.leaderboard import division, estimates
from tenth.models.checkpoint import open_checkpoint
from tenth.models.formats.gguf import write_gguf
from tenth.models.formats.inspect import Header, Stored, read_header
from tenth.models.source import bundled
from tenth.quantization import recipes
from tenth.quantization.encode import Rounding


def ignore(event: dict[str, Any]) -> None:
    pass


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return forged.model(tmp_path_factory.mktemp("division") / "original.gguf")


def test_cosines_are_those_of_the_reference_decoder(original: Path, tmp_path: Path) -> None:
    other = forged.model(tmp_path / "other.gguf", kind="Q4_0")
    found = division.CompareWeights(gguf=other, original=original).run(ignore)
    theirs = {t.name: np.array(t.data, np.float64).ravel() for t in gguf.GGUFReader(original).tensors}
    for tensor in gguf.GGUFReader(other).tensors:
        mine = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float64).ravel()
        wanted = mine @ theirs[tensor.name] / np.linalg.norm(mine) / np.linalg.norm(theirs[tensor.name])
        assert found[tensor.name] == pytest.approx(wanted, abs=1e-6)
    assert division.near(found).passed
    random = forged.model(tmp_path / "random.gguf", seed=9)
    apart = division.near(division.CompareWeights(gguf=random, original=original).run(ignore))
    assert not apart.passed
    assert apart.value == pytest.approx(0, abs=0.1)


def test_weights_that_are_no_numbers_are_not_near(original: Path, tmp_path: Path) -> None:
    spoilt = tiny_gguf.write(tmp_path / "nan.gguf", spoil="output_norm.weight")
    assert division.CompareWeights(gguf=spoilt, original=original).run(ignore)["output_norm.weight"] == 0


def _with(header: Header, **changed: Stored | None) -> Header:
    tensors = {name: tensor for name, tensor in header.tensors.items() if changed.get(name, tensor)}
    tensors |= {name: tensor for name, tensor in changed.items() if tensor}
    return Header(header.keys, tensors, header.size)


def test_the_same_tensors_and_a_tied_head_beside(original: Path) -> None:
    header = read_header(original)
    embedding = header.tensors["token_embd.weight"]
    head = Stored("output.weight", "F32", embedding.shape, 0, 0)
    assert division.same_model(header, header) == ""
    assert division.same_model(_with(header, **{"output.weight": head}), header) == ""
    narrow = Stored("output.weight", "F32", (8, 8), 0, 0)
    for changed in ({"output.weight": narrow}, {"output_norm.weight": None}, {"more.weight": head}):
        said = division.same_model(_with(header, **changed), header)
        assert next(iter(changed)) in said
    assert "none" in division.same_model(header, _with(header, **{"output.weight": head}))
    family = Header(header.keys | {"general.architecture": "qwen2"}, header.tensors, header.size)
    assert "architecture is qwen2" in division.same_model(family, header)


def test_a_folder_becomes_a_gguf_of_its_own_types(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(bundled())
    division.Convert(source=bundled(), destination=tmp_path / "model.gguf").run(ignore)
    header = read_header(tmp_path / "model.gguf")
    assert division.stored("structure", header) == ""
    specs = checkpoint.specs()
    assert header.tensors.keys() == {spec.name for spec in specs}
    for spec in specs:
        wanted = checkpoint.tensors[spec.source].dtype if spec.linear else "F32"
        assert header.tensors[spec.name].type == wanted
    found = division.CompareWeights(gguf=tmp_path / "model.gguf", original=tmp_path / "model.gguf").run(
        ignore
    )
    assert min(found.values()) == pytest.approx(1)


def test_what_the_device_will_do_is_what_a_plan_says(tmp_path: Path) -> None:
    checkpoint, device = open_checkpoint(bundled()), catalogue.load("pixel-8")
    types = recipes.types("Q4_K_M", checkpoint.specs(), 2)
    write_gguf(checkpoint, types, tmp_path / "model.gguf", Rounding(lambda _: None))
    runtime = Runtime(n_ctx=1000, n_ubatch=64, type_k="q8_0", type_v="f16")
    decode, joules = estimates.expected(read_header(tmp_path / "model.gguf"), runtime, 4000, device)
    read = speed.read_bytes(checkpoint.specs(), types)
    for kind in ("Q8_0", "F16"):
        read[kind] = read.get(kind, 0) + 1000
    rates = speed.rates(device)
    wanted = speed.decode(rates, read)
    assert decode.value == pytest.approx(wanted.value)
    assert decode.unit == "tokens/s"
    assert decode.kind in ("predicted", "estimated")
    per_token = energy.per_token(device, wanted, sum(read.values()), rates.sustained)
    assert joules.value == pytest.approx(per_token.value)
    assert joules.kind == "estimated"
