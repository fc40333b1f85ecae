"""Token ids of llama.cpp under our metadata are those of Hugging Face's tokenizers."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import byte_level, make_model, regexes, sentencepiece_style, write_tokenizer
from transformers import AutoTokenizer

from tenth.calibration.same_tokens import check_tokens
from tenth.core.errors import InputError
from tenth.core.records import Runtime
from tenth.models.checkpoint import open_checkpoint
from tenth.models.formats.gguf import model_metadata, write_gguf
from tenth.models.formats.tokenizer import tokenizer_metadata
from tenth.models.formats.trim import trimmed
from tenth.pruning.vocabulary import chosen
from tenth.runtime.llama import LlamaVocabulary, Session
from tenth.runtime.tokens import tokenizer

NASTY = [
    "",
    " ",
    "\n",
    "a",
    "  leading and trailing  ",
    "naïve café — Straße “quotes” … ½ ² ٣ Ⅷ",
    "e\u0301 combining a\u0308\u0323, zero\u200bwidth\u200d \ufeffBOM nb\u00a0space \u3000wide",
    "🙂👍🏽👨‍👩‍👧 flags🇩🇪",
    "你好，世界。こんにちは！한국어 텍스트",
    "שלום עולם, مرحبا بالعالم، नमस्ते",
    "0 12 345 6789 1234567890 3.14159 1,000,000 0x1F",
    "newlines\n\nand\n\n\nmore\r\n\r\nwindows\n \n  \n\tmixed\t\t \n",
    "tabs\t\ttabs    four     five",
    "def f(x):\n    if x != 10 and y:\n        return {'a': [1, 2], \"b\": None}  # it's\n",
    "it's we'll I'VE they'RE 'tis rock'n'roll don't DON'T",
    "non-stop .com @user #tag $5 100% a_b C++ <html> ((nested))!!??...",
    'x\n-dash y\t.dot z\n"quoted"',
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
    "a<tool>b <tool> c",
    "<s>text</s> <start_of_turn>user\nhi<end_of_turn>\n<unk>",
    "ALLCAPS camelCase snake_case TitleCase HTTPServer",
    "\u2581 visible space",
]
BYTE_LEVEL = ["gpt-2", "smollm", "qwen2", "qwen35", "llama-bpe", "dbrx", "tekken", "gpt-4o"]
# llama.cpp knows upper from lower case only in ASCII for these; the info's note says so.
ASCII_CASE = ("tekken", "gpt-4o")
KINDS = [*BYTE_LEVEL, "llama", "gemma"]


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """kind -> (open session, tokenizer); each made once."""
    opened: dict[str, tuple[Session, Any]] = {}

    def get(kind: str) -> tuple[Session, Any]:
        if kind not in opened:
            folder = tmp_path_factory.mktemp("tokenizer")
            size = 640 if kind in ("llama", "gemma") else 384
            make_model(folder, vocab_size=size, num_hidden_layers=1)
            tokenizer = write_tokenizer(folder, kind)
            write_gguf(open_checkpoint(folder), {}, folder / "model.gguf")
            opened[kind] = (
                Session.open(folder / "model.gguf", Runtime(n_ctx=256, n_ubatch=32, threads=1)),
                tokenizer,
            )
        return opened[kind]

    yield get
    for session, _ in opened.values():
        session.close()


def one_line(error: InputError) -> None:
    assert "\n" not in str(error)


def same(session: Session, tokenizer: Any, text: str) -> None:
    found = session.tokenize(text, special=True, parse=True).tolist()
    expected = tokenizer.encode(text).ids
    assert found == expected, text


@pytest.mark.parametrize("kind", KINDS)
def test_nasty_text(kind: str, sessions: Any) -> None:
    session, tokenizer = sessions(kind)
    for text in NASTY:
        if kind in ASCII_CASE and not text.isascii():
            continue
        same(session, tokenizer, text)


ALPHABET = st.sampled_from(
    [*"aZ sdt'\"-.!/09\n\t\r_<|>éß中ا🙂½", "\u0301", "'ll", "  ", "\n\n", "\u00a0", "\u2581"]
)


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ASCII_CASE])
def test_random_text(kind: str, sessions: Any) -> None:
    session, tokenizer = sessions(kind)

    @settings(max_examples=150, deadline=None, database=None)
    @given(st.lists(ALPHABET, max_size=12).map("".join))
    def check(text: str) -> None:
        same(session, tokenizer, text)

    check()


def test_any_space_before_punctuation(sessions: Any) -> None:
    """The bundled models' own definition: exact but where the note says otherwise."""
    session, tokenizer = sessions("any-space")
    for text in NASTY:
        if "\n-dash" not in text:
            same(session, tokenizer, text)

    @settings(max_examples=150, deadline=None, database=None)
    @given(
        st.lists(
            ALPHABET.filter(lambda piece: piece not in ("\n", "\n\n", "\t", "\r", "\u00a0")), max_size=12
        ).map("".join)
    )
    def check(text: str) -> None:
        same(session, tokenizer, text)

    check()


