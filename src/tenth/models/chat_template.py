"""What a model's chat template writes around the turns of a conversation.

A template is a program of a stranger's. It is rendered once, over a conversation of placeholders, in jinja's
sandbox as transformers compiles it (utils/chat_template_utils.py), by a job that is run where time and memory
are bounded. What stands between the placeholders is the frame; texts are put into it without the template.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tenth.core.errors import InputError
from tenth.core.jobs import Emit, Job

TURNS = 8  # of the conversation, the user's first
FRAME_AT_MOST = 1 << 16  # characters
# Of templates that tell the date, so that the ids of a text do not depend on the day.
TODAY = datetime(2026, 1, 1, 12, tzinfo=UTC)


class ReadFrame(Job[tuple[str, ...]]):
    """The frame of a template: `TURNS` + 1 texts, before, between and behind the turns.

    tokens: the texts of special tokens by the names that templates know, such as "bos_token". InputError says
    what is wrong with a template, and in which line.
    """

    template: str
    tokens: dict[str, str]

    def run(self, emit: Emit) -> tuple[str, ...]:  # noqa: ARG002
        """Render it once."""
        return frame(self.template, self.tokens)


def frame(template: str, tokens: dict[str, str]) -> tuple[str, ...]:
    """See `ReadFrame`; bounded only by what the template does."""
    names = [f"tenthturn{number}x" for number in range(TURNS)]
    messages = [
        {"role": "assistant" if number % 2 else "user", "content": name} for number, name in enumerate(names)
    ]
    try:
        compiled = _environment().from_string(template)
        text = compiled.render(messages=messages, add_generation_prompt=False, **tokens)
    except jinja2.TemplateSyntaxError as error:
        raise InputError(f"line {error.lineno}: {_line(error)}") from None
    except Exception as error:  # a template may fail in any way
        raise InputError(f"it fails: {_line(error)}") from None
    parts, rest = [], text
    for name in names:
        before, found, rest = rest.partition(name)
        if not found:
            raise InputError("it leaves out or changes what a turn says")
        parts.append(before)
    parts.append(rest)
    if any(name in part for part in parts for name in names):
        raise InputError("it repeats what a turn says")
    if sum(map(len, parts)) > FRAME_AT_MOST:
        raise InputError(f"it writes more than {FRAME_AT_MOST:,} characters around turns")
    return tuple(parts)


class _Generation(Extension):
    """{% generation %}, by which transformers knows what the assistant says: its content, as it stands."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[Node]:
        """What stands between the two tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    """Jinja as transformers sets it up, but for the date."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = TODAY.strftime
    return environment


def _tojson(value: Any, **options: Any) -> str:
    """JSON without HTML's escapes."""
    return json.dumps(value, **{"ensure_ascii": False, **options})


def _refuse(message: str) -> None:
    """What templates call where a conversation is not to their liking."""
    raise jinja2.TemplateError(message)


def _line(error: Exception) -> str:
    """What went wrong, in a line of printable letters."""
    words = " ".join(str(error).split()) or type(error).__name__
    return "".join(letter for letter in words if letter.isprintable())[:200]
