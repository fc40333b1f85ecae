"""Limits on grammars and JSON schemas, which llama.cpp parses by recursion and without bounds of its own.

200,000 opening parentheses overflow its stack; repetitions of repetitions fill memory. What is refused here
is far beyond what people write: OpenAI allows schemas ten levels deep.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pydantic import JsonValue

from tenth.runtime.server.wire import RefusedError

MAX_GRAMMAR = 32 << 10  # bytes
MAX_NESTING = 32  # of groups in a grammar, of levels in a schema
MAX_REPEATS = 1000  # of one element
_MOST_REPEATS = 20_000  # of all elements together
_MAX_NODES = 5000  # values in a schema
_MAX_PATTERN = 256  # letters of a regular expression in a schema
_PARTS = re.compile(r'"(?:\\.|[^"\\\n])*"|\[(?:\\.|[^\]\\\n])*\]|#[^\n]*|[()]|\{([^}]{0,40})\}', re.S)
_COUNTED = {"minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"}


def check_grammar(text: str) -> None:
    """RefusedError for a grammar (GBNF) that is too long, too deep or repeats too much."""
    if len(text.encode("utf-8", "replace")) > MAX_GRAMMAR:
        raise RefusedError(400, f"the grammar is longer than {MAX_GRAMMAR} bytes")
    repeats = 0
    for depth, counts in _groups(text):
        if depth > MAX_NESTING:
            raise RefusedError(400, f"the grammar has groups more than {MAX_NESTING} deep")
        for count in counts:
            repeats += count
            if count > MAX_REPEATS or repeats > _MOST_REPEATS:
                raise RefusedError(400, f"the grammar repeats an element more than {MAX_REPEATS} times")


def _groups(text: str) -> Iterator[tuple[int, list[int]]]:
    """(depth of groups, numbers in braces) after every sign of a grammar or pattern that changes them."""
    depth = 0
    for part in _PARTS.finditer(text):
        if part[0] == "(":
            depth += 1
        elif part[0] == ")":
            depth -= 1
        yield depth, [int(number[:9]) for number in re.findall(r"\d+", part[1] or "")]


def check_schema(schema: JsonValue) -> None:
    """RefusedError for a JSON schema that is too large, too deep or repeats too much."""
    nodes, todo = 0, [(schema, 0)]
    while todo:
        value, depth = todo.pop()
        nodes += 1
        if depth > MAX_NESTING or nodes > _MAX_NODES:
            raise RefusedError(
                400, f"the schema is more than {MAX_NESTING} levels deep, or has {_MAX_NODES} values"
            )
        if isinstance(value, dict):
            for name, inner in value.items():
                _check_keyword(name, inner)
                todo.append((inner, depth + 1))
        elif isinstance(value, list):
            todo += [(inner, depth + 1) for inner in value]


def _check_keyword(name: str, value: JsonValue) -> None:
    if name in _COUNTED and isinstance(value, int | float) and abs(value) > MAX_REPEATS:
        raise RefusedError(400, f"the schema's {name} is more than {MAX_REPEATS}")
    if name != "pattern" or not isinstance(value, str):
        return
    if len(value) > _MAX_PATTERN:
        raise RefusedError(400, f"a pattern of the schema is longer than {_MAX_PATTERN} letters")
    for depth, counts in _groups(value):
        if depth > MAX_NESTING or max(counts, default=0) > MAX_REPEATS:
            raise RefusedError(400, "a pattern of the schema is too deep or repeats too much")
