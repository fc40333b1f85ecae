"""A folder full of traps: files named like all that Python or the system may look for.

A trap that is imported, loaded or run leaves a mark. Shared by the tests and bench/attacks/child.py.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
from pathlib import Path

import forged
import items
from bundles import write_bundle

import tenth

# Tried by some package, and caught where they are absent.
OPTIONAL = """sitecustomize usercustomize orjson simplejson ujson brotli brotlicffi IPython ipywidgets
readline apport_python_hook _virtualenv distutils setuptools pkg_resources attr cupy jax tensorflow flax onnx
zstandard pyximport matplotlib pandas win32api winreg _winapi java nt ce os2 msvcrt truststore keyring
dotenv""".split()  # noqa: SIM905
PROGRAMS = (
    "ssh",
    "tar",
    "adb",
    "strace",
    "vcgencmd",
    "python",
    "python3",
    "pip",
    "sh",
    "lscpu",
    "getconf",
    "env",
)
LIBRARIES = (
    *(f"libggml-{name}.so" for name in ("cpu", "cpu-x64", "blas", "cuda", "rpc", "vulkan")),
    *("libgomp.so.1", "libc.so.6", "libm.so.6", "libstdc++.so.6", "libcuda.so.1", "libOpenCL.so.1"),
)
SETTINGS = ("matplotlibrc", ".env", "pip.conf", "setup.cfg", "pyproject.toml", "pyvenv.cfg", "python311._pth")


def names() -> set[str]:
    """Every module at the top that is installed here or comes with Python, and those of `OPTIONAL`."""
    installed = {name for name in importlib.metadata.packages_distributions() if name.isidentifier()}
    return {*sys.stdlib_module_names, *sys.builtin_module_names, *installed, *OPTIONAL} - {"tenth"}


def lay(folder: Path) -> Path:
    """A folder of traps, with a bundle, a model and texts, as a stranger may offer it."""
    folder.joinpath("marks").mkdir(parents=True)
    for name in names():
        spring = f"import os; os.close(os.open({str(folder / 'marks' / name)!r}, os.O_CREAT))\n"
        if name in ("os", "posix"):
            spring = f"open({str(folder / 'marks' / name)!r}, 'w')\n"
        (folder / f"{name}.py").write_text(spring)
    for name in PROGRAMS:
        (folder / name).write_text(f"#!/bin/sh\necho > '{folder}/marks/program-{name}'\n")
        (folder / name).chmod(0o755)
    for name in (*LIBRARIES, *SETTINGS):
        (folder / name).write_bytes(b"\x7fELF trap")
    write_bundle(folder)
    tiny = importlib.import_module("tiny")  # mypy would check transformers with it
    tiny.make_model(folder / "model", "llama", "tied")
    forged.submission(folder / "submissions", "a", forged.model(folder / "original.gguf").read_bytes())
    (folder / "data").mkdir()
    items.write(folder / "data", 2)
    return folder


def marks(folder: Path) -> list[str]:
    return sorted(file.name for file in (folder / "marks").iterdir())


def environment(folder: Path) -> dict[str, str]:
    """As of somebody whose lists of folders end in an empty entry, which stands for the current one."""
    own = {"HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    source = os.environ.get("PYTHONPATH", "") or str(Path(tenth.__file__).parents[1])
    return {**os.environ, **own, "PYTHONPATH": source, "PATH": f"{os.environ['PATH']}:"}


VERBS = {
    "devices": "devices",
    "plan": "plan model --memory 100MB --context 64",
    "fit": "fit model -o out --memory 100MB --context 64 --windows 8 --threads 1 --effort fast --baselines 0",
    "measure": "measure . --repeats 1 --depths 0 --counter none --idle 0",
    "chat": "chat . --prompt hello --max-tokens 2",
    "report": "report .",
    "eval": "eval . --tasks piqa --data data --threads 1",
    "push": "push . nobody@127.0.0.1 -p 1",
    "measure on": "measure . --on nobody@127.0.0.1 -p 1",
    "submit": "submit . -o submitted",
    "judge": "judge submissions --device pixel-8 --against original.gguf --context 512 --threads 1",
    "leaderboard": "leaderboard results -o site",
}
FAILING = {
    "push": "127.0.0.1",
    "measure on": "127.0.0.1",
}  # nobody listens there; ssh is started all the same