def test_any_space_with_merges_of_space_is_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "any-space-merged")
    with pytest.raises(InputError, match="other token ids"):
        tokenizer_metadata(tmp_path, {"vocab_size": 400})


@pytest.mark.parametrize("kind", [*BYTE_LEVEL, "any-space"])
def test_recognised_by_definition(kind: str, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, kind)
    info = tokenizer_metadata(tmp_path, {"vocab_size": 400})
    assert info.keys["tokenizer.ggml.pre"] == ("qwen2" if kind == "any-space" else kind)
    assert bool(info.notes) == (kind in (*ASCII_CASE, "any-space"))


def test_composed_text_under_nfc(sessions: Any, tmp_path: Path) -> None:
    """Qwen2 composes Unicode first; llama.cpp does not, which a note says. Composed text is the same."""
    write_tokenizer(tmp_path, "qwen2")
    edit(tmp_path, normalizer={"type": "NFC"})
    assert "NFC" in tokenizer_metadata(tmp_path, {"vocab_size": 400}).notes[0]
    composing = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in NASTY:
        same(sessions("qwen2")[0], composing, unicodedata.normalize("NFC", text))


def edit(folder: Path, **changes: Any) -> None:
    data = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**data, **changes}))


def test_keys(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "qwen2")
    keys = tokenizer_metadata(tmp_path, {"vocab_size": 400, "eos_token_id": [0, 2], "bos_token_id": 1}).keys
    count = byte_level("qwen2").get_vocab_size()
    assert keys["tokenizer.ggml.tokens"][:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert keys["tokenizer.ggml.tokens"][count - 2 :] == [
        "<tool>",
        "    ",
        *(f"[PAD{i}]" for i in range(count, 400)),
    ]
    assert keys["tokenizer.ggml.token_type"][:3] == [3, 3, 3]
    assert keys["tokenizer.ggml.token_type"][count - 2 : count + 1] == [4, 4, 5]
    assert [keys[f"tokenizer.ggml.{role}_token_id"] for role in ("bos", "eos", "eot")] == [1, 0, 2]
    assert not keys["tokenizer.ggml.add_bos_token"]
    assert keys["tokenizer.chat_template"] == "{{ messages[0].content }}"
    (tmp_path / "chat_template.jinja").write_text("other")
    assert tokenizer_metadata(tmp_path, {"vocab_size": 400}).keys["tokenizer.chat_template"] == "other"


def test_sentencepiece_keys(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "gemma")
    keys = tokenizer_metadata(tmp_path, {"vocab_size": 640}).keys
    assert keys["tokenizer.ggml.add_bos_token"]
    assert not keys["tokenizer.ggml.add_space_prefix"]
    assert keys["tokenizer.ggml.bos_token_id"] == sentencepiece_style("gemma").token_to_id("<bos>")
    assert keys["tokenizer.ggml.eot_token_id"] == sentencepiece_style("gemma").token_to_id("<end_of_turn>")
    assert keys["tokenizer.ggml.token_type"].count(6) == 256


def test_unknown_definition_names_the_nearest(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "qwen2")
    regex = regexes()["llama-bpe"][0].replace("{1,3}", "{1,7}")
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    edit(
        tmp_path,
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [split, {"type": "ByteLevel", "use_regex": False}],
        },
    )
    with pytest.raises(InputError, match=r"1,7.*nearest is 'llama-bpe'"):
        tokenizer_metadata(tmp_path, {"vocab_size": 400})


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("gpt-2", {"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}, "Unigram"),
        ("gpt-2", {"model": None}, "no model"),
        ("gpt-2", {"normalizer": {"type": "Lowercase"}}, "normalizer"),
        ("gpt-2", {"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace"),
        ("gpt-2", {"pre_tokenizer": None}, "malformed or missing"),
        ("gpt-2", {"added_tokens": [{"id": -1, "content": "x"}]}, "added token"),
        (
            "gpt-2",
            {"added_tokens": [{"id": 400 + i, "content": f"x{i}"} for i in range(65)]},
            "another model",
        ),
        ("llama", {"normalizer": None}, "visible"),
        ("llama", {"pre_tokenizer": {"type": "Digits", "individual_digits": True}}, "Digits"),
    ],
)
def test_refused(kind: str, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, kind)
    edit(tmp_path, **change)
    with pytest.raises(InputError, match=message):
        tokenizer_metadata(tmp_path, {"vocab_size": 400})


def test_merges_that_scores_cannot_express(tmp_path: Path) -> None:
    """A split that is missing among the merges: Hugging Face never joins it, llama.cpp would."""
    write_tokenizer(tmp_path, "llama")
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    made = [left + right for left, right in model["merges"]]
    double = next(i for i, text in enumerate(made) if made.count(text) > 1)
    edit(tmp_path, model={**model, "merges": model["merges"][:double] + model["merges"][double + 1 :]})
    with pytest.raises(InputError, match="not those of a SentencePiece model"):
        tokenizer_metadata(tmp_path, {"vocab_size": 640})


PLACES = [
    *(
        f"tokenizer.json/{key}"
        for key in ("model", "pre_tokenizer", "normalizer", "added_tokens", "post_processor")
    ),
    *(
        f"tokenizer.json/model/{key}"
        for key in ("type", "vocab", "merges", "byte_fallback", "ignore_merges", "unk_token")
    ),
    *(f"tokenizer_config.json/{key}" for key in ("bos_token", "eos_token", "add_bos_token", "chat_template")),
    *(
        f"tokenizer_config.json/{key}"
        for key in ("added_tokens_decoder", "extra_special_tokens", "image_token", "add_prefix_space")
    ),
    "special_tokens_map.json/additional_special_tokens",
    "special_tokens_map.json/mask_token",
    "added_tokens.json/<|x|>",
    "generation_config.json/eos_token_id",
]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "type",
                    "id",
                    "content",
                    "pretokenizers",
                    "single",
                    "SpecialToken",
                    "special_tokens",
                    "ids",
                    "sep",
                    "332",
                    "special",
                ]
            ),
            inner,
        )
    ),
    max_leaves=8,
)


