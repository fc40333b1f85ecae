"""Blocks of different widths: the key "tenth_blocks" of config.json, and where llama.cpp can run them.

    "tenth_blocks": {"intermediate_size": [one a block], "num_key_value_heads": [one a block]}

config.json's own sizes are those of the widest block. Query heads follow: as many for each KV head as
elsewhere. A block with no KV head has no attention. A list whose entries are all equal is left out, and the
key with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tenth.core.errors import InputError
from tenth.models.arch._config import Config, integer

KEY = "tenth_blocks"
LEAST = {"intermediate_size": 1, "num_key_value_heads": 0}
GRAPH, SAME = "deci", "llama"  # llama.cpp's graph with a size for each block, and the one it computes as


def differ(config: Config) -> bool:
    """Whether the config has sizes of each block."""
    return config.get(KEY) is not None


def sizes(config: Config, layers: int, widest: Mapping[str, int]) -> dict[str, list[int]]:
    """Every block's sizes by config.json's name of them; widest: config.json's own. InputError for lists that
    contradict it.
    """
    if not differ(config):
        return {key: [widest[key]] * layers for key in LEAST}
    given = config[KEY]
    if not isinstance(given, dict) or not given or not given.keys() <= LEAST.keys():
        raise InputError(f"config.json: {KEY} must be an object with lists for {' or '.join(LEAST)}")
    found = {}
    for key, least in LEAST.items():
        own = given.get(key, [widest[key]] * layers)
        if not isinstance(own, list) or len(own) != layers:
            raise InputError(f"config.json: {KEY}.{key} must be a list of {layers} numbers, one a block")
        found[key] = [integer({key: size}, key, low=least, high=widest[key]) for size in own]
        if max(found[key]) != widest[key]:
            raise InputError(f"config.json: {key} = {widest[key]} is not the largest of {KEY}.{key}")
    return found


def with_sizes(config: Config, own: Mapping[str, Sequence[int]]) -> Config:
    """The config with these sizes of its blocks, in one form: the widest, and lists where blocks differ."""
    different = {key: list(sizes) for key, sizes in own.items() if len(set(sizes)) > 1}
    rest = {key: value for key, value in config.items() if key != KEY}
    return {
        **rest,
        **{key: max(sizes) for key, sizes in own.items()},
        **({KEY: different} if different else {}),
    }
