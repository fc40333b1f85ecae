"""Every mistake a person can make with a model, a text, a folder, a budget: one line, nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from commands import Shell
from safetensors.numpy import load_file, save_file

from tenth.cli import app
from tenth.core.format import megabytes

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pristine") / "model"
    tiny.make_model(folder, "llama", "tied")
    return folder


@pytest.fixture
def model(pristine: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt, alone in tmp_path."""
    shutil.copytree(pristine, tmp_path / "model")
    return tmp_path / "model"


def change(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def split(model: Path) -> None:
    """Two shards and their index."""
    tensors = load_file(model / WEIGHTS)
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in halves.items():
        save_file({name: tensors[name] for name in held}, model / file)
    places = {name: file for file, held in halves.items() for name in held}
    (model / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (model / WEIGHTS).unlink()


def missing_weights(model: Path) -> None:
    (model / WEIGHTS).unlink()


def truncated(model: Path) -> None:
    data = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(data[: len(data) // 2])


def unnamed_shard(model: Path) -> None:
    split(model)
    save_file({"more": np.zeros(4, np.float32)}, model / "model-00003-of-00003.safetensors")


def missing_shard(model: Path) -> None:
    split(model)
    (model / "model-00002-of-00002.safetensors").unlink()


def other_shapes(model: Path) -> None:
    change(model / "config.json", intermediate_size=128)


def not_a_number(model: Path) -> None:
    tensors = load_file(model / WEIGHTS)
    tensors["model.layers.1.mlp.up_proj.weight"][5, 3] = np.nan
    save_file(tensors, model / WEIGHTS)


def unknown_architecture(model: Path) -> None:
    change(model / "config.json", model_type="lama")


def only_pickle(model: Path) -> None:
    (model / WEIGHTS).rename(model / "pytorch_model.bin")


def corrupt_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab"')


def no_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    (model / "tokenizer_config.json").unlink()


def config_no_json(model: Path) -> None:
    (model / "config.json").write_text("hidden_size: 64")


def no_config(model: Path) -> None:
    (model / "config.json").unlink()


SPOILT: list[tuple[Callable[[Path], None], list[str]]] = [
    (missing_weights, ["holds no model.safetensors", "complete"]),
    (truncated, [WEIGHTS, "truncated", "again"]),
    (unnamed_shard, ["model-00003-of-00003.safetensors", "does not name"]),
    (missing_shard, ["model-00002-of-00002.safetensors", "missing"]),
    (other_shapes, ["model.layers.0.mlp", "config.json implies"]),
    (not_a_number, ["model.layers.1.mlp.up_proj.weight", "NaN", "row 5"]),
    (unknown_architecture, ["'lama'", "Did you mean 'llama'?", "gemma2", "qwen3"]),
    (only_pickle, ["pickle", "convert them to safetensors"]),
    (corrupt_tokenizer, ["tokenizer.json", "not valid JSON"]),
    (no_tokenizer, ["tokenizer"]),
    (config_no_json, ["config.json", "not valid JSON"]),
    (no_config, ["config.json is missing"]),
]


class Refused:
    """The outcome of `tenth fit` in a folder that must look afterwards as before."""

    def __init__(self, capsys: pytest.CaptureFixture[str], place: Path) -> None:
        self._capsys, self._place = capsys, place

    def __call__(self, *words: object) -> dict[str, Any]:
        """The error's object, from --json; checks all that is common to errors."""
        before = sorted(self._place.rglob("*"))
        given = [str(word) for word in words]
        for option, value in (("--memory", "100MB"), ("-o", str(self._place / "out")), ("--context", "64")):
            if option not in given and not (option == "--memory" and "--device" in given):
                given += [option, value]
        with pytest.raises(SystemExit) as caught:
            app.main(["fit", *given, "--windows", "8", "--threads", "1", "--json"])
        out, err = self._capsys.readouterr()
        assert caught.value.code == 2
        assert sorted(self._place.rglob("*")) == before
        lines = [line for line in err.splitlines() if line.startswith("tenth: error: ")]
        error: dict[str, Any] = json.loads(out)["error"]
        assert lines == [f"tenth: error: {error['message']}"]
        assert "Traceback" not in err
        self.said = err
        return error


@pytest.fixture
def refused(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> Refused:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    return Refused(capsys, tmp_path)


@pytest.mark.parametrize(("spoil", "said"), SPOILT, ids=lambda value: getattr(value, "__name__", ""))
def test_a_spoilt_model(
    model: Path, refused: Refused, spoil: Callable[[Path], None], said: list[str]
) -> None:
    spoil(model)
    error = refused(model)
    assert error["kind"] == "InputError"
    for part in said:
        assert part in error["message"]


def test_an_unknown_device_is_answered_with_the_nearest_and_all(model: Path, refused: Refused) -> None:
    message = refused(model, "--device", "pixel8")["message"]
    assert "Did you mean 'pixel-8'?" in message
    assert "iphone" in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"far too short", "too short to calibrate"),
        (b"PK\x03\x04\xff\xfe binary", "no UTF-8 text"),
        (b"plain\0text" * 2000, "NUL"),
        (None, "no text file"),
    ],
)
def test_an_unusable_text(
    model: Path, refused: Refused, tmp_path: Path, content: bytes | None, said: str
) -> None:
    text = tmp_path / "text.txt"
    if content is not None:
        text.write_bytes(content)
    assert said in refused(model, "--text", text)["message"]


def test_a_folder_that_holds_something_is_left_alone(model: Path, refused: Refused, tmp_path: Path) -> None:
    for name in ("out", "out.partial"):
        place = tmp_path / name
        place.mkdir()
        (place / "thesis.txt").write_text("ten years of work")
        error = refused(model, "--overwrite")
        assert error["kind"] == "OutputError"
        assert str(place) in error["message"]
        assert (place / "thesis.txt").read_text() == "ten years of work"
        shutil.rmtree(place)


def test_folders_made_on_the_way_are_removed(model: Path, refused: Refused, tmp_path: Path) -> None:
    corrupt_tokenizer(model)
    refused(model, "-o", tmp_path / "not" / "yet" / "there")


@pytest.mark.parametrize("share", [["--memory", "3MB"], ["--device", "pixel-8", "--share", "0.05%"]])
def test_a_budget_that_nothing_meets_fails_at_once(
    model: Path, refused: Refused, tmp_path_factory: pytest.TempPathFactory, share: list[str]
) -> None:
    work = tmp_path_factory.mktemp("no") / "work"
    error = refused(model, *share, "--work", work)
    smallest = error["smallest"]
    assert error["kind"] == "BudgetError"
    assert smallest["total"] == sum(size for name, size in smallest.items() if name != "total")
    assert smallest["total"] > 4_000_000
    for said in (f"{megabytes(smallest['total'])} MB", "weights", "base", "smaller sibling", "--share"):
        assert said in error["message"]
    assert refused.said.lower().count("what would help") == 1
    assert "calibrate" not in refused.said
    assert not work.exists()


def test_a_context_beyond_the_model(model: Path, refused: Refused, tmp_path: Path) -> None:
    error = refused(model, "--context", "257")
    assert "max_position_embeddings is 256" in error["message"]
    change(
        model / "config.json", model_type="mistral", sliding_window=48, architectures=["MistralForCausalLM"]
    )
    assert "sliding window" in refused(model)["message"]


def test_a_hub_name_offline(tmp_path: Path) -> None:
    done = Shell(tmp_path).run("fit", "some-owner/not-cached", "--memory", "1GB", "-o", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.startswith("tenth: error: no folder 'some-owner/not-cached' here")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("out*"))


@pytest.fixture
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A disk of 200 KB: less than hidden states or a model take."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a small disk takes root on Linux")
    place = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not allow mounting a small disk")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk(
    model: Path, refused: Refused, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, small_disk: Path
) -> None:
    text = tmp_path / "text.txt"
    words = " ".join(tiny.CORPUS).split()
    text.write_text(" ".join(np.random.default_rng(0).choice(words, 1500).tolist()))
    work = small_disk / "work"
    error = refused(model, "--text", text, "--work", work)
    assert error["kind"] == "OutputError"
    assert "no space left" in error["message"].lower()
    assert str(work) in error["message"]
    shutil.rmtree(work)
    error = refused(
        model, "--text", text, "--work", tmp_path_factory.mktemp("work"), "-o", small_disk / "out"
    )
    assert error["kind"] == "OutputError"
    assert str(small_disk) in error["message"]
    assert not list(small_disk.iterdir())