def put_json(folder: Path, place: str, value: Any) -> None:
    """Set a key of a file of the folder, "file/key" or "file/outer/key"."""
    *outer, key = place.split("/")
    file = folder / outer[0]
    data = json.loads(file.read_text()) if file.is_file() else {}
    inner = data[outer[1]] if len(outer) > 1 else data
    inner[key] = value
    file.write_text(json.dumps(data))


@settings(max_examples=200, deadline=None, database=None)
@given(JSON, st.sampled_from(PLACES), st.sampled_from(["gpt-2", "llama"]))
def test_hostile_json_is_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, value: Any, place: str, kind: str
) -> None:
    folder = tmp_path_factory.mktemp("hostile")
    write_tokenizer(folder, kind)
    put_json(folder, place, value)
    try:
        tokenizer_metadata(folder, {"vocab_size": 640})
    except InputError as error:
        one_line(error)


def test_tokenizer_model(tmp_path: Path) -> None:
    """Without tokenizer.json: SentencePiece's own file, ids equal to SentencePiece's."""
    sentencepiece = pytest.importorskip("sentencepiece")
    text = tmp_path / "corpus.txt"
    text.write_text(
        "the quick brown fox jumps over the lazy dog. the cat sat on the mat; a dog sat on the log.\n" * 20
    )
    folder = tmp_path / "model"
    make_model(folder, vocab_size=384, num_hidden_layers=1)
    (folder / "tokenizer.json").unlink()
    settings_of = {
        "model_type": "bpe",
        "vocab_size": 330,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "tokenizer"), **settings_of
    )
    write_gguf(open_checkpoint(folder), {}, tmp_path / "model.gguf")
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    with Session.open(tmp_path / "model.gguf", Runtime(n_ctx=64, n_ubatch=32, threads=1)) as session:
        for line in ["the dog sat", "  two  spaces", "naïve 中\n\ttabs", "a"]:
            assert session.tokenize(line).tolist() == [model.bos_id(), *model.encode(line)]
    settings_of |= {"model_type": "unigram", "vocab_size": 290}
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "tokenizer"), **settings_of
    )
    with pytest.raises(InputError, match="unigram"):
        tokenizer_metadata(folder, {"vocab_size": 384})


