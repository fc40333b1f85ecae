"""Which items are used: the same for everyone, or hidden ones drawn from a seed that is committed to first.

A round: `commitment(seed)` is published, submissions close, `draw` picks items of a pool by the seed, the
seed is published, and anyone draws the same items and checks the hash. An item's place depends on its content
and the seed alone: HMAC-SHA-256(seed, the item as canonical JSON). Without a seed the key is empty: a fixed
sample. The seed must be long and random; a short one can be found from its hash.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Sequence

from pydantic import JsonValue

from tenth.core.errors import InputError

SEED_BYTES = 32


def new_seed() -> bytes:
    """Draw a fresh secret for a hidden split."""
    return secrets.token_bytes(SEED_BYTES)


def commitment(seed: bytes) -> str:
    """SHA-256 of a seed, to publish before the round. Raises InputError for a seed that could be guessed."""
    if len(seed) < SEED_BYTES:
        raise InputError(f"a seed of {len(seed)} bytes can be guessed from its hash; take {SEED_BYTES}")
    return hashlib.sha256(seed).hexdigest()


def kept(seed: bytes, published: str) -> bool:
    """Whether a seed is the one that was committed to."""
    return hmac.compare_digest(commitment(seed), published.lower())


def digest(item: JsonValue) -> str:
    """SHA-256 of an item, the same however its file spells it."""
    return hashlib.sha256(_canonical(item)).hexdigest()


def draw(items: Sequence[JsonValue], seed: bytes, count: int) -> list[int]:
    """Indices of `count` items (all where there are fewer), in ascending order.

    The order of the items plays no part; of equal items the first is taken first.
    """
    places = [(hmac.digest(seed, _canonical(item), "sha256"), index) for index, item in enumerate(items)]
    return sorted(index for _, index in sorted(places)[:count])


def _canonical(item: JsonValue) -> bytes:
    return json.dumps(item, sort_keys=True, ensure_ascii=True, separators=(",", ":")).encode()
