from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import tomllib
from pathlib import Path

import bundles
import forged
import pytest
from commands import Shell
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from waiting import soon

from tenth.core.errors import InputError, OutputError
from tenth.leaderboard import submission
from tenth.leaderboard.records import DIVISIONS, Manifest, Settings

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80)


def test_the_template_is_a_manifest() -> None:
    manifest = submission.read_manifest(submission.TEMPLATE.encode())
    assert manifest.division in DIVISIONS
    assert manifest.runtime == Settings()
    assert set(tomllib.loads(submission.TEMPLATE)) == set(Manifest.model_fields) - {"url"}


@given(name=texts, method=texts, data=texts)
def test_a_written_manifest_is_read_as_it_was(name: str, method: str, data: str) -> None:
    manifest = Manifest(
        name=name,
        base="x",
        division="open",
        method=method,
        data=data,
        licence="MIT",
        runtime=Settings(type_k="q8_0", flash_attention=False),
    )
    assert submission.read_manifest(submission.written(manifest).encode()) == manifest


@settings(max_examples=300)
@given(raw=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_any_bytes_are_a_manifest_or_an_error(raw: bytes) -> None:
    with pytest.raises(InputError, match=r"submission\.toml"):
        submission.read_manifest(raw)


# What no folder of a stranger may do to the round: end it. Some 15 kinds of values, nested in each other.
VALUES = st.recursive(
    st.one_of(
        st.integers(-(10**3000), 10**3000).map(str),
        st.integers(4301, 9000).map(lambda digits: "9" * digits),
        st.floats().map(str),
        st.sampled_from(
            ["-inf", "true", "1979-05-27", "00:32:00.999", "2024-02-30T99:99:99Z", "0x" + "f" * 5000]
        ),
        st.text(max_size=50).map(json.dumps),
        st.sampled_from(['"\\u0000"', '"\\uD800"', "'\x1b[2J'", '"' + "a" * 60_000 + '"']),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda items: f"[{', '.join(items)}]"),
        inner.map(lambda item: "{ a = " + item + " }"),
        st.integers(1, 2000).map(lambda depth: "[" * depth + "]" * depth),
    ),
    max_leaves=5,
)
KEYS = st.sampled_from([*Manifest.model_fields, "score", '"\\u001b[2J"'])


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(fields=st.dictionaries(KEYS, VALUES, min_size=1, max_size=6))
def test_any_toml_is_a_manifest_or_a_line(fields: dict[str, str]) -> None:
    raw = "\n".join(f"{key} = {value}" for key, value in fields.items())
    with pytest.raises(InputError, match=r"submission\.toml") as error:
        submission.read_manifest(raw.encode("utf-8", "surrogatepass"))
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("depth", [100, 500, 900, 5_000, 30_000])
def test_deep_toml(depth: int) -> None:
    arrays, tables = "[" * depth + "]" * depth, "{a=" * depth + "1" + "}" * depth
    for raw in (f"a = {arrays}", f"name = {tables}", "a." * depth + "a = 1"):
        with pytest.raises(InputError, match=r"submission\.toml"):
            submission.read_manifest(raw.encode())


NAMES = [b"caf\xe9", b"\xff\xfe", b"a\nb", b"\x1b]0;x\x07", "a\u202eb".encode(), b"\x7f"]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_cannot_be_printed(tmp_path: Path, name: bytes) -> None:
    folder = forged.submission(tmp_path, os.fsdecode(name), b"GGUF")
    seen = submission.open_submission(folder, 1 << 30)
    assert "no printable UTF-8; rename it" in seen.trouble
    assert seen.name.isprintable()
    assert submission.find_submissions([tmp_path]) == [folder]


