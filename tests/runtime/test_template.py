"""A chat template that llama.cpp's server cannot use is refused at the start, with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import write_tokenizer

from tenth.core.errors import InputError
from tenth.models.formats.tokenizer import tokenizer_metadata
from tenth.runtime.template import check_template

GOOD = [
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
    "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ messages[0].content }}",
    "{{ bos_token }}{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m.content }}"
    "{% endfor %}",
]
BAD = {
    "open": ("{% for m in messages %}\n{{ m.content }}\n", "line"),
    "no expression": ("x\ny\n{% if %}y{% endif %}", "line 3"),
    "unknown filter": ("a\nb\n{{ messages[0].content | nosuchfilter }}", "line 3.*nosuchfilter"),
    "unknown function": ("{{ messages[0].content }}\n{{ nofunc(3) }}", "line 2.*nofunc"),
    "open text": ("{{ 'abc }}", "line 1"),
    "always raises": ("\n{{ raise_exception('never') }}", "line 2.*never"),
    "unknown statement": ("\n\n{% explode %}", "line 3"),
}


def given(folder: Path, kind: str, template: str) -> None:
    write_tokenizer(folder, kind)
    (folder / "chat_template.jinja").write_text(template)
    check_template(tokenizer_metadata(folder, {"vocab_size": 700}))


@pytest.mark.parametrize("template", GOOD)
def test_good(template: str, tmp_path: Path) -> None:
    given(tmp_path, "gpt-2", template)


@pytest.mark.parametrize("case", BAD)
def test_refused_with_its_line(case: str, tmp_path: Path) -> None:
    template, said = BAD[case]
    with pytest.raises(InputError, match=said) as caught:
        given(tmp_path, "llama", template)
    assert "\n" not in str(caught.value)
    assert "chat_template.jinja" in str(caught.value)


def test_no_template(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "gemma")
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    check_template(tokenizer_metadata(tmp_path, {"vocab_size": 700}))
