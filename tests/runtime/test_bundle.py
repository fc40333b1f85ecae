"""The folder that a command makes: claimed by one run, whole or not there, apart from what it is made of."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import Killed

from tenth.core.errors import OutputError
from tenth.core.store import claimed, write_text
from tenth.runtime import bundle

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")

MAKER = """
import sys
from pathlib import Path
from tenth.runtime import bundle
with bundle.new(Path(sys.argv[1]), overwrite=True) as folder:
    (folder / "model.gguf").write_bytes(b"half of")
    print("begun", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another(out: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that is making OUT, for the length of the with statement or until it is killed."""
    maker = subprocess.Popen(
        [sys.executable, "-c", MAKER, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert maker.stdout is not None
        assert maker.stdout.readline() == "begun\n"
        yield maker
    finally:
        maker.kill()
        maker.communicate()


def refused(out: Path) -> bool:
    """Whether OUT cannot be made, with one line that says why."""
    try:
        with bundle.new(out, overwrite=True):
            return False
    except OutputError as error:
        return "another run" in str(error) and "\n" not in str(error)


def test_a_folder_that_is_being_made_is_refused_at_once(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with another(out) as maker:
        assert refused(out)
        with pytest.raises(OutputError, match="another run"):
            bundle.check_unclaimed(out)
        assert (out.parent / "out.partial" / "model.gguf").read_bytes() == b"half of", "it is left alone"
        maker.communicate("")
        assert maker.returncode == 0
    assert (out / "model.gguf").read_bytes() == b"half of"
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_killed_maker_lets_go_and_what_it_left_is_cleared(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with another(out) as maker:
        maker.send_signal(signal.SIGKILL)
        maker.wait()
    bundle.check_unclaimed(out)
    assert (tmp_path / "out.partial").is_dir()
    with bundle.new(out) as folder:
        assert not list(folder.iterdir())
        (folder / "log.txt").write_text("")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_finished_folder_is_not_replaced_while_it_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with bundle.new(out) as folder:
        for name in bundle.BUNDLE_FILES:
            (folder / name).write_text("x")
    with claimed(out, "measured by another run"):
        assert refused(out)
        with pytest.raises(OutputError, match="another run"):
            bundle.check_unclaimed(out)
    assert not refused(out)
    with another(out), pytest.raises(OutputError, match="its words"), claimed(out, "its words"):
        pass


@pytest.mark.parametrize("stopped", [KeyboardInterrupt, OutputError, OSError, Killed])
def test_what_fails_leaves_nothing(tmp_path: Path, stopped: type[BaseException]) -> None:
    def fails() -> None:
        with bundle.new(tmp_path / "a" / "b" / "out") as folder:
            (folder / "model.gguf").write_text("half of")
            raise stopped

    with pytest.raises((stopped, OutputError)):
        fails()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("out", "work", "inputs", "said"),
    [
        ("out", "out/work", [], "work folder"),
        ("out", "out", [], "work folder"),
        ("out", "deep/../out/work/below", [], "work folder"),
        ("link", "out/work", [], "work folder"),
        ("work/out", "work", [], "lies in the work folder"),
        ("link/x", "out", [], "lies in the work folder"),
        ("out", "work", ["model", "out/hf"], "out/hf lies in"),
        ("out", "work", ["out/text.txt"], "out/text.txt lies in"),
        ("out", "work", ["out"], "lies in"),
        ("out", "work", ["model", "out2/text.txt"], ""),
        ("out", "out-work", [], ""),
        ("model/out", "work", ["model"], ""),
    ],
)
def test_out_and_what_it_is_made_of_lie_apart(
    tmp_path: Path, out: str, work: str, inputs: list[str], said: str
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "out")
    (tmp_path / "deep").mkdir()
    given = tmp_path / out, tmp_path / work, [tmp_path / name for name in inputs]
    if said:
        with pytest.raises(OutputError, match=said):
            bundle.check_apart(*given)
    else:
        bundle.check_apart(*given)


def loop(folder: Path) -> Path:
    (folder / "loop").symlink_to(folder / "loop")
    return folder / "loop"


def file(folder: Path) -> Path:
    (folder / "file").write_text("")
    return folder / "file"


def to_nothing(folder: Path) -> Path:
    (folder / "to-nothing").symlink_to(folder / "nowhere")
    return folder / "to-nothing"


UNUSABLE: dict[str, Callable[[Path], Path]] = {
    "too long": lambda folder: folder / ("n" * 300),
    "too deep": lambda folder: folder / "/".join(["d" * 200] * 30),
    "too long with .partial": lambda folder: folder / ("n" * 250),
    "a loop of links": loop,
    "a file": file,
    "below a file": lambda folder: file(folder) / "out",
    "a link to nothing": to_nothing,
}


@pytest.mark.parametrize("how", UNUSABLE)
def test_a_path_that_cannot_be_is_one_line(tmp_path: Path, how: str) -> None:
    out = UNUSABLE[how](tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OutputError) as refusal, bundle.new(out):
        pass
    assert "\n" not in str(refusal.value)
    assert sorted(tmp_path.iterdir()) == before


def test_two_that_write_one_file_take_turns(tmp_path: Path) -> None:
    """Each leaves a whole file, the last one stays, and nothing of either is left beside it."""
    path = tmp_path / "measure.json"
    code = "import sys; from pathlib import Path; from tenth.core.store import write_text\n"
    code += "for _ in range(200): write_text(Path(sys.argv[1]), sys.argv[2] * 5000)"
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), letter]) for letter in "abcd"]
    assert [writer.wait(120) for writer in writers] == [0] * 4
    assert path.read_text() in {letter * 5000 for letter in "abcd"}
    assert list(tmp_path.iterdir()) == [path]
    write_text(path, "new")
    assert path.read_text() == "new"
