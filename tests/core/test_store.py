"""The work folder: stages are built once, a killed one resumes, files appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import sys
import threading
from pathlib import Path

import pytest

from tenth.core.errors import OutputError
from tenth.core.store import Store, atomic, default_work, write_text
from tenth.devices.catalogue import own_folder


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
        (folder / "half").write_text("done so far")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.stage("calibration", {}, dies)
    seen = []
    final = store.stage("calibration", {}, lambda folder: seen.append((folder / "half").read_text()))
    assert seen == ["done so far"]
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
        (folder / "half").write_text("left")
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
    (shelf / "one").write_text("kept")
    again = Store(tmp_path).shelf("rounded", {"b": None, "a": 1})
    assert again == shelf
    assert (again / "one").read_text() == "kept"
    assert len({shelf, store.shelf("rounded", {"a": 2, "b": None}), store.shelf("other", {"a": 1})}) == 3
    assert not list(tmp_path.glob("*.partial"))
    store.remove(shelf)
    assert not list(store.shelf("rounded", {"a": 1, "b": None}).iterdir())


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