# -- ends of an answer ---------------------------------------------------------------------------------------


ENDS: list[tuple[dict[str, Any], dict[str, Any], set[str], str]] = [
    # config.json, generation_config.json, texts of tokens that end an answer, what a remark says
    ({"eos_token_id": 0}, {}, {"<|endoftext|>", "<|im_end|>"}, ""),
    ({"eos_token_id": [0, 300]}, {}, {"<|endoftext|>", "<|im_end|>", "300"}, ""),
    ({"eos_token_id": 0}, {"eos_token_id": [300, 301]}, {"<|endoftext|>", "<|im_end|>", "300", "301"}, ""),
    ({"eos_token_id": 302}, {"eos_token_id": [300]}, {"<|endoftext|>", "<|im_end|>", "300", "302"}, ""),
    ({"eos_token_id": [2, 1]}, {"eos_token_id": 1}, {"<|endoftext|>", "<|im_end|>", "<|im_start|>"}, ""),
    ({"eos_token_id": [300, 301, 302]}, {}, {"<|endoftext|>", "<|im_end|>", "300", "301"}, "token 302 "),
    ({"eos_token_id": 0}, {"eos_token_id": [True, -1, 10**9, "x"]}, {"<|endoftext|>", "<|im_end|>"}, ""),
]


@pytest.mark.parametrize(("config", "generation", "ending", "said"), ENDS)
def test_ends_listed_by_id(
    config: dict[str, Any], generation: dict[str, Any], ending: set[str], said: str, tmp_path: Path
) -> None:
    """llama.cpp itself says which tokens end an answer."""
    make_model(tmp_path, num_hidden_layers=1)
    put_json(tmp_path, "config.json/eos_token_id", config["eos_token_id"])
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    checkpoint = open_checkpoint(tmp_path)
    keys, notes = model_metadata(checkpoint, {}), " ".join(checkpoint.notes())
    write_gguf(checkpoint, {}, tmp_path / "model.gguf")
    texts = keys["tokenizer.ggml.tokens"]
    wanted = {texts[int(text)] if text.isdigit() else text for text in ending}
    with LlamaVocabulary.load(tmp_path / "model.gguf") as vocabulary:
        assert {texts[i] for i in range(vocabulary.n_vocab) if vocabulary.ends(i)} == wanted
        assert texts[vocabulary.end] == "<|endoftext|>"
    assert (said in notes) if said else "end an answer" not in notes


