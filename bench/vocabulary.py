"""What a smaller vocabulary costs, in bits per byte of the same text, as trimmed and healed.

    python bench/vocabulary.py MODEL --eval-text FILE ... [--text FILE] [--sizes 12288,8192,4096]
        [--heal 20Mtok --heal-text FILE] [--device-compute cuda]

Prints one JSON line a text and size. The texts are cut at white space into chunks of at most --bytes bytes;
both models start each with an empty context (their token for the beginning or end of a text) and must predict
every byte of it, so the bits are those of the same bytes. float32, transformers' own modules. `rise` is the
relative rise of bits per byte, `error` its standard error over chunks; `lost` counts texts (the chunks, and
hostile ones) whose decoded tokens are not the text.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from tenth.calibration.layerwise import LayerwiseModel
from tenth.distillation import cross_tokenizer
from tenth.distillation.budget import TrainingBudget
from tenth.distillation.corpus import windows
from tenth.distillation.settings import TrainingSettings
from tenth.models.checkpoint import Checkpoint, open_checkpoint
from tenth.models.formats.folder import write_folder
from tenth.models.text import read
from tenth.pruning.vocabulary import KEPT, trim
from tenth.quantization.scales import log_probabilities, whole
from tenth.runtime.tokens import Tokenizer, tokenizer

LENGTH = 448  # tokens of the original in a window to heal on
ITEM = 2  # bytes of a weight of the embedding, as published in half precision
HOSTILE = [
    "",
    " ",
    "\n\n \n",
    "\t\r\n",
    "\x01\x02\x1b[0m\x7f",
    "  two  spaces  ",
    "naïve café e\u0301",
    "🙂👍🏽👨\u200d👩\u200d👧🇩🇪",
    "你好，世界。こんにちは！한국어",
    "שלום مرحبا नमस्ते สวัสดี",
    "\u202e\u200d\ufeff\u2581",
    "\U0010ffff\ufffd",
    "<|im_start|>user\nhi<|im_end|>",
    "if x:\n\treturn {'a': [1, 2]}",
    "1234567890" * 20,
    "a" * 300,
    "\u0301" * 40,
]


def chunks(text: str, most: int) -> Iterator[str]:
    """Pieces of at most `most` bytes that begin at white space; one long word may be longer."""
    piece: list[str] = []
    size = 0
    for word in re.findall(r"\s*\S+|\s+$", text):
        length = len(word.encode())
        if piece and size + length > most:
            yield "".join(piece)
            piece, size = [], 0
        piece.append(word)
        size += length
    if piece:
        yield "".join(piece)


def nats(checkpoint: Checkpoint, tokens: Tokenizer, texts: list[str], device: str) -> tuple[np.ndarray, int]:
    """(negative log-probability of each text, tokens of all)."""
    layerwise = LayerwiseModel(checkpoint, device=device)
    found, count = [], 0
    with torch.no_grad(), whole(layerwise):
        for text in texts:
            ids = np.concatenate([np.array([tokens.start], np.int32), tokens.encode(text)])
            logprobs = log_probabilities(layerwise, ids[None])[0]
            found.append(-float(logprobs.gather(1, layerwise.ids(ids[1:])[:, None]).double().sum()))
            count += len(ids) - 1
    return np.array(found), count


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--eval-text", type=Path, nargs="+", required=True)
    parser.add_argument("--sizes", default="12288,8192,4096")
    parser.add_argument("--bytes", type=int, default=2000)
    parser.add_argument("--every", type=int, default=1, help="judge on one chunk in so many")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--heal", help="how many tokens to heal on, such as 20Mtok")
    parser.add_argument("--heal-text", type=Path)
    parser.add_argument("--rate", type=float, default=cross_tokenizer.RATE)
    parser.add_argument("--device-compute", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("out/bench-vocabulary"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    original, counted = open_checkpoint(given.model), read(given.text)
    row_bytes = ITEM * original.shape.hidden
    before = {
        path: [c for i, c in enumerate(chunks(read(path), given.bytes)) if i % given.every == 0]
        for path in given.eval_text
    }
    old, device = tokenizer(given.model), given.device_compute
    known = {path: nats(original, old, texts, device) for path, texts in before.items()}
    given.out.mkdir(parents=True, exist_ok=True)
    if given.heal:
        found = windows(given.model, given.heal_text, LENGTH, TrainingBudget.parse(given.heal).tokens, 0)
        np.save(given.out / "tokens.npy", found, allow_pickle=False)

    def judge(folder: Path, healed: str) -> None:
        checkpoint, tokens = open_checkpoint(folder), tokenizer(folder)
        size = checkpoint.shape.vocab
        for path, texts in before.items():
            (was, count), (now, more) = known[path], nats(checkpoint, tokens, texts, device)
            total = sum(len(text.encode()) for text in texts)
            rise = now.sum() / was.sum() - 1
            error = np.std(now - (1 + rise) * was, ddof=1) * math.sqrt(len(was)) / was.sum()
            lost = [text for text in (*texts, *HOSTILE) if tokens.decode(tokens.encode(text)) != text]
            row = {
                "bench": "vocabulary",
                "model": given.model.name,
                "size": size,
                "healed": healed,
                "text": path.name,
                "chunks": len(texts),
                "bytes": total,
                "bits_per_byte_before": round(was.sum() / math.log(2) / total, 4),
                "bits_per_byte": round(now.sum() / math.log(2) / total, 4),
                "rise": round(rise, 4),
                "error": round(float(error), 4),
                "tokens_per_byte_before": round(count / total, 4),
                "tokens_per_byte": round(more / total, 4),
                "embedding_bytes_before": row_bytes * original.shape.vocab,
                "embedding_bytes": row_bytes * size,
                "lost": len(lost),
            }
            print(json.dumps(row), flush=True)

    for size in map(int, given.sizes.split(",")):
        edited, files, kept = trim(original, size, counted)
        folder = given.out / f"{size}"
        write_folder(edited, folder, tokenizer=files)
        np.save(folder / KEPT, np.array(kept, np.int64), allow_pickle=False)
        judge(folder, "")
        if given.heal:
            settings = TrainingSettings(
                model=folder,
                original=given.model,
                tokens=given.out / "tokens.npy",
                folder=given.out / f"{size}-healed",
                training_budget=TrainingBudget.parse(given.heal),
                seed=0,
                threads=given.threads,
                device=device,
                rate=given.rate,
            )
            cross_tokenizer.distil_vocabulary(settings, lambda _: None)
            judge(given.out / f"{size}-healed", given.heal)


if __name__ == "__main__":
    main()
