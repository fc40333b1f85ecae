"""What a text's tokens are: llama.cpp's answer under the keys that every GGUF of the model has.

A text of any length is tokenised in pieces. A piece ends where no token can lie across and where neither side
changes the other, so that the ids are those of the whole text:

- Byte-level BPE. A pre-tokenizer cuts the text into words, from left to right. Under those that we write
  (models/formats/pretokenizers.py) no word goes on from a letter to a space, or from a newline to what is no
  white space, and where a word begins, what stands before it does not change it. So a piece may end before a
  space between two letters, or behind a newline that stands alone.
- SentencePiece. Merges that do not touch each other do not change each other. So a piece may end between two
  characters that stand side by side in no token. Where llama.cpp puts a space before every text, that space
  takes the place of the one at the end of the piece, or its token is dropped.

No marker of a special token begins, ends or goes on there. tests/runtime/test_tokens.py compares pieces with
the whole text, for every kind of tokenizer.
"""

from __future__ import annotations

import re
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tenth.core.errors import InputError
from tenth.models.checkpoint import open_config
from tenth.models.formats.gguf import write_vocabulary
from tenth.models.formats.tokenizer import tokenizer_metadata
from tenth.models.formats.vocabulary import TokenizerInfo
from tenth.runtime.llama import LlamaVocabulary

PIECE = 1 << 15  # characters tokenised together
NEAR = 1 << 9
LONGEST = 1 << 17  # of them where the text has no place to cut it
# llama.cpp runs these pre-tokenizers as regular expressions that recurse at every character of a word: with
# the usual stack they crash at some 20,000.
RECURSING = ("tekken", "gpt-4o")
LONG_WORD = re.compile(r"[^\W\d]{8000}|[^\w\s]{8000}|[\r\n]{8000}")
SPACE = "\u2581"  # SentencePiece's visible space
# Places, as the pattern's end. A character before each newline and behind it that is surely no white space; a
# slash may be of one word with the newline before it.
WORD_END = re.compile(r"[A-Za-z](?= [A-Za-z])")
BEHIND_NEWLINE = re.compile(r"[!-~\w]\n(?=[!-.0-~\w])")
BEFORE_NEWLINE = re.compile(r"[!-~\w](?=\n[!-~\w])")
BESIDE_WHITE_SPACE = re.compile(rf"(?s)(?=(.[\n{SPACE}]|\n.))")


@dataclass(frozen=True)
class Seam:
    """Where a text may be cut.

    skip: characters behind the place that are left out, since llama.cpp puts them in front of the next piece.
    drop: ids of the next piece that stand for nothing in the text.
    """

    place: re.Pattern[str]
    skip: int = 0
    drop: int = 0


WHOLE = Seam(re.compile(r"(?!)"))


