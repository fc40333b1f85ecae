"""What may be asked of the model's server: the paths, and bodies within bounds.

A body is parsed here and written anew for the child, so that no two readers of JSON can see different things
in it. llama.cpp's own options that name files, slots or unbounded work are refused.
"""

from __future__ import annotations

import json
from typing import NoReturn

from pydantic import JsonValue

from tenth.runtime.server.grammar import check_grammar, check_schema
from tenth.runtime.server.wire import RefusedError

# Each is forwarded: those that write text one at a time, the others beside them.
GENERATING = {
    "/v1/chat/completions",
    "/chat/completions",
    "/v1/completions",
    "/completions",
    "/completion",
    "/v1/responses",
    "/responses",
    "/v1/messages",
    "/infill",
}
QUICK = {
    "/tokenize",
    "/detokenize",
    "/apply-template",
    "/v1/chat/completions/input_tokens",
    "/chat/completions/input_tokens",
    "/v1/responses/input_tokens",
    "/responses/input_tokens",
    "/v1/messages/count_tokens",
}
READING = {"/v1/models", "/models", "/props"}
HEALTH = {"/health", "/v1/health"}  # answered without a key, and without the model

_MAX_DEPTH = 64  # of a body
_MAX_VALUES = 200_000
_MAX_PROMPTS = 64  # in one request
_BIGGEST = 1 << 63
_REFUSED = {
    "grammar_lazy",
    "grammar_triggers",
    "grammar_type",
    "preserved_tokens",
    "lora",
    "id_slot",
    "backend_sampling",
    "n_cache_reuse",
    "n_discard",
    "sse_ping_interval",
}
# The largest number that a field may hold; repetition looks back no further than this anyway.
_AT_MOST = {
    "n_probs": 50,
    "top_logprobs": 50,
    "logprobs": 50,
    "min_keep": 1000,
    "n": 8,
    "n_cmpl": 8,
    "best_of": 8,
    "repeat_last_n": 8192,
    "dry_penalty_last_n": 8192,
    "dry_allowed_length": 8192,
    "n_indent": 1000,
}
_AT_MOST_LONG = {
    "stop": 64,
    "stop_sequences": 64,
    "samplers": 32,
    "logit_bias": 1024,
    "dry_sequence_breakers": 64,
    "reasoning_budget_end_tags": 16,
    "tools": 128,
    "functions": 128,
}
_SCHEMAS = ("json_schema", "response_format", "tools", "functions", "text", "output_config")


def body_limit(n_ctx: int) -> int:
    """The largest body in bytes: 16 for each token of the context, and 64 KiB for tools and schemas."""
    return (64 << 10) + 16 * n_ctx


def checked(raw: bytes) -> bytes:
    """The body as it is forwarded; RefusedError where it is no JSON object or asks for too much."""
    try:
        body = json.loads(raw.decode("utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise RefusedError(400, "the body is not JSON in UTF-8") from None
    if not isinstance(body, dict):
        raise RefusedError(400, "the body is not a JSON object")
    _check_size(body)
    for name, value in body.items():
        _check_field(name, value)
    grammar = body.get("grammar")
    if isinstance(grammar, str):
        check_grammar(grammar)
    for name in _SCHEMAS:
        if name in body:
            check_schema(body[name])
    try:
        return json.dumps(body, allow_nan=False).encode("ascii")
    except ValueError:  # 1e999
        raise RefusedError(400, "the body holds a number that JSON has not") from None


def _no_number(word: str) -> NoReturn:
    raise ValueError(word)


def _check_size(body: JsonValue) -> None:
    """RefusedError for too many levels, values or digits."""
    values, todo = 0, [(body, 0)]
    while todo:
        value, depth = todo.pop()
        values += 1
        if depth > _MAX_DEPTH or values > _MAX_VALUES:
            raise RefusedError(400, f"the body is over {_MAX_DEPTH} levels deep, or has {_MAX_VALUES} values")
        if isinstance(value, int) and abs(value) > _BIGGEST:
            raise RefusedError(400, "the body holds a number of more than 64 bits")
        if isinstance(value, dict):
            todo += [(inner, depth + 1) for inner in value.values()]
        elif isinstance(value, list):
            todo += [(inner, depth + 1) for inner in value]


def _check_field(name: str, value: JsonValue) -> None:
    """RefusedError for a field that is not served, or asks for too much."""
    if name in _REFUSED or name.startswith("speculative."):
        raise RefusedError(400, f"this server does not take {name}")
    most = _AT_MOST.get(name)
    if most is not None and isinstance(value, int | float) and value > most:
        raise RefusedError(400, f"{name} is more than {most}")
    longest = _AT_MOST_LONG.get(name)
    if longest is not None and isinstance(value, list | dict) and len(value) > longest:
        raise RefusedError(400, f"{name} has more than {longest} entries")
    if name == "prompt" and isinstance(value, list):
        prompts = sum(isinstance(each, str | list | dict) for each in value)
        if prompts > _MAX_PROMPTS:
            raise RefusedError(400, f"more than {_MAX_PROMPTS} prompts in one request")
