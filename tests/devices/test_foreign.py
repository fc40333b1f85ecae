from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenth.devices import foreign

NO_NUMBERS = [
    "",
    "²",
    "٣x",
    "1_000",
    "0x10",
    "9" * 5000,
    "-",
    "+-1",
    "1 2",
    "½",
    "1e5000",
    "nan",
    "inf",
    "\x00",
]


@pytest.mark.parametrize("text", [*NO_NUMBERS, "1.5", "1e3"])
def test_what_is_no_whole_number(text: str) -> None:
    assert foreign.whole(text) is None


@pytest.mark.parametrize("text", [*NO_NUMBERS, "1.2.3", ".", "1." + "5" * 40, "1e400", "0" * 400])
def test_what_is_no_number(text: str) -> None:
    assert foreign.number(text) is None


@given(st.integers(-(10**18) + 1, 10**18 - 1))
def test_whole_numbers_are_read(value: int) -> None:
    assert foreign.whole(f" {value}\n") == value
    assert foreign.number(str(value)) == float(value)


@given(st.text())
def test_any_text_is_a_finite_number_or_none(text: str) -> None:
    found = foreign.number(text)
    assert found is None or math.isfinite(found)
    assert foreign.shown(text).isprintable()
    assert all(len(line) <= foreign.LETTERS for line in foreign.lines(text))


HOSTILE_JSON = [
    "[" * 100_000,
    '{"a":' * 50_000,
    "NaN",
    "-Infinity",
    "1e999",
    "9" * 5000,
    '{"a": [1e999]}',
    "\x00",
    "",
]


@pytest.mark.parametrize("text", HOSTILE_JSON, ids=range(len(HOSTILE_JSON)))
def test_json_of_a_stranger(text: str) -> None:
    with pytest.raises(ValueError):
        foreign.parsed(text)
    with pytest.raises(ValueError):
        foreign.parsed(text.encode())


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**60), 2**60)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_plain_json_is_read(value: object) -> None:
    assert foreign.parsed(json.dumps(value)) == value


def test_a_file_is_read_as_far_as_asked(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xff" + b"a" * 100_000)
    assert foreign.read(tmp_path / "a", 3) == "\ufffdaa"
    assert len(foreign.read(Path("/dev/zero"))) == 4096
    with pytest.raises(OSError):
        foreign.read(tmp_path / "absent")


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("while True: print('garbage')", "more than 1000 bytes"),
        ("import sys\nwhile True: sys.stdout.write('9')", "more than 1000 bytes"),
        ("import time; time.sleep(1000)", "within 1 s"),
        ("import os, time; os.write(1, b'9'); time.sleep(1000)", "within 1 s"),
    ],
)
def test_a_program_is_bounded(program: str, said: str) -> None:
    begin = time.monotonic()
    command = [sys.executable, "-S", "-c", program]
    with pytest.raises(OSError, match=said):
        foreign.output(command, 1, 1000)
    assert time.monotonic() - begin < 20
    assert foreign.output([sys.executable, "-S", "-c", "print(1)"], 10) == "1\n"