@pytest.mark.parametrize("kind", ["gpt-2", "smollm", "llama-bpe", "llama", "gemma"])
def test_a_model_that_names_no_end(kind: str, tmp_path: Path) -> None:
    """llama.cpp would end a text at token 11 or 2, whatever that is; it gets one that is never text."""
    make_model(tmp_path, vocab_size=640, num_hidden_layers=1)
    write_tokenizer(tmp_path, kind)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    for role in ("bos", "eos"):
        put_json(tmp_path, f"config.json/{role}_token_id", None)
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    gone = {"<|endoftext|>", "<|im_end|>", "<end_of_turn>", "<eos>", "</s>"}
    for entry in data["added_tokens"]:
        entry["content"] = f"[{entry['content']}]" if entry["content"] in gone else entry["content"]
    data["model"]["vocab"] = {f"[{k}]" if k in gone else k: v for k, v in data["model"]["vocab"].items()}
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    checkpoint = open_checkpoint(tmp_path)
    assert "names the token that ends a text" in " ".join(checkpoint.notes())
    write_gguf(checkpoint, {}, tmp_path / "model.gguf")
    with LlamaVocabulary.load(tmp_path / "model.gguf") as vocabulary:
        ending = [i for i in range(vocabulary.n_vocab) if vocabulary.ends(i)]
    kinds = model_metadata(checkpoint, {})["tokenizer.ggml.token_type"]
    assert len(ending) == 1
    assert kinds[ending[0]] in (3, 5)


# -- tokens of other files, and too many of them -------------------------------------------------------------


EXTRA = {"content": "<|extra|>", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
ELSEWHERE: dict[str, tuple[str, Any]] = {
    "added_tokens_decoder": (
        "tokenizer_config.json",
        {"added_tokens_decoder": {"332": {**EXTRA, "special": True}}},
    ),
    "plain": ("tokenizer_config.json", {"added_tokens_decoder": {"332": {**EXTRA, "special": False}}}),
    "added_tokens.json": ("added_tokens.json", {"<|extra|>": 332}),
    "additional": ("special_tokens_map.json", {"additional_special_tokens": ["<|extra|>"]}),
    "extra": ("tokenizer_config.json", {"extra_special_tokens": ["<|extra|>"]}),
    "role": ("tokenizer_config.json", {"mask_token": "<|extra|>"}),
    "model's own": ("tokenizer_config.json", {"image_token": "<|extra|>"}),
    "dictionary": ("tokenizer_config.json", {"extra_special_tokens": {"image": "<|extra|>"}}),
    "role in the map": ("special_tokens_map.json", {"cls_token": {**EXTRA, "special": True}}),
    "a word of the vocabulary": ("tokenizer_config.json", {"sep_token": "the"}),
}


@pytest.mark.parametrize("where", ELSEWHERE)
def test_added_tokens_of_other_files(where: str, tmp_path: Path) -> None:
    """The ids of transformers, which adds them to those of tokenizer.json."""
    make_model(tmp_path, num_hidden_layers=1)
    file, value = ELSEWHERE[where]
    path = tmp_path / file
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.is_file() else {}), **value}))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    write_gguf(open_checkpoint(tmp_path), {}, tmp_path / "model.gguf")
    with LlamaVocabulary.load(tmp_path / "model.gguf") as vocabulary:
        for text in ("a<|extra|>b", "the <|extra|> cat sat on the mat", "<tool>the<|im_end|>"):
            expected = theirs(text, add_special_tokens=False)["input_ids"]
            assert vocabulary.tokenize(text, special=False).tolist() == expected, text


