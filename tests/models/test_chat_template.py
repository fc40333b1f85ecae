"""Chat templates: the frame is what transformers writes around turns, and a bad template is a message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import write_tokenizer

from tenth.core.errors import InputError, NativeError
from tenth.models.chat_template import ReadFrame, frame
from tenth.runtime.sandbox import Limits, Sandbox

MARKED = "{% for m in messages %}"
TEMPLATES = {
    "chatml": MARKED + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
    "system": (
        MARKED
        + "{% if loop.first and m.role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
        "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    ),
    "gemma": (
        "{{ bos_token }}" + MARKED + "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}<start_of_turn>"
        "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
        "{% endfor %}"
    ),
    "mistral": (
        "{{ bos_token }}" + MARKED + "{% if m.role == 'user' %} [INST] {{ m.content }} [/INST]{% else %}"
        "{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    ),
    "llama 3": (
        "{% set loop_messages = messages %}{% for m in loop_messages %}{% set content = "
        "'<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' %}"
        "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    ),
    "tools": (
        "{% if tools is defined and tools %}{{ tools | tojson(indent=2) }}{% endif %}"
        "{% set ns = namespace(n=0) %}" + MARKED + "{% if not m.content %}{% continue %}{% endif %}"
        "{% generation %}[{{ ns.n }} {{ m.role }}]{{ m.content }}{% endgeneration %}"
        "{% set ns.n = ns.n + 1 %}{% endfor %}"
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_texts_in_the_frame_are_what_transformers_renders(name: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write_tokenizer(tmp_path, "llama")
    file = tmp_path / "tokenizer_config.json"
    settings = json.loads(file.read_text()) | {"bos_token": "<s>", "chat_template": TEMPLATES[name]}
    file.write_text(json.dumps(settings))
    inner = AutoTokenizer.from_pretrained(tmp_path)
    around = frame(TEMPLATES[name], {"bos_token": "<s>", "eos_token": "</s>"})
    said = [f"Turn {number}, <b>bold</b> & \u00e9." for number in range(8)]
    messages = [
        {"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(said)
    ]
    ours = "".join(a + b for a, b in zip(around, [*said, ""], strict=True))
    assert ours == inner.apply_chat_template(messages, tokenize=False)


def test_the_day_does_not_count() -> None:
    dated = "{{ strftime_now('%d %b %Y') }}" + TEMPLATES["chatml"]
    assert frame(dated, {})[0].startswith("01 Jan 2026<|im_start|>")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for m in messages %}\n{% if %}", "line 2: Expected an expression"),
        ("{{ messages[0].content }}", "leaves out"),
        (MARKED + "{{ m.content | upper }}{% endfor %}", "leaves out"),
        (MARKED + "{{ m.content }}{% endfor %}{{ messages[0].content }}", "repeats"),
        (MARKED + "{{ m.content }}{% endfor %}{{ 'a' * 99999 }}", "characters around"),
        ("{{ raise_exception('no \x1b[31m system') }}", r"it fails: no \[31m system"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os.system('id') }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ 1 / 0 }}", "division"),
    ],
)
def test_bad_templates_are_one_line(template: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        frame(template, {})
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 10**10 }}",
        "{{ (10 ** 10 ** 8) | string | length }}",
    ],
)
def test_greedy_templates_are_ended(template: str) -> None:
    box = Sandbox(Limits(memory=256 << 20, seconds=3.0))
    with pytest.raises((NativeError, InputError)):
        box.run(ReadFrame(template=template, tokens={}))
