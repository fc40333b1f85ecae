"""The work folder: stages are built once, a killed one resumes, files appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Killed

from tenth.core import digests
from tenth.core.errors import OutputError
from tenth.core.store import Store, atomic, default_work, temporary_folder, write_text
from tenth.devices.catalogue import own_folder


def names(folder: Path) -> list[str]:
    """What lies in a folder of the store, its list apart."""
    files = [path for path in folder.rglob("*") if path.is_file() and path != folder / digests.LIST]
    return sorted(path.relative_to(folder).as_posix() for path in files)


def three(folder: Path) -> None:
    """A stage of three files, one of them in a folder and one not written by `atomic`."""
    write_text(folder / "result.json", json.dumps({"kl": 0.25}))
    (folder / "below").mkdir(exist_ok=True)
    write_text(folder / "below" / "state.npz", "s" * 1000)
    (folder / "probe.npy").write_bytes(bytes(5000))


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def nest(path: Path) -> None:
    path.write_text("[" * 100_000)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def stray(path: Path) -> None:
    path.with_name("stray.json").write_text("{}")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a flipped bit": flip,
    "cut short": cut,
    "one byte more": grow,
    "emptied": lambda path: path.write_bytes(b""),
    "removed": Path.unlink,
    "no JSON": lambda path: path.write_bytes(b"\xff\xfe{"),
    "another JSON": lambda path: path.write_text('{"kl": 0.5}'),
    "null": lambda path: path.write_text("null"),
    "nested": nest,
    "no number": lambda path: path.write_text('{"kl": NaN}'),
    "a stray file": stray,
    "a folder": replace_by_folder,
    "a pipe": replace_by_pipe,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["result.json", "below/state.npz", "probe.npy", digests.LIST])
def test_a_damaged_stage_is_made_again_with_one_line(tmp_path: Path, damage: str, file: str) -> None:
    final = Store(tmp_path).stage("calibration", {}, three)
    kept = {name: (final / name).read_bytes() for name in names(final)}
    DAMAGES[damage](final / file)
    said: list[str] = []
    store, built = Store(tmp_path, said.append), []

    def build(folder: Path) -> None:
        built.append(names(folder))
        three(folder)

    assert store.stage("calibration", {}, build) == final
    assert built == [[]]
    (line,) = said
    assert line.startswith(f"{final.name} was damaged (")
    assert "\n" not in line
    assert {name: (final / name).read_bytes() for name in names(final)} == kept
    assert [path.name for path in tmp_path.iterdir()] == [final.name]
    assert store.stage("calibration", {}, build) == final
    assert len(built) == 1, "it is read once a run"


@pytest.mark.parametrize(
    "damage", [name for name in DAMAGES if name not in ("one byte more", "a stray file")]
)
def test_what_a_killed_run_left_is_whole_or_made_again(tmp_path: Path, damage: str) -> None:
    """Bytes behind those that were listed, and files that were not, are left by any kill: unsaid."""

    def dies(folder: Path) -> None:
        three(folder)
        raise Killed

    with pytest.raises(Killed):
        Store(tmp_path).stage("calibration", {}, dies)
    (partial,) = tmp_path.iterdir()
    DAMAGES[damage](partial / "below" / "state.npz")
    said: list[str] = []
    seen: list[list[str]] = []
    Store(tmp_path, said.append).stage("calibration", {}, lambda folder: seen.append(names(folder)))
    assert seen == [[]]
    (line,) = said
    assert "what a stopped run left of calibration-" in line


def test_a_file_written_piece_by_piece_goes_on_where_it_was_listed(tmp_path: Path) -> None:
    def dies(folder: Path) -> None:
        lines = folder / "lines.jsonl"
        with lines.open("a") as file:
            listed = digests.Growing(lines)
            for line in ("one\n", "two\n"):
                file.write(line)
                file.flush()
                listed.note()
            file.write("thr")
        raise Killed

    with pytest.raises(Killed):
        Store(tmp_path).stage("prices", {}, dies)
    seen: list[str] = []
    Store(tmp_path).stage("prices", {}, lambda folder: seen.append((folder / "lines.jsonl").read_text()))
    assert seen == ["one\ntwo\n"]


def test_files_that_were_removed_on_purpose_are_not_missed(tmp_path: Path) -> None:
    def dies(folder: Path) -> None:
        three(folder)
        write_text(folder / "hidden-1.f32", "states")
        digests.forget(folder / "hidden-1.f32")
        digests.forget(folder / "below")
        raise Killed

    with pytest.raises(Killed):
        Store(tmp_path).stage("calibration", {}, dies)
    said: list[str] = []
    seen: list[list[str]] = []
    Store(tmp_path, said.append).stage("calibration", {}, lambda folder: seen.append(names(folder)))
    assert (seen, said) == ([["result.json"]], [])


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name != "a stray file"])
def test_of_a_shelf_only_what_is_damaged_is_made_again(tmp_path: Path, damage: str) -> None:
    shelf = Store(tmp_path).shelf("rounded", {})
    for name in ("a", "b", "c"):
        write_text(shelf / name, name * 100)
    DAMAGES[damage](shelf / "b")
    said: list[str] = []
    store = Store(tmp_path, said.append)
    assert names(store.shelf("rounded", {})) == ["a", "c"]
    assert said == [f"{shelf.name} was damaged (b): that is made again"]
    write_text(shelf / "b", "b" * 100)
    assert names(Store(tmp_path, said.append).shelf("rounded", {})) == ["a", "b", "c"]
    assert len(said) == 1


def test_a_shelf_without_its_list_is_empty(tmp_path: Path) -> None:
    shelf = Store(tmp_path).shelf("rounded", {})
    write_text(shelf / "a", "a")
    flip(shelf / digests.LIST)
    said: list[str] = []
    assert names(Store(tmp_path, said.append).shelf("rounded", {})) == []
    assert len(said) == 1


def test_a_list_that_leads_out_of_the_folder_is_damage(tmp_path: Path) -> None:
    final = Store(tmp_path / "work").stage("a", {}, three)
    (tmp_path / "precious").write_text("")
    with (final / digests.LIST).open("a") as file:
        file.write('{"file": "../../precious", "size": -1, "sha256": ""}\n')
    said: list[str] = []
    Store(tmp_path / "work", said.append).stage("a", {}, three)
    assert len(said) == 1
    assert (tmp_path / "precious").exists()


def fail(path: Path, error: Exception) -> None:
    """Write half of a file."""
    with atomic(path) as partial:
        partial.write_text("half")
        raise error


def test_a_stage_is_built_once_for_the_same_inputs(tmp_path: Path) -> None:
    store, built = Store(tmp_path / "deep" / "work"), []

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "result").write_text(str(len(built)))

    first = store.stage("prices", {"a": 1, "b": [2, None]}, build)
    again = store.stage("prices", {"b": [2, None], "a": 1}, build)
    other = store.stage("prices", {"a": 2, "b": [2, None]}, build)
    renamed = store.stage("stats", {"a": 1, "b": [2, None]}, build)
    assert first == again
    assert len({first, other, renamed}) == 3
    assert (first / "result").read_text() == "1"
    assert len(built) == 3
    assert first.name.startswith("prices-")
    assert Store(store.root).stage("prices", {"a": 1, "b": [2, None]}, build) == first
    assert len(built) == 3


def test_an_unfinished_stage_is_resumed_in_its_folder(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def dies(folder: Path) -> None:
        write_text(folder / "half", "done so far")
        (folder / "cut.partial").write_text("never renam")
        (folder / "unlisted").write_text("as if the process had been killed before it was listed")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.stage("calibration", {}, dies)
    seen: list[list[str]] = []

    def resumes(folder: Path) -> None:
        assert (folder / "half").read_text() == "done so far"
        seen.append(names(folder))

    final = store.stage("calibration", {}, resumes)
    assert seen == [["half"]]
    assert [path.name for path in tmp_path.iterdir()] == [final.name]


def test_two_at_once_build_a_stage_once(tmp_path: Path) -> None:
    """The second process waits, says so, and finds it finished."""
    started, told, built = threading.Event(), threading.Event(), []

    def slow(folder: Path) -> None:
        built.append("first")
        started.set()
        assert told.wait(60)

    first = threading.Thread(target=lambda: Store(tmp_path).stage("a", {}, slow))
    first.start()
    assert started.wait(60)
    said: list[str] = []

    def say(message: str) -> None:
        said.append(message)
        told.set()

    final = Store(tmp_path, say).stage("a", {}, lambda folder: built.append("second"))
    first.join()
    assert built == ["first"]
    assert len(said) == 1
    assert "another run" in said[0]
    assert [path.name for path in tmp_path.iterdir()] == [final.name]


def test_the_second_builds_where_the_first_failed(tmp_path: Path) -> None:
    started, told = threading.Event(), threading.Event()

    def fails(folder: Path) -> None:
        write_text(folder / "half", "left")
        started.set()
        assert told.wait(60)
        raise ValueError

    def first() -> None:
        with contextlib.suppress(ValueError):
            Store(tmp_path).stage("a", {}, fails)

    thread = threading.Thread(target=first)
    thread.start()
    assert started.wait(60)
    seen: list[str] = []
    store = Store(tmp_path, lambda _: told.set())
    store.stage("a", {}, lambda folder: seen.append((folder / "half").read_text()))
    thread.join()
    assert seen == ["left"]


def test_removed_stages_are_built_again(tmp_path: Path) -> None:
    store, built = Store(tmp_path), []
    store.remove(store.stage("a", {}, lambda folder: built.append(1)))
    store.remove(tmp_path / "not there")
    store.stage("a", {}, lambda folder: built.append(1))
    assert len(built) == 2


def test_a_shelf_is_never_finished_and_keeps_what_is_in_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    shelf = store.shelf("rounded", {"a": 1, "b": None})
    write_text(shelf / "one", "kept")
    (shelf / "two.partial").write_text("ke")
    again = Store(tmp_path).shelf("rounded", {"b": None, "a": 1})
    assert again == shelf
    assert (again / "one").read_text() == "kept"
    assert names(shelf) == ["one"]
    assert len({shelf, store.shelf("rounded", {"a": 2, "b": None}), store.shelf("other", {"a": 1})}) == 3
    assert not list(tmp_path.glob("*.partial"))
    store.remove(shelf)
    assert names(store.shelf("rounded", {"a": 1, "b": None})) == []


def test_a_file_in_the_way_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="--work"):
        Store(tmp_path / "file")
    with pytest.raises(OutputError, match="--work"):
        Store(tmp_path / "file" / "below")


def test_atomic_leaves_the_old_file_where_the_body_fails(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_text(path, "älter")
    with pytest.raises(ZeroDivisionError):
        fail(path, ZeroDivisionError())
    assert path.read_text(encoding="utf-8") == "älter"
    assert list(tmp_path.iterdir()) == [path]
    write_text(path, "new")
    assert path.read_text() == "new"


def test_a_full_disk_is_an_output_error_with_advice(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"plan\.json.*free space"):
        fail(tmp_path / "plan.json", OSError(errno.ENOSPC, "No space left on device"))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other folders")
def test_the_cache_is_where_linux_keeps_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert default_work() == tmp_path / "elsewhere" / "tenth"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_work() == tmp_path / ".cache" / "tenth"
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert own_folder() == tmp_path / ".config" / "tenth" / "devices"


HOLDER = """
import subprocess
import sys
import tempfile
from tenth.core.store import temporary_folder
with temporary_folder() as folder:
    (folder / "half").write_text("of a file")
    print(folder.name, flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")
def test_temporary_folders_of_killed_runs_are_removed_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    others = {"tenth-out", ".tenth-scratch-link", ".tenth-scratch-file", "elsewhere"}
    (tmp_path / "tenth-out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".tenth-scratch-file").write_text("a person's")
    (tmp_path / ".tenth-scratch-link").symlink_to(tmp_path / "elsewhere")
    holders = [
        subprocess.Popen(
            [sys.executable, "-c", HOLDER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(tmp_path)},
        )
        for _ in range(2)
    ]
    lines = [holder.stdout.readline().strip() for holder in holders if holder.stdout is not None]
    holders[0].kill()
    holders[0].wait()
    with temporary_folder() as own:
        left = {path.name for path in tmp_path.iterdir()}
        assert left == others | {lines[1], own.name}
    for holder in holders:
        holder.communicate("")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == others
