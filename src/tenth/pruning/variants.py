"""What removals in one block do to the output: the KL to the original, of many variants while the blocks
are run through once.

A variant is the original with one block changed. It is a stream of hidden states of its own that begins
behind that block, so each later block is loaded once and runs on all streams that have begun.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from tenth.calibration.layerwise import Hidden, LayerwiseModel


class Variants:
    """The streams; state: where their hidden states are kept, a key a variant and boundary."""

    def __init__(self, layerwise: LayerwiseModel, state: Hidden) -> None:
        self._layerwise, self.state = layerwise, state

    def begin(self, index: int, name: str, hidden: Iterable[torch.Tensor], run: bool = True) -> None:
        """A variant of the filled block: as it is now on the original's hidden states, or left out."""
        after = (self._layerwise.run(index, window) for window in hidden) if run else hidden
        self.state.write(_key(index + 1, (index, name)), after)

    def step(self, index: int) -> None:
        """Run the filled block on all variants of the blocks before."""
        for variant in self._at(index):
            hidden = self.state.read(_key(index, variant))
            self.state.write(
                _key(index + 1, variant), (self._layerwise.run(index, window) for window in hidden)
            )

    def drop(self, index: int) -> None:
        """Remove what entered a block."""
        for variant in list(self._at(index)):
            self.state.drop(_key(index, variant))

    def divergences(self, originals: Iterable[torch.Tensor]) -> dict[tuple[int, str], float]:
        """(block, name) -> KL to the original in nats per token; originals: its hidden states at the end."""
        end = len(self._layerwise.blocks)
        with self._layerwise.head():
            expected = [self._logs(hidden).cpu() for hidden in originals]
            return {variant: self._divergence(variant, end, expected) for variant in self._at(end)}

    def _divergence(self, variant: tuple[int, str], end: int, originals: list[torch.Tensor]) -> float:
        total = 0.0
        for original, hidden in zip(originals, self.state.read(_key(end, variant)), strict=True):
            p = original.to(hidden.device)
            total += float((p.exp() * (p - self._logs(hidden))).sum(-1).mean())
        return max(0.0, total / len(originals))

    def _logs(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._layerwise.logits(hidden)[0].log_softmax(-1)

    def _at(self, boundary: int) -> Iterator[tuple[int, str]]:
        """The variants that have reached a boundary."""
        for path in sorted(self.state.folder.glob(f"hidden-variant.{boundary}.*.f32")):
            _, _, index, name = path.stem.split(".")
            yield int(index), name


def _key(boundary: int, variant: tuple[int, str]) -> str:
    return f"variant.{boundary}.{variant[0]}.{variant[1]}"