@pytest.mark.parametrize(
    ("file", "value", "said"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": {"340": EXTRA}}, "the id 340"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"5": EXTRA}}, "the id 5"),
        ("added_tokens.json", {"<|extra|>": 350}, "the id 350"),
        ("added_tokens.json", {"<|extra|>": "x"}, "no number"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": EXTRA}}, "no id"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"332": 7}}, "must have a text"),
    ],
)
def test_contradicting_ids_are_refused(file: str, value: dict[str, Any], said: str, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "gpt-2")
    path = tmp_path / file
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.is_file() else {}), **value}))
    with pytest.raises(InputError, match=said) as caught:
        tokenizer_metadata(tmp_path, {"vocab_size": 400})
    one_line(caught.value)


@pytest.mark.parametrize("kind", ["gpt-2", "qwen2", "llama-bpe", "llama", "gemma"])
def test_tokens_without_a_row_are_left_out(kind: str, tmp_path: Path) -> None:
    count = write_tokenizer(tmp_path, kind).get_vocab_size()
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    for i, name in enumerate(["<image_soft_token>", "<video>", "<audio>", "<more>"]):
        data["added_tokens"].append({**EXTRA, "id": count + i, "content": name, "special": True})
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    info = tokenizer_metadata(tmp_path, {"vocab_size": count + 1})
    assert len(info.keys["tokenizer.ggml.tokens"]) == count + 1
    assert info.keys["tokenizer.ggml.tokens"][-1] == "<image_soft_token>"
    assert any(f"no row for (3 from {count + 1} on)" in n and "'<video>'" in n for n in info.notes)


@pytest.mark.parametrize("where", [name for name in ELSEWHERE if name != "a word of the vocabulary"])
def test_added_tokens_of_other_files_stay_when_tokens_are_trimmed(where: str, tmp_path: Path) -> None:
    """Also beside one that the model has no row for."""
    old, new = tmp_path / "old", tmp_path / "new"
    size = write_tokenizer(old, "gpt-2").get_vocab_size()
    (old / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": size + 1}))
    file, value = ELSEWHERE[where]
    if where == "extra":
        value = {**value, "extra_special_tokens": ["<|extra|>", "<image>"]}
    path = old / file
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.is_file() else {}), **value}))
    kept = chosen(old, np.zeros(size, np.int64), 300)
    assert kept[-1] == size
    new.mkdir()
    for name, content in trimmed(old, kept).items():
        (new / name).write_bytes(content)
    if file == "special_tokens_map.json":
        (new / file).write_bytes((old / file).read_bytes())
    (new / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": len(kept)}))
    opened = tokenizer(new)
    check_tokens(new, opened)
    assert opened.encode("a<|extra|>b").tolist()[1:-1] == [len(kept) - 1]


@pytest.mark.parametrize(
    ("kind", "key", "value", "begins"),
    [
        ("gpt-2", "add_prefix_space", True, None),
        ("llama", "add_prefix_space", False, None),
        ("gemma", "add_prefix_space", True, None),
        ("gpt-2", "add_bos_token", True, True),
        ("llama", "add_bos_token", False, False),
        ("gemma", "add_bos_token", False, False),
        ("llama", "add_eos_token", True, None),
    ],
)
def test_files_that_contradict_each_other_are_noted(
    kind: str, key: str, value: bool, begins: bool | None, tmp_path: Path
) -> None:
    write_tokenizer(tmp_path, kind)
    before = tokenizer_metadata(tmp_path, {"vocab_size": 640, "bos_token_id": 1})
    put_json(tmp_path, f"tokenizer_config.json/{key}", value)
    after = tokenizer_metadata(tmp_path, {"vocab_size": 640, "bos_token_id": 1})
    said = [note for note in after.notes if note not in before.notes]
    assert len(said) == 1
    assert key in said[0]
    if begins is not None:
        assert after.keys["tokenizer.ggml.add_bos_token"] == begins
