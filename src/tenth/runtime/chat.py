"""Talk with a bundle in the terminal, offline, token by token.

llama.cpp's server is asked, in a child of our own behind a Unix socket; nothing listens to the network. The
model's chat template is used where it has one (/v1/chat/completions); a base model without one continues the
text typed so far (/v1/completions). When a conversation outgrows the context, its oldest exchange is
forgotten, and that is said.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import JsonValue

from tenth.core.errors import InputError, NativeError
from tenth.core.progress import steers
from tenth.runtime.bundle import Bundle
from tenth.runtime.server.engine import Engine

QUIT = {"/quit", "/exit", "/bye"}
_MAX_REFUSAL = 1 << 20  # bytes


@dataclass(frozen=True)
class Sampling:
    """How the tokens of an answer are drawn."""

    max_tokens: int = 512
    temperature: float = 0.7
    seed: int = 0

    def fields(self) -> dict[str, JsonValue]:
        """The request fields of the server."""
        return {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
            "stream": True,
        }


@dataclass
class Conversation:
    """Turns so far, and how to ask for the next one."""

    engine: Engine
    template: bool
    sampling: Sampling
    say: Callable[[str], None]
    turns: list[tuple[str, str]] = field(default_factory=list)  # (user, answer), oldest first

    def ask(self, message: str) -> Iterator[str]:
        """Stream the answer to one message, piece by piece, and remember both.

        InputError when the message alone is longer than the context; NativeError when the child dies.
        """
        turns = list(self.turns)
        while True:
            pieces: list[str] = []
            try:
                for piece in self._stream(message, turns):
                    if not pieces and len(turns) < len(self.turns):
                        self.say("the conversation outgrew the context; its beginning is forgotten")
                    pieces.append(piece)
                    yield piece
            except _TooLongError as error:
                if not turns:
                    raise InputError(f"the message is longer than the model's context; {error}") from None
                del turns[0]
                continue
            self.turns = [*turns, (message, "".join(pieces))]
            return

    def _stream(self, message: str, turns: Sequence[tuple[str, str]]) -> Iterator[str]:
        if self.template:
            history = [[("user", user), ("assistant", answer)] for user, answer in turns]
            flat = [*(pair for turn in history for pair in turn), ("user", message)]
            messages: list[JsonValue] = [{"role": role, "content": text} for role, text in flat]
            body = {"messages": messages, **self.sampling.fields()}
            for choice in _events(self.engine, "/v1/chat/completions", body):
                delta = choice.get("delta") or {}
                yield delta.get("reasoning_content") or delta.get("content") or ""
        else:
            text = "".join(user + answer + "\n" for user, answer in turns) + message
            body = {"prompt": text, **self.sampling.fields()}
            for choice in _events(self.engine, "/v1/completions", body):
                yield choice.get("text") or ""


class _TooLongError(Exception):
    """The server's refusal of a prompt that exceeds the context."""


def _events(engine: Engine, path: str, body: dict[str, JsonValue]) -> Iterator[dict[str, Any]]:
    """The first choice of every server-sent event of a streamed request."""
    raw = json.dumps(body).encode("ascii")
    if len(raw) > engine.largest_body:
        raise _TooLongError(f"{len(raw)} bytes are more than it can hold")
    connection = engine.connect()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {engine.key}"}
    try:
        with engine.asked() as flight:
            connection.request("POST", path, raw, headers)
            response = connection.getresponse()
            flight.answered = True
            if response.status != 200:
                raise _refusal(response.read(_MAX_REFUSAL))
            yield from _choices(response)
    except (OSError, http.client.HTTPException) as error:
        raise NativeError(engine.why()) from error
    finally:
        connection.close()


def _choices(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in response:
        if line.startswith(b"error:"):
            raise _refusal(line.removeprefix(b"error:"))
        data = line.removeprefix(b"data:").strip()
        if not line.startswith(b"data:") or data == b"[DONE]":
            continue
        event = json.loads(data)
        if "error" in event:
            raise _refusal(data)
        yield from event.get("choices", [])[:1]


def _refusal(raw: bytes) -> Exception:
    try:
        problem = json.loads(raw)
        problem = problem.get("error", problem)
        message, kind = str(problem.get("message", problem)), problem.get("type", "")
    except (ValueError, AttributeError):
        message, kind = raw.decode("utf-8", "replace")[:200], ""
    if kind == "exceed_context_size_error":
        return _TooLongError(message)
    return NativeError(f"llama.cpp refused: {message}")


def printable(piece: str) -> str:
    """The text without what steers a terminal: a model must not."""
    return "".join(c for c in piece if c in "\n\t" or not steers(c))


def readable(message: str) -> str:
    """A message as UTF-8 can carry it: a byte that is none becomes U+FFFD."""
    return message.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def talk(
    bundle: Bundle,
    messages: Iterator[str],
    write: Callable[[str], None],
    say: Callable[[str], None],
    sampling: Sampling,
) -> list[tuple[str, str]]:
    """Answer messages until /quit or their end; `write` gets the answers' pieces, `say` the remarks."""
    with Engine(bundle) as engine:
        if not bundle.has_template:
            say("this model has no chat template: it continues the text that you type")
        refused: InputError | None = None
        conversation = Conversation(engine, bundle.has_template, sampling, say)
        for message in map(readable, messages):
            if message.strip().lower() in QUIT:
                break
            if not message.strip():
                continue
            try:
                for piece in conversation.ask(message):
                    write(printable(piece))
            except InputError as error:
                refused = error
                say(str(error))
                continue
            write("\n")
        if refused and not conversation.turns:
            raise refused
        return conversation.turns
