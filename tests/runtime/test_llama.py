from __future__ import annotations

import contextlib
import re
from pathlib import Path

import acts
import gguf
import numpy as np
import pytest
import tiny
import tiny_gguf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import naive_llama

from tenth.core import jobs
from tenth.core.errors import InputError, NativeError
from tenth.core.records import Runtime
from tenth.models.checkpoint import open_checkpoint
from tenth.models.formats.gguf import write_gguf
from tenth.runtime import llama, llama_h

PLAIN = Runtime(n_ctx=64, n_ubatch=64, threads=1)
EXACT = PLAIN.model_copy(update={"type_k": "f32", "type_v": "f32", "flash_attention": False})
TOKENS = [5, 80, 299, 1, 80, 80, 42, 7, 250, 3, 111]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("native") / "model.gguf")


def test_the_pin_is_the_projects() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert re.search(r'"xllamacpp==([^"]+)"', text)[1] == llama.PINNED


def test_build_names_version_and_features() -> None:
    assert llama.build().startswith("llama.cpp b11549 (")


def test_other_structures_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(llama_h.CONTEXT_DEFAULTS, "n_ubatch", 513)
    with pytest.raises(NativeError, match=r"n_ubatch=512.*pip install xllamacpp=="):
        llama.library.__wrapped__()


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama, "PINNED", "1.2.3")
    with pytest.raises(NativeError, match=r"xllamacpp \S+ is installed, 1\.2\.3 is needed"):
        llama.library.__wrapped__()


def test_logits_are_those_of_a_naive_forward_pass(model: Path) -> None:
    with llama.Session.open(model, EXACT) as session:
        ours = session.decode(TOKENS)
    theirs = naive_llama.logits(model, TOKENS)
    assert ours.shape == (len(TOKENS), 300)
    assert np.abs(ours - theirs).max() < 1e-4


def test_pieces_last_logits_and_clear(model: Path) -> None:
    with llama.Session.open(model, EXACT) as whole:
        expected = whole.decode(TOKENS)
    small = EXACT.model_copy(update={"n_ubatch": 2})
    with llama.Session.open(model, small, n_batch=4, outputs=4) as session:
        assert np.allclose(session.decode(TOKENS), expected, atol=1e-4)
        session.clear()
        session.decode(TOKENS[:6], 0, all_logits=False)
        assert np.allclose(session.decode(TOKENS[6:], 6, all_logits=False), expected[-1:], atol=1e-4)


def test_a_text_can_be_rolled_back(model: Path) -> None:
    with llama.Session.open(model, EXACT) as session:
        whole = session.decode(TOKENS)
        session.clear()
        session.decode([*TOKENS[:5], 9, 9, 9])
        assert session.keep(5)
        assert np.allclose(session.decode(TOKENS[5:], 5), whole[5:], atol=1e-4)
        assert session.keep(0)
        assert np.allclose(session.decode(TOKENS), whole, atol=1e-4)


def test_a_window_of_attention_is_kept_whole(tmp_path: Path) -> None:
    checkpoint = tiny.make_model(tmp_path, "gemma3_text") and open_checkpoint(tmp_path)
    path = tmp_path / "model.gguf"
    write_gguf(checkpoint, {s.name: "F32" for s in checkpoint.specs() if s.linear}, path)
    tokens = [1 + i % 90 for i in range(60)]
    longer = EXACT.model_copy(update={"n_ctx": 256, "n_ubatch": 8})
    with llama.Session.open(path, longer, swa_full=True) as session:
        whole = session.decode(tokens)
        assert session.keep(10)
        assert np.allclose(session.decode(tokens[10:], 10), whole[10:], atol=1e-3)


def test_pieces_of_tokens(model: Path) -> None:
    tokens, _ = tiny_gguf.vocabulary(300)
    back = {character: byte for byte, character in enumerate(tiny_gguf.byte_alphabet())}
    with llama.Session.open(model, PLAIN) as session:
        for token in range(1, 300):
            assert session.piece(token) == bytes(back[c] for c in tokens[token])
            assert not session.ends(token)
        assert session.piece(0) == b"<|end|>"
        assert session.ends(session.end)
        assert session.end == 0
        assert session.n_trained > 0


