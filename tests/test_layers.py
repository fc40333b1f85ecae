"""The rooms of src/tenth and the arrows between them: every import is read, lazy ones and names in strings
too.
"""

from __future__ import annotations

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import tenth

SOURCE = Path(tenth.__file__).parent
# A room may import those to its right, and itself.
ROOMS = (
    "cli",
    "remote",
    "leaderboard",
    "evaluation",
    "pipeline",
    "report",
    "measurement",
    "planning",
    "distillation",
    "pruning",
    "quantization",
    "calibration",
    "devices",
    "runtime",
    "models",
    "core",
)
MOST_FILES = 14  # of Python in a folder, beside its __init__.py
DIRECTLY = {"__init__.py", "__main__.py", "py.typed"}
NAMED = re.compile(r"tenth(?:\.[a-z_0-9]+)+(?=:|$)")  # "tenth.room.module" or "tenth.room.module:function"


def modules(source: Path) -> dict[str, Path]:
    """Dotted name -> file, of every file of Python."""
    found = {}
    for path in source.rglob("*.py"):
        parts = path.relative_to(source).with_suffix("").parts
        found[".".join(("tenth", *parts)).removesuffix(".__init__")] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> Iterator[tuple[str, int]]:
    """(module of tenth, line) of all that a file names: imports anywhere in it, and strings that are
    names.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "tenth":
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield (whole if whole in known else node.module), node.lineno
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "tenth":
                    yield alias.name, node.lineno
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            named = NAMED.match(node.value)
            if named:
                name = named.group()
                while name not in known and "." in name:  # "tenth.room.module.function"
                    name = name.rpartition(".")[0]
                if name != "tenth":
                    yield name, node.lineno


def back_arrows(source: Path) -> list[str]:
    """Imports of a room to the left."""
    known, found = modules(source), []
    for name, path in sorted(known.items()):
        if name in ("tenth", "tenth.__main__"):
            continue
        here = ROOMS.index(name.split(".")[1])
        for target, line in imports(path, known):
            there = ROOMS.index(target.split(".")[1]) if "." in target else here
            if there < here:
                found.append(f"{path.relative_to(source)}:{line} imports {target}")
    return found


def circle(source: Path) -> list[str]:
    """The files of a circle of imports, or nothing. A folder's __init__ stands for no file below it."""
    known = modules(source)
    graph = {
        name: {target for target, _ in imports(path, known)} - {name}
        for name, path in known.items()
        if name not in ("tenth", "tenth.__main__")
    }
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_no_arrow_runs_back() -> None:
    assert back_arrows(SOURCE) == []


def test_no_circle_between_files() -> None:
    assert circle(SOURCE) == []


def test_every_folder_is_a_room_and_small() -> None:
    assert {entry.name for entry in SOURCE.iterdir() if entry.is_file()} == DIRECTLY
    folders = {entry.name for entry in SOURCE.iterdir() if entry.is_dir()} - {"data", "__pycache__"}
    assert folders == set(ROOMS)
    for folder in {path.parent for path in SOURCE.rglob("*.py")} - {SOURCE}:
        files = list(folder.glob("*.py"))
        assert (folder / "__init__.py") in files, folder
        if folder.name not in ("arch", "commands"):  # one file a family, one a verb: they are lists
            assert len(files) - 1 <= MOST_FILES, folder


def test_a_name_is_one_class() -> None:
    places: dict[str, list[str]] = {}
    for name, path in modules(SOURCE).items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(name)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A small house with one room's file importing another's properly."""
    for room in ROOMS:
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text("")
    (tmp_path / "core" / "store.py").write_text("")
    (tmp_path / "models" / "text.py").write_text("from tenth.core import store\n")
    assert back_arrows(tmp_path) == []
    assert circle(tmp_path) == []
    return tmp_path


@pytest.mark.parametrize(
    "line",
    [
        "from tenth.models import text",
        "import tenth.models.text",
        "def late():\n    from tenth.models.text import x",
        "if TYPE_CHECKING:\n    from tenth.models import text",
        'call("tenth.models.text:run")',
        'patch("tenth.models.text.run")',
    ],
)
def test_a_planted_back_arrow_is_seen(planted: Path, line: str) -> None:
    (planted / "core" / "store.py").write_text(line)
    assert len(back_arrows(planted)) == 1


@pytest.mark.parametrize(
    "line", ["from tenth.models import text", "def late():\n    import tenth.models.text"]
)
def test_a_planted_circle_is_seen(planted: Path, line: str) -> None:
    (planted / "models" / "hf.py").write_text(line)
    (planted / "models" / "text.py").write_text("from tenth.models.hf import read")
    assert set(circle(planted)) == {"tenth.models.text", "tenth.models.hf"}
