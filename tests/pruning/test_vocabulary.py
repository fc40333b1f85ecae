"""Fewer tokens: every text still round-trips, what is kept means what it meant, and llama.cpp agrees."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tokenizer import JSON, NASTY, PLACES, one_line, put_json
from tiny import CORPUS, make_model, write_tokenizer

from tenth.core import jobs
from tenth.core.errors import InputError
from tenth.core.records import Runtime
from tenth.distillation.budget import TrainingBudget
from tenth.distillation.settings import TrainingResult, TrainingSettings
from tenth.models.checkpoint import open_checkpoint
from tenth.models.formats.folder import write_folder
from tenth.models.formats.gguf import write_gguf
from tenth.models.formats.trim import Tokens, tokens_of, trimmed
from tenth.pipeline.stage import TextFile
from tenth.pipeline.stages import TrimVocabulary
from tenth.pruning.scripts import KNOWN, foreign, scripts
from tenth.pruning.vocabulary import KEPT, chosen, counted, retokenize, trim
from tenth.runtime.llama import Session

KINDS = {"gpt-2": 300, "qwen2": 290, "llama-bpe": 300, "llama": 340, "gemma": 340}  # kind -> size
SPELLED_BY_BYTES = ("llama", "gemma")
TEXT = " ".join(CORPUS[:2])
CHAT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"


def size_of(kind: str) -> int:
    return 640 if kind in SPELLED_BY_BYTES else 384


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """kind -> (folder of a tiny model, ids kept, folder of the trimmed one); each made once."""
    made: dict[str, tuple[Path, list[int], Path]] = {}

    def get(kind: str) -> tuple[Path, list[int], Path]:
        if kind not in made:
            old, new = tmp_path_factory.mktemp("old"), tmp_path_factory.mktemp("new")
            make_model(
                old, vocab_size=size_of(kind), num_hidden_layers=1, tie_word_embeddings=kind != "gpt-2"
            )
            write_tokenizer(old, kind)
            edited, files, kept = trim(open_checkpoint(old), KINDS[kind], TEXT)
            write_folder(edited, new, tokenizer=files)
            made[kind] = old, kept, new
        return made[kind]

    return get


def opened(folder: Path) -> Any:
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def text_of(tokenizer: Any, text: str) -> str:
    found: str = tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_text_round_trips(kind: str, folders: Any) -> None:
    before, after = (opened(folder) for folder in (folders(kind)[0], folders(kind)[2]))

    def check(text: str) -> None:
        assert text_of(after, text) == text_of(before, text), text
        if kind not in SPELLED_BY_BYTES:
            assert text_of(after, text) == text

    for text in NASTY:
        check(text)
    characters = st.characters(exclude_categories=["Cs"]) | st.sampled_from(
        [*"\0\r\n\t\u2581", "🙂", "你", "\u202e"]
    )
    settings(max_examples=150, deadline=None, database=None)(
        given(st.text(characters, max_size=40) | st.sampled_from(CORPUS))(check)
    )()


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_keep_their_text_and_are_found_as_before(kind: str, folders: Any) -> None:
    old, kept, new = folders(kind)
    before, after = opened(old), opened(new)
    assert len(kept) <= KINDS[kind]
    assert kept == sorted(set(kept))
    assert after.get_vocab_size() == len(kept)
    assert [after.id_to_token(i) for i in range(len(kept))] == [before.id_to_token(i) for i in kept]
    place = {token: i for i, token in enumerate(kept)}
    same = 0
    for text in [*NASTY, *CORPUS, *" ".join(CORPUS).split()]:
        ids = before.encode(text).ids
        if place.keys() >= set(ids):
            assert after.encode(text).ids == [place[token] for token in ids], text
            same += 1
    assert same


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_agrees(kind: str, folders: Any) -> None:
    folder = folders(kind)[2]
    write_gguf(open_checkpoint(folder), {}, folder / "model.gguf")
    tokenizer = opened(folder)
    with Session.open(folder / "model.gguf", Runtime(n_ctx=256, n_ubatch=32, threads=1)) as session:
        for text in [*NASTY, *CORPUS]:
            ids = session.tokenize(text, special=True, parse=True).tolist()
            assert ids == tokenizer.encode(text).ids, text


@pytest.mark.parametrize("kind", ["gpt-2", "llama"])  # an untied head, and a tied one
def test_logits_are_the_originals_rows(kind: str, folders: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    old, kept, new = folders(kind)
    tokens = torch.arange(20)[None] % len(kept)
    with torch.no_grad():
        before = AutoModelForCausalLM.from_pretrained(old)(torch.tensor(kept)[tokens]).logits
        after = AutoModelForCausalLM.from_pretrained(new)(tokens).logits
    assert after.shape[-1] == len(kept)
    assert torch.allclose(after, before[..., kept], atol=1e-5)


def test_special_tokens_keep_their_meaning(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    old, new = tmp_path / "old", tmp_path / "new"
    make_model(old, num_hidden_layers=1, eos_token_id=[2, 0], pad_token_id=383)
    write_tokenizer(old, "qwen2")
    ids = json.loads((old / "tokenizer.json").read_text())["model"]["vocab"]
    named = {"eos_token": "<|im_end|>", "chat_template": CHAT, "tokenizer_class": "PreTrainedTokenizerFast"}
    entry = {"content": "<tool>", "lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    tool = len(ids)
    named["added_tokens_decoder"] = {str(tool): {**entry, "special": False}}
    (old / "tokenizer_config.json").write_text(json.dumps(named))
    (old / "added_tokens.json").write_text(json.dumps({"<tool>": tool}))
    generation = {
        "eos_token_id": [0, 2],
        "suppress_tokens": [tool, ids["Ġthe"]],
        "bad_words_ids": [[ids["Ġthe"]]],
    }
    (old / "generation_config.json").write_text(json.dumps(generation))
    edited, files, kept = trim(open_checkpoint(old), 262, "")
    write_folder(edited, new, tokenizer=files)
    config = json.loads((new / "config.json").read_text())
    assert config["eos_token_id"] == [kept.index(2), kept.index(0)]
    assert config.get("pad_token_id") is None  # a row of padding, which is gone
    assert (config["vocab_size"], open_checkpoint(new).config["vocab_size"]) == (len(kept), len(kept))
    place = kept.index(tool)
    assert json.loads((new / "added_tokens.json").read_text()) == {"<tool>": place}
    assert list(json.loads((new / "tokenizer_config.json").read_text())["added_tokens_decoder"]) == [
        str(place)
    ]
    assert json.loads((new / "generation_config.json").read_text()) == {
        "eos_token_id": [0, 2],
        "suppress_tokens": [place],
        "bad_words_ids": [],
    }
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (old, new))
    messages = [{"role": "user", "content": "the dog<tool> 🙂"}, {"role": "assistant", "content": "it's"}]
    spelled = [t.apply_chat_template(messages, tokenize=False) for t in (before, after)]
    found = [
        t(text, add_special_tokens=False)["input_ids"]
        for t, text in zip((before, after), spelled, strict=True)
    ]
    assert spelled[0] == spelled[1]
    assert after.decode(found[1]) == before.decode(found[0]) == spelled[0]
    assert found[1].count(after.eos_token_id) == found[0].count(before.eos_token_id) == 2


def test_template_and_padding_ids_follow(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "gemma")
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    moved = {
        text: token + 5 for text, token in data["model"]["vocab"].items()
    }  # the first five ids are padding
    for entry in data["added_tokens"]:
        entry["id"] += 5
    data["post_processor"]["special_tokens"]["<bos>"]["ids"] = [moved["<bos>"]]
    data["padding"] = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None}
    data["padding"] |= {"pad_id": moved["<pad>"], "pad_type_id": 0, "pad_token": "<pad>"}
    data["model"]["vocab"] = moved
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    kept = chosen(tmp_path, np.zeros(1, np.int64), 300)
    assert kept[0] == 5
    (tmp_path / "tokenizer.json").write_bytes(trimmed(tmp_path, kept)["tokenizer.json"])
    after = opened(tmp_path)
    assert after.encode("a").ids[0] == after.token_to_id("<bos>") == kept.index(moved["<bos>"])
    assert after.padding["pad_id"] == after.token_to_id("<pad>")


def naive(tokens: Tokens, counts: np.ndarray, size: int) -> list[int]:
    """The rule as the module states it: of the tokens that nothing is merged from the cheapest goes."""
    uses = {token: int(counts[token]) if token < len(counts) else 0 for token in tokens.texts}
    left = {*tokens.fixed, *tokens.parts}
    while len(left) > size:
        needed = {part for token in left for part in tokens.parts.get(token, ())}
        free = [token for token in left if token in tokens.parts and token not in needed]
        token = min(free, key=lambda t: (uses[t] * (len(tokens.parts[t]) - 1), -t))
        left.remove(token)
        for part in tokens.parts[token]:
            uses[part] += uses[token]
    return sorted(left)


@pytest.mark.parametrize("kind", ["gpt-2", "llama"])
def test_the_cheapest_go(kind: str, folders: Any) -> None:
    folder = folders(kind)[0]
    tokens = tokens_of(folder)

    @settings(max_examples=20, deadline=None, database=None)
    @given(
        st.lists(st.integers(0, 9), min_size=300, max_size=640),
        st.integers(len(tokens.fixed) + 1, len(tokens.texts)),
    )
    def check(counts: list[int], size: int) -> None:
        found = np.array(counts, np.int64)
        assert chosen(folder, found, size) == naive(tokens, found, size)

    check()


def test_counts_are_the_tokenizers(folders: Any) -> None:
    folder = folders("gpt-2")[0]
    text = "\n".join([CORPUS[0]] * 100)  # several pieces
    found = counted(folder, text)
    expected = np.bincount(opened(folder).encode(text).ids)
    assert found.sum() == expected.sum()
    assert np.array_equal(found[: len(expected)], expected)
    assert counted(folder, "").sum() == 0


def test_languages(folders: Any) -> None:
    folder = folders("gpt-2")[0]
    tokens = tokens_of(folder)
    none, everything = np.zeros(1, np.int64), len(tokens.texts)
    assert chosen(folder, none, everything) == sorted(tokens.texts)
    for languages, alien in ((["en"], "Пр"), (["ru"], "αβ")):
        kept = chosen(folder, np.ones(999, np.int64), everything, scripts(languages))
        spelled = [tokens.spelled(token) for token in kept if token not in tokens.fixed]
        assert not any(foreign(text, scripts(languages)) for text in spelled)
        assert " the" in spelled
        assert foreign(alien, scripts(languages))
    assert not foreign("你好 abc 1", scripts(["en"]))  # a part of it may be needed
    assert not foreign("'123\u0301\u200d🙂", scripts(["en"]))
    assert scripts(["pt-BR", "sr"]) == {"LATIN", "CYRILLIC"}
    for text, code in (
        ("日本ひカ", "ja"),
        ("한", "ko"),
        ("汉", "zh"),
        ("नमस्ते", "hi"),
        ("สวัส", "th"),
        ("ﾊﾝ", "ja"),
    ):
        assert not foreign(text, scripts([code]))
        assert foreign(text, scripts(["en"]))
    with pytest.raises(InputError, match=r"unknown language 'klingon'.*Known: af, am"):
        scripts(["klingon"])
    assert len(KNOWN) > 90


def test_refused(folders: Any, tmp_path: Path) -> None:
    folder, kept, _ = folders("gpt-2")
    tokens, none = tokens_of(folder), np.zeros(1, np.int64)
    least = len(tokens.fixed) + 1
    with pytest.raises(InputError, match=f"one more are {least}"):
        chosen(folder, none, least - 1)
    assert chosen(folder, none, least) == sorted({*tokens.fixed, min(tokens.parts)})
    for wrong, message in ((kept[1:], "must be kept"), (kept[::-1], "ascending"), ([], "ascending")):
        with pytest.raises(InputError, match=message):
            trimmed(folder, wrong)
    with pytest.raises(InputError, match="neither"):
        tokens_of(tmp_path)
    write_tokenizer(tmp_path, "gpt-2")
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    for change, message in (
        ({"pre_tokenizer": None}, "spells no bytes"),
        ({"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}, "Unigram"),
    ):
        (tmp_path / "tokenizer.json").write_text(json.dumps({**data, **change}))
        with pytest.raises(InputError, match=message):
            tokens_of(tmp_path)


def test_in_a_child(folders: Any, tmp_path: Path) -> None:
    folder = folders("qwen2")[0]
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    file, new = TextFile.of(text), tmp_path / "new"
    new.mkdir()
    stage = TrimVocabulary(model=folder, text=file, size=280, languages=("en",), folder=new)
    events: list[dict[str, Any]] = []
    found = jobs.run(stage, events.append)
    assert (found.vocabulary, found.before) == (280, 384)
    assert found.tokens_before == len(opened(folder).encode(TEXT).ids)
    assert found.tokens == len(opened(tmp_path / "new").encode(TEXT).ids) > found.tokens_before
    kept = np.load(tmp_path / "new" / KEPT)
    rows = open_checkpoint(folder).tensors["model.embed_tokens.weight"].load()[kept]
    assert np.array_equal(open_checkpoint(tmp_path / "new").tensors["model.embed_tokens.weight"].load(), rows)
    assert events[-1]["done"] == events[-1]["total"]


@pytest.mark.parametrize("kind", ["gpt-2", "llama"])
def test_what_a_token_falls_apart_into(kind: str, folders: Any) -> None:
    """The translated tokens of each word of the corpus are those of the trimmed tokenizer."""
    old, kept, new = folders(kind)
    before, after, pieces_of = opened(old), opened(new), retokenize(old, kept)
    for word in " ".join(CORPUS).split():
        found = [piece for token in before.encode(word).ids for piece in pieces_of[token]]
        assert found == after.encode(word).ids, word


def test_targets_are_of_the_same_text(folders: Any) -> None:
    """Against a loop over tokens and pieces; and where nothing was trimmed, against the plain KL."""
    import torch

    from tenth.distillation.cross_tokenizer import Aligned

    folder, kept, _ = folders("gpt-2")
    generator, size = torch.Generator().manual_seed(0), 384
    windows = np.array([opened(folder).encode(text * 3).ids[:40] for text in CORPUS[:2]], np.int32)
    logits = torch.randn(2, 40, size, generator=generator)
    whole = Aligned(lambda ids: logits, windows, [(i,) for i in range(size)])
    other = torch.randn(2, 40, size, generator=generator)
    p, q = (x[:, :-1].log_softmax(-1) for x in (logits, other))
    plain = (p.exp() * (p - q)).sum(-1).mean()
    assert float(whole.divergence(other, np.arange(2))) == pytest.approx(float(plain), rel=1e-5)

    pieces_of = retokenize(folder, kept)
    assert len(pieces_of) < size  # the embedding has padding
    targets = Aligned(lambda ids: logits[[0 if ids[0, 0] == windows[0, 0] else 1]], windows, pieces_of)
    other = torch.randn(2, targets.windows.shape[1], len(kept), generator=generator)
    total, chances = 0.0, logits[..., : len(pieces_of)].softmax(-1)
    for row in (0, 1):
        said, at = other[row].log_softmax(-1), 0
        for i, token in enumerate(windows[row]):
            parts = pieces_of[token]
            assert targets.windows[row, at : at + len(parts)].tolist() == list(parts)
            for number in range(1, len(parts) + 1):
                at += 1
                over = number == len(parts)
                if (over and i == 39) or (not over and not i):
                    continue
                wanted, ending = torch.zeros(len(kept)), 1.0
                if i:
                    ending = 0.0
                    for each, chance in zip(pieces_of, chances[row, i - 1], strict=True):
                        if each == parts[:number]:
                            ending = float(chance)
                        elif each[:number] == parts[:number]:
                            wanted[each[number]] += chance
                    every = ending + float(wanted.sum())
                    ending, wanted = ending / every, wanted / every
                going = wanted > 0
                if over:
                    for each, chance in zip(pieces_of, chances[row, i], strict=True):
                        if each:
                            wanted[each[0]] += ending * chance
                elif ending:
                    total += ending * (math.log(ending) - float(said[at - 1][~going].logsumexp(-1)))
                total += float((wanted * (wanted.clamp_min(1e-30).log() - said[at - 1])).sum())
    found = np.mean([float(targets.divergence(other[[row]], np.array([row]))) for row in (0, 1)])
    assert found == pytest.approx(total / (2 * 39), rel=1e-4)
    assert sum(len(pieces_of[token]) > 1 for token in windows.ravel()) > 5


@settings(max_examples=200, deadline=None, database=None)
@given(
    JSON,
    st.sampled_from([*PLACES, "added_tokens.json/<tool>", "generation_config.json/eos_token_id"]),
    st.data(),
)
def test_hostile_json_is_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, value: Any, place: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("hostile")
    write_tokenizer(folder, data.draw(st.sampled_from(["gpt-2", "llama"])))
    put_json(folder, place, value)
    try:
        trimmed(folder, chosen(folder, np.zeros(1, np.int64), 400))
    except InputError as error:
        one_line(error)


def test_half_of_the_windows_begin_a_text() -> None:
    from tenth.distillation.cross_tokenizer import begun

    windows = np.arange(12, dtype=np.int32).reshape(4, 3)
    assert begun(windows, 99).tolist() == [[99, 0, 1], [3, 4, 5], [99, 6, 7], [9, 10, 11]]
    assert begun(windows, None).tolist() == windows.tolist()


def test_healing_teaches_the_pieces(folders: Any, tmp_path: Path) -> None:
    """The loss falls on windows held back; another run gives the same weights."""
    from tenth.distillation import cross_tokenizer

    old, kept, _ = folders("gpt-2")
    tokens = np.array(opened(old).encode(" ".join(CORPUS) * 40).ids, np.int32)
    np.save(tmp_path / "tokens.npy", tokens[: len(tokens) // 32 * 32].reshape(-1, 32))
    edited, files, _ = trim(open_checkpoint(old), KINDS["gpt-2"], TEXT)
    write_folder(edited, tmp_path / "trimmed", tokenizer=files)

    def run(name: str, budget: str, emit: Any = lambda event: None) -> TrainingResult:
        settings = TrainingSettings(
            model=tmp_path / "trimmed",
            original=old,
            tokens=tmp_path / "tokens.npy",
            folder=tmp_path / name,
            training_budget=TrainingBudget.parse(budget),
            seed=0,
            threads=1,
            rate=3e-3,
        )
        return cross_tokenizer.distil_vocabulary(settings, emit)

    with pytest.raises(InputError, match=KEPT):
        run("a", "3200tok")
    np.save(tmp_path / "trimmed" / KEPT, np.array(kept, np.int64))
    with pytest.raises(InputError, match="in tokens"):
        run("a", "1min")
    events: list[dict[str, Any]] = []
    found = run("a", "3200tok", events.append)
    assert found.after < 0.7 * found.before
    assert events[-1]["done"] == events[-1]["total"]
    run("b", "3200tok")
    first, second = (open_checkpoint(tmp_path / name) for name in "ab")
    for spec in first.specs():
        assert np.array_equal(first.tensors[spec.source].load(), second.tensors[spec.source].load())
    assert opened(tmp_path / "a").encode(TEXT).ids == opened(tmp_path / "trimmed").encode(TEXT).ids
    assert not (tmp_path / "a" / "healing").exists()
