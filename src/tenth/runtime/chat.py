"""Talk with a bundle in the terminal, offline, token by token.

The model's chat template is used where it has one (/v1/chat/completions of our own loopback server); a base
model without one continues the text typed so far (/v1/completions). When a conversation outgrows the context,
its oldest exchange is forgotten, and that is said.
"""

from __future__ import annotations

import http.client
import json
import secrets
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pydantic import JsonValue

from tenth.core.errors import InputError, NativeError
from tenth.runtime.bundle import Bundle
from tenth.runtime.serve import HOST, Running, running

QUIT = {"/quit", "/exit", "/bye"}


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

    server: Running
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
            for choice in _events(self.server, "/v1/chat/completions", body):
                delta = choice.get("delta") or {}
                yield delta.get("reasoning_content") or delta.get("content") or ""
        else:
            text = "".join(user + answer + "\n" for user, answer in turns) + message
            body = {"prompt": text, **self.sampling.fields()}
            for choice in _events(self.server, "/v1/completions", body):
                yield choice.get("text") or ""


class _TooLongError(Exception):
    """The server's refusal of a prompt that exceeds the context."""


def _events(server: Running, path: str, body: dict[str, JsonValue]) -> Iterator[dict[str, Any]]:
    """The first choice of every server-sent event of a streamed request."""
    connection = http.client.HTTPConnection(HOST, server.port)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {server.key}"}
    try:
        connection.request("POST", path, json.dumps(body), headers)
        response = connection.getresponse()
        if response.status != 200:
            raise _refusal(response.read())
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
    except (OSError, http.client.HTTPException) as error:
        with suppress(subprocess.TimeoutExpired):
            server.process.wait(timeout=5)
        server.check()
        raise NativeError(f"the model's server broke off: {error or type(error).__name__}") from error
    finally:
        connection.close()


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
    """The text without control characters: a model must not steer the terminal."""
    return "".join(c for c in piece if c.isprintable() or c in "\n\t")


def talk(
    bundle: Bundle,
    messages: Iterator[str],
    write: Callable[[str], None],
    say: Callable[[str], None],
    sampling: Sampling,
) -> list[tuple[str, str]]:
    """Answer messages until /quit or their end; `write` gets the answers' pieces, `say` the remarks."""
    with running(bundle, key=secrets.token_hex(16)) as server:
        if not bundle.has_template:
            say("this model has no chat template: it continues the text that you type")
        refused: InputError | None = None
        conversation = Conversation(server, bundle.has_template, sampling, say)
        for message in messages:
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