def _spoil(path: Path, kind: str) -> None:
    if kind == "unreadable":
        path.chmod(0)
        return
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as line:
            line.bind(path.name)
    elif kind in ("link", "loop"):
        path.symlink_to("/dev/zero" if kind == "link" else path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.touch()
        os.truncate(path, 1 << 40)


@pytest.mark.parametrize("file", ["model.gguf", "submission.toml"])
@pytest.mark.parametrize("kind", ["pipe", "socket", "link", "loop", "folder", "unreadable", "sparse"])
def test_files_that_are_none(tmp_path: Path, file: str, kind: str) -> None:
    folder = forged.submission(tmp_path, "a", b"GGUF")
    _spoil(folder / file, kind)
    (tmp_path / "copies").mkdir()
    seen = submission.open_submission(folder, 1 << 30, tmp_path / "copies")
    assert seen.trouble or (kind == "unreadable" and os.getuid() == 0)
    assert sum(copy.stat().st_size for copy in (tmp_path / "copies").iterdir()) <= 4


def test_copies_are_what_counts(tmp_path: Path) -> None:
    folder = forged.submission(tmp_path, "a", b"GGUF")
    (tmp_path / "copies").mkdir()
    seen = submission.open_submission(folder, 1 << 30, tmp_path / "copies")
    (folder / "model.gguf").write_bytes(b"other")
    assert [file.read_bytes() for file in seen.files] == [b"GGUF"]
    assert submission.open_submission(folder, 1 << 30).artifact != seen.artifact


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"division": "fastest"}, "division"),
        ({"score": 1}, "score: .*known: name"),
        ({"base_hash": "xyz"}, "base_hash"),
        ({"url": "javascript:alert(1)"}, "url"),
        ({"name": ""}, "name"),
        ({"runtime": {"n_ctx": 99}}, r"runtime\.n_ctx"),
        ({"runtime": {"n_ubatch": 10**9}}, r"runtime\.n_ubatch"),
        ({"runtime": {"type_k": "q1"}}, r"runtime\.type_k"),
        ({"division": "scratch"}, "base is 'scratch' in the division scratch"),
    ],
)
def test_what_a_manifest_may_not_say(tmp_path: Path, change: dict[str, object], said: str) -> None:
    folder = forged.submission(tmp_path, "a", **change)
    with pytest.raises(InputError, match=said):
        submission.read_manifest((folder / "submission.toml").read_bytes())


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("pytorch_model.bin", b"\x80\x04.", "'pytorch_model.bin' has no place"),
        ("modeling.py", b"import os", "'modeling.py' has no place"),
        ("other.gguf", b"GGUF", "one .gguf and nothing beside it"),
        ("config.json", b"{}", "one .gguf and nothing beside it"),
        ("submission.toml", b"[" * 60_000, "is not TOML"),
        ("submission.toml", b"a = 1\n" * 20_000, "over 65536 bytes"),
        ("submission.toml", b"\xff\xfe", "is not TOML"),
    ],
)
def test_what_a_folder_may_not_hold(tmp_path: Path, file: str, content: bytes, said: str) -> None:
    folder = forged.submission(tmp_path, "a", b"GGUF")
    (folder / file).write_bytes(content)
    seen = submission.open_submission(folder, 1 << 30)
    assert said in seen.trouble


def test_an_endless_file_is_not_read(tmp_path: Path) -> None:
    folder = forged.submission(tmp_path, "a", b"GGUF")
    os.truncate(folder / "model.gguf", 1 << 42)
    assert "over the budget: its files are" in submission.open_submission(folder, 1 << 30).trouble
    for i in range(submission.FILES_AT_MOST + 1):
        (folder / f"{i}.safetensors").touch()
    assert "more than 500 files" in submission.open_submission(folder, 1 << 50).trouble


def test_links_are_not_followed(tmp_path: Path) -> None:
    folder = forged.submission(tmp_path, "a")
    (folder / "model.gguf").symlink_to("/etc/passwd")
    assert "no plain file" in submission.open_submission(folder, 1 << 30).trouble
    (folder / "model.gguf").unlink()
    (folder / "submission.toml").unlink()
    (folder / "submission.toml").symlink_to("/dev/zero")
    assert "no plain file" in submission.open_submission(folder, 1 << 30).trouble


def test_the_hash_is_that_of_sha256sum(tmp_path: Path) -> None:
    import hashlib

    folder = forged.submission(tmp_path, "a", b"GGUF")
    (folder / "README.md").write_text("about it")
    line = f"{hashlib.sha256(b'GGUF').hexdigest()}  model.gguf\n"
    seen = submission.open_submission(folder, 1 << 30)
    assert seen.artifact == hashlib.sha256(line.encode()).hexdigest()
    assert (seen.form, seen.bytes, seen.trouble) == ("gguf", 4, "")