def test_buffers_are_read_from_the_log(tmp_path: Path) -> None:
    path = tiny_gguf.write(tmp_path / "q.gguf", hidden=128, ffn=256, layers=4, kind="Q4_0", vocab=512)
    runs = {}
    for repack in (False, True):
        runtime = Runtime(n_ctx=512, n_ubatch=8, repack=repack, threads=1)
        with llama.Session.serving(path, runtime) as session:
            runs[repack] = session.buffers
            assert session.n_ctx == 512
    assert runs[False]["kv"] == 4 * 512 * 2 * 64 * 2  # layers, cells, K and V, width, f16
    assert abs(runs[False]["mapped"] - path.stat().st_size) < 20_000
    assert runs[False]["compute"] > 0
    assert runs[False]["repack"] == 0
    if "AVX2" in llama.build():
        assert runs[True]["repack"] > 0


def test_tokenize(model: Path) -> None:
    with llama.Session.open(model, PLAIN) as session:
        ids = session.tokenize("<|end|>naïve €")
        assert ids.dtype == np.int32
        assert ids[0] == 0
        plain = session.tokenize("<|end|>", parse=False)
        assert 0 not in plain
        assert session.tokenize("").size == 0
        tokens, _ = tiny_gguf.vocabulary(300)
        back = {character: byte for byte, character in enumerate(tiny_gguf.byte_alphabet())}
        assert bytes(back[c] for i in ids[1:] for c in tokens[i]).decode() == "naïve €"


def test_files_that_are_no_models(tmp_path: Path, model: Path) -> None:
    with pytest.raises(InputError, match="no GGUF file"):
        llama.Session.open(tmp_path / "absent.gguf", PLAIN)
    text = tmp_path / "text.gguf"
    text.write_text("not a model at all, but long enough to have a header")
    with pytest.raises(NativeError, match=r"cannot load .*text\.gguf: "):
        llama.Session.open(text, PLAIN)
    short = tmp_path / "short.gguf"
    short.write_bytes(model.read_bytes()[: model.stat().st_size // 2])
    with pytest.raises(NativeError, match=r"cannot load .*short\.gguf: .*"):
        llama.Session.open(short, PLAIN)


def test_settings_that_llama_cpp_refuses(model: Path) -> None:
    with pytest.raises(NativeError, match="quantized V cache requires flash_attn"):
        llama.Session.open(model, EXACT.model_copy(update={"type_v": "q8_0"}))
    with pytest.raises(InputError, match="unknown ggml type 'Q9_X'; known: "):
        llama.Session.open(model, PLAIN.model_copy(update={"type_k": "Q9_X"}))


def test_tokens_that_do_not_fit(model: Path) -> None:
    with llama.Session.open(model, PLAIN.model_copy(update={"n_ctx": 256})) as session:
        for ids in ([], [300], [-1]):
            with pytest.raises(NativeError, match=r"0\.\.299"):
                session.decode(ids)
        with pytest.raises(NativeError, match="context of 256"):
            session.decode([1, 2], 255)
    with pytest.raises(NativeError, match="open session"):
        session.decode([1])


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_1", "Q8_0", "TQ2_0", "BF16"])
def test_encoders_and_decoders_are_bit_exact(kind: str) -> None:
    weights = np.random.default_rng(1).standard_normal((3, 512)).astype(np.float32)
    number = gguf.GGMLQuantizationType[kind]
    expected = gguf.quants.quantize(weights, number)
    lib, out = llama.library(), np.empty_like(expected)
    written = lib.ggml_quantize_chunk(number, weights.ctypes.data, out.ctypes.data, 0, 3, 512, None)
    assert written == out.nbytes
    assert np.array_equal(out, expected)
    assert np.array_equal(llama.dequantize(out, kind, 512), gguf.quants.dequantize(expected, number))


def test_decoder_checks_sizes() -> None:
    with pytest.raises(InputError, match="rows of 18 bytes are not rows of 64 weights in Q4_0"):
        llama.dequantize(np.zeros((2, 18), np.uint8), "Q4_0", 64)
    weights = np.arange(64, dtype=np.float32).reshape(2, 32)
    assert np.array_equal(llama.dequantize(weights.view(np.uint8), "f32", 32), weights)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1), value=st.integers(0, 255), length=st.integers(1, 40))
def test_a_damaged_file_never_ends_us(
    tmp_path: Path, model: Path, place: float, value: int, length: int
) -> None:
    data = bytearray(model.read_bytes())
    begin = int(place * 12_000)  # in the header
    data[begin : begin + length] = bytes([value]) * length
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(data)
    with contextlib.suppress(NativeError):
        assert jobs.run(acts.OpenFile(path=damaged), around=jobs.Surroundings(timeout=20)) > 0