class Tokenizer:
    """Text to ids and back, without special tokens added.

    begin: what the tokenizer puts before a text by itself. end: the token that ends a text. start: the token
    behind which a text's first one stands.
    """

    def __init__(self, vocabulary: LlamaVocabulary, info: TokenizerInfo) -> None:
        self._vocabulary, self.info, keys = vocabulary, info, info.keys
        weakref.finalize(self, vocabulary.close).atexit = False
        self.begin = vocabulary.begin
        self.end: int | None = vocabulary.end if vocabulary.end >= 0 else None
        self.start = self.begin[0] if self.begin else self.end
        self._prefix = bool(keys.get("tokenizer.ggml.add_space_prefix"))
        self._recursing = keys["tokenizer.ggml.pre"] in RECURSING
        tokens = keys["tokenizer.ggml.tokens"]
        self.n_vocab = vocabulary.n_vocab
        special, others = ([tokens[i] for i in kind] for kind in vocabulary.markers())
        markers = special + others
        joined = "\0".join(markers if keys["tokenizer.ggml.model"] == "gpt2" else tokens)
        self._markers = markers
        self._special = {text[:2] for text in special}
        self._first, self._last = {text[:2] for text in markers}, {text[-2:] for text in markers}
        self._together = set(BESIDE_WHITE_SPACE.findall(joined.replace(" ", SPACE)))
        if not self._prefix:
            self._seams = [Seam(WORD_END), Seam(BEHIND_NEWLINE)]
        elif SPACE + "\n" in self._together or SPACE not in tokens:
            self._seams = [Seam(WORD_END, skip=1)]
        else:
            self._seams = [Seam(WORD_END, skip=1), Seam(BEFORE_NEWLINE, drop=1)]

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, int32 [tokens]; markers of special tokens in it become those tokens.

        Memory is taken for about `PIECE` characters at a time, besides the ids. InputError for a text that
        cannot be cut within `LONGEST` characters.
        """
        parts = [np.empty(0, np.int32)]
        for piece, drop in self._pieces(text):
            if self._recursing and (word := LONG_WORD.search(piece)):
                raise InputError(
                    f"a text has a word of more than {len(word[0])} characters, {word[0][:20]!r} and on,"
                    " which llama.cpp cannot read with this model's tokenizer; break its lines"
                )
            parse = any(beginning in piece for beginning in self._special)  # looking for all takes long
            parts.append(self._vocabulary.tokenize(piece, special=False, parse=parse)[drop:])
        return np.concatenate(parts)

    def markers(self) -> list[str]:
        """Texts that stand for one token wherever they stand in a text, special tokens first."""
        return list(self._markers)

    def decode(self, ids: np.ndarray) -> str:
        """The text of ids, special tokens included, without the space that the tokenizer puts in front."""
        text = b"".join(self._vocabulary.piece(i) for i in ids.tolist()).decode("utf-8", "replace")
        return text.removeprefix(" ") if self._prefix else text

    def _pieces(self, text: str) -> Iterator[tuple[str, int]]:
        """(a piece of the text, how many of its ids are to be dropped), in order."""
        at, drop = 0, 0
        while len(text) - at > PIECE:
            end, seam = self._end(text, at)
            yield text[at:end], drop
            at, drop = end + seam.skip, seam.drop
        yield text[at:], drop

    def _end(self, text: str, at: int) -> tuple[int, Seam]:
        """(where the piece that begins there ends, how): if possible within PIECE, near its end."""
        within, last = at + PIECE, min(len(text), at + LONGEST)
        nearer = [(within - NEAR, within), (at, within)]
        for begin, end in nearer + [(i, min(i + PIECE, last)) for i in range(within, last, PIECE)]:
            places = [
                (match.end(), seam)
                for seam in self._seams
                for match in seam.place.finditer(text, begin, end)
                if self._is_free(text, match.end(), seam)
            ]
            if places:
                return max(places, key=lambda place: place[0])
        if last < len(text):
            raise InputError(
                f"a text of {len(text)} characters has no end of a word or line in {LONGEST} of them,"
                f" {text[at : at + 20]!r} and on, at which it could be cut for the tokenizer; break its lines"
            )
        return last, WHOLE

    def _is_free(self, text: str, place: int, seam: Seam) -> bool:
        """Whether no token and no marker touches both sides."""
        before, behind, rest = text[place - 1], text[place], place + seam.skip
        return self._first.isdisjoint(
            (behind, text[place : place + 2], text[rest], text[rest : rest + 2])
        ) and (
            self._last.isdisjoint((before, text[place - 2 : place]))
            and before + behind.replace(" ", SPACE) not in self._together
        )


def tokenizer(model: Path) -> Tokenizer:
    """Of a model folder. InputError where there is none, or llama.cpp has none like it."""
    config, architecture = open_config(model)
    info = tokenizer_metadata(model, config)
    with tempfile.TemporaryFile() as file:  # which no kill can leave behind
        path = Path(f"/dev/fd/{file.fileno()}")
        write_vocabulary(info, architecture.gguf_arch, model.resolve().name, path)
        return Tokenizer(LlamaVocabulary.load(path), info)