def test_submissions_are_found(tmp_path: Path) -> None:
    one = forged.submission(tmp_path / "all", "one")
    two = forged.submission(tmp_path / "all", "two")
    (tmp_path / "all" / ".hidden").mkdir()
    assert submission.find_submissions([tmp_path / "all"]) == [one, two]
    assert submission.find_submissions([one]) == [one]
    again = forged.submission(tmp_path / "more", "one")
    with pytest.raises(InputError, match="two submissions are called 'one'"):
        submission.find_submissions([tmp_path / "all", again])


def test_submit_makes_one_from_a_bundle(tmp_path: Path) -> None:
    bundle = bundles.write_bundle(tmp_path / "out")
    shell = Shell(tmp_path)
    done = shell.run("submit", bundle, "-o", "submissions/mine", "--licence", "MIT", "--json")
    assert done.returncode == 0, done.stderr
    manifest = Manifest.model_validate(json.loads(done.stdout)["manifest"])
    made = tmp_path / "submissions" / "mine"
    assert (made / "model.gguf").read_bytes() == (bundle / "model.gguf").read_bytes()
    seen = submission.open_submission(made, 1 << 30)
    assert seen.manifest == manifest
    assert not seen.trouble
    assert (manifest.licence, manifest.data) == ("MIT", submission.UNSAID)
    plan = json.loads((bundle / "plan.json").read_text())
    assert manifest.base == plan["model"]
    assert manifest.runtime.type_k == plan["runtime"]["type_k"]
    with pytest.raises(OutputError, match="not empty"):
        submission.make(bundle, made)
    with pytest.raises(InputError, match="holds no Hugging Face folder"):
        submission.make(bundle, tmp_path / "other", folder=True)
    assert shell.run("submit", "--template").stdout == submission.TEMPLATE
    assert "tenth fit" in shell.run("submit").stderr


def test_judge_on_the_command_line(tmp_path: Path) -> None:
    raw = forged.model(tmp_path / "original.gguf").read_bytes()
    forged.submission(tmp_path / "submissions", "honest", raw, division="bits")
    forged.submission(tmp_path / "submissions", "liar", forged.LIES["cut"])
    words = [
        "judge",
        "submissions",
        "--device",
        "pixel-8",
        "--against",
        "original.gguf",
        "--passages",
        "4",
        "--context",
        "512",
        "--threads",
        "1",
        "--work",
        "work",
    ]
    shell = Shell(tmp_path)
    done = shell.run(*words)
    assert done.returncode == 0, done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        ["ranked", "honest:"],
        ["out", "liar:"],
    ]
    again = shell.run(*words, "--json")
    verdicts = json.loads(again.stdout)["verdicts"]
    assert [verdict["status"] for verdict in verdicts] == ["ranked", "disqualified"]
    assert "have a verdict already" in again.stderr
    assert not shell.running()
    reproduced = verdicts[0]["command"].removeprefix("tenth ").split()
    assert json.loads(shell.run(*reproduced, "--work", "work", "--json").stdout)["verdicts"][0] == verdicts[0]


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing_and_what_was_judged_stays(
    tmp_path: Path, how: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    raw = forged.model(tmp_path / "original.gguf").read_bytes()
    forged.submission(tmp_path / "submissions", "a-liar", forged.LIES["cut"])
    for name in ("honest", "later"):
        forged.submission(tmp_path / "submissions", name, raw)
    shell = Shell(tmp_path)
    process = shell.start(
        "judge",
        "submissions",
        "--device",
        "pixel-8",
        "--against",
        "original.gguf",
        "--context",
        "512",
        "--threads",
        "1",
        "--work",
        "work",
    )
    soon(lambda: list((tmp_path / "results").glob("honest-*.log")), "the honest one is never judged", 120)
    assert list(temporary.iterdir())
    process.send_signal(how)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "stopped" in said
    soon(lambda: not shell.running(), "a child outlived the judge")
    assert len(list((tmp_path / "results").glob("a-liar-*.json"))) == 1
    assert not list((tmp_path / "results").glob("honest-*.json"))
    assert not list(temporary.iterdir())
