"""The numbers of a model that memory, speed, planning and pruning depend on, read out of config.json once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model, made by its architecture from the completed config (`Architecture.shape`).

    Tuples have one item for each block, in order.
    """

    gguf_arch: str  # llama.cpp's name of the graph that runs the model
    vocab: int  # rows of the embedding
    hidden: int  # values of a token between two blocks
    ffn: tuple[int, ...]  # feed-forward channels
    heads: tuple[int, ...]  # query heads
    kv_heads: tuple[int, ...]  # 0: the block has no attention
    head_dims: tuple[int, ...]  # values of a head
    windows: tuple[int, ...]  # tokens that llama.cpp lets the block look back at; 0: all of them
    tied: bool  # whether the embedding is the output head too: one matrix, two uses

    @property
    def layers(self) -> int:
        """How many blocks the model has."""
        return len(self.ffn)

    @property
    def queries_per_kv(self) -> int:
        """Query heads that share a KV head, which is the same number in every block."""
        return max(self.heads) // max(self.kv_heads)

    def axes(self, layer: int | None = None) -> dict[str, int]:
        """Size of every named axis of an architecture's table, in one block or in the widest.

        "heads" and "kv_heads" count rows of matrices, not heads.
        """
        ffn, heads, kv_heads, head_dim = (
            max(sizes) if layer is None else sizes[layer]
            for sizes in (self.ffn, self.heads, self.kv_heads, self.head_dims)
        )
        return {
            "vocab": self.vocab,
            "hidden": self.hidden,
            "ffn": ffn,
            "heads": heads * head_dim,
            "kv_heads": kv_heads * head_dim,
            "head_dim": head_dim,
        }
