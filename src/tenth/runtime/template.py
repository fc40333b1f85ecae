"""Whether llama.cpp's server can read a model's chat template: it does not start with one that it cannot.

The server is started once, in a child process, with a model of one small block of zeros that has the template
and the tokenizer of the real one. It parses the template and renders conversations with it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jinja2

from tenth.core import children
from tenth.core.errors import InputError
from tenth.models.formats.gguf import write_hollow
from tenth.models.formats.vocabulary import TokenizerInfo

KEY = "tokenizer.chat_template"
SECONDS = 60  # that the server may take
UNREADABLE = 3  # the child's status when the server did not start
LINE = re.compile(r"at line (\d+)")


def check_template(tokenizer: TokenizerInfo) -> None:
    """InputError, with the line of the template, where the server cannot use it; without one all is well."""
    template = tokenizer.keys.get(KEY)
    if not template:
        return
    with tempfile.TemporaryFile() as model, tempfile.TemporaryFile() as log:
        write_hollow(tokenizer, _path(model.fileno()))
        command = "from tenth.runtime.template import child; child()"
        try:
            status = subprocess.run(
                [*children.python(command), str(model.fileno())],
                env=children.python_environment(),
                pass_fds=(model.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=SECONDS,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            raise InputError(
                f"the chat template keeps llama.cpp busy for more than {SECONDS} s; mend or remove it"
            ) from None
        if status == 0:
            return
        log.seek(0)
        said = log.read(1 << 20).decode("utf-8", "replace").splitlines()
    reason = complaint(said) or f"its server ended with status {status}"
    raise InputError(
        f"llama.cpp cannot use the chat template{_place(template, said)}: {reason}; mend it in"
        " chat_template.jinja or tokenizer_config.json, or remove it"
    )


def complaint(log: Sequence[str]) -> str:
    """What llama.cpp's log says against a template, in one line; "" for nothing."""
    for pattern in (r"^Error: (.+)", r"chat_templates_init: error: (.+)", r"template parsing error: (.+)"):
        for line in reversed(log):
            if found := re.search(pattern, line):
                return "".join(c if c.isprintable() else "?" for c in found[1])[:200].strip()
    return ""


def child() -> None:
    """The child's whole life: start the server with the model of the descriptor that it was given."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = f"/dev/fd/{int(sys.argv[1])}"
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.ui, params.offline, params.fit_params = False, True, False
    params.n_ctx = params.n_batch = params.n_ubatch = 64
    params.n_parallel, params.n_gpu_layers = 1, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    try:
        server = xllamacpp.Server(params)
    except RuntimeError:
        os._exit(UNREADABLE)
    os._exit(0 if server else UNREADABLE)  # its own end would wait for its threads, at times for ever


def _place(template: str, log: Sequence[str]) -> str:
    """ " at line N" of the template, from llama.cpp's words or, where it says nothing, from jinja2's."""
    for line in reversed(log):
        if found := LINE.search(line):
            return f" at line {found[1]}"
    try:
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=True).parse(template)
    except jinja2.TemplateSyntaxError as error:
        return f" at line {error.lineno}"
    except RecursionError:
        return ", which is nested too deeply"
    return ""


def _path(descriptor: int) -> Path:
    return Path(f"/dev/fd/{descriptor}")
