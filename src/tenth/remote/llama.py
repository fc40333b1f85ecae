"""A device without Python: measure with llama.cpp's own programs (llama-bench, else llama-cli).

On Android these are a build that the person names, pushed beside the bundle, or those of Termux. They know
nothing of tenth: what they cannot show (answers compared, the offline proof, the memory of the whole context)
is not in the result, and its notes say so.
"""

from __future__ import annotations

import re
import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tenth import __version__
from tenth.core.errors import DeviceError, InputError
from tenth.core.metrics import reading, repeated
from tenth.core.records import Bench, Depth, Plan, Reading, Record, Runtime
from tenth.devices import foreign
from tenth.measurement.counters import Unavailable, battery
from tenth.measurement.depth import sizes
from tenth.measurement.energy import planned
from tenth.remote._base import Folder

PROGRAMS = ("llama-bench", "llama-cli", "llama-completion")
MAX_FILES, MAX_BYTES = 500, 4 << 30  # of a build
_ELF = {62: "x86_64", 183: "aarch64", 40: "arm", 243: "riscv64"}
_TIMEOUT = 3 * 3600  # seconds for one run on a slow phone
_LIMIT = 4 << 20  # bytes of what it wrote
_GAUGE = "/sys/class/power_supply/battery"
_SHORT = re.compile(r"Prompt: ([0-9.]{1,20}) t/s \| Generation: ([0-9.]{1,20}) t/s")
_LONG = re.compile(r"(prompt )?eval time =.*?([0-9.]{1,20}) tokens per second")
_LASTING, _LEAST = 30, 20  # seconds of decoding for the energy, different values of the gauge

# Runs "$@"; meanwhile memory.txt gets "Name: kB" lines of its process, power.txt "microamperes microvolts".
_WATCHED = f"""
"$@" > out.txt 2> log.txt < /dev/null & p=$!
while grep -q '^State:[[:space:]]*[^Z]' /proc/$p/status 2> /dev/null; do
  grep -E '^(VmHWM|RssAnon|RssFile):' /proc/$p/status >> memory.txt 2> /dev/null
  echo "$(cat {_GAUGE}/current_now) $(cat {_GAUGE}/voltage_now)" >> power.txt 2> /dev/null
  sleep 0.2
done
wait $p"""


class _Run(Record, extra="ignore"):
    """One test of llama-bench -o json; it has many more fields."""

    build_commit: str = ""
    build_number: int = 0
    n_prompt: int
    n_gen: int
    n_depth: int = 0
    samples_ts: list[float]


def collect(build: Path) -> dict[str, Path]:
    """Name below the device's folder -> local file, for a program or a folder of llama.cpp.

    A single program brings the libraries beside it. InputError where none of `PROGRAMS` is there.
    """
    if build.is_dir():
        files = {
            f"llama/{path.relative_to(build).as_posix()}": path for path in build.rglob("*") if path.is_file()
        }
    elif build.is_file():
        folders = (build.parent, build.parent.parent / "lib")
        libraries = [path for folder in folders for path in sorted(folder.glob("lib*.so*")) if path.is_file()]
        files = {f"llama/{path.name}": path for path in (build, *libraries)}
    else:
        raise InputError(f"there is nothing at --llama-cli {build}; give llama-cli, or the folder of a build")
    if not any(Path(name).name in PROGRAMS for name in files):
        raise InputError(f"{build} holds none of {', '.join(PROGRAMS)}; give a finished llama.cpp build")
    if len(files) > MAX_FILES or sum(path.stat().st_size for path in files.values()) > MAX_BYTES:
        raise InputError(
            f"{build} holds more than programs and libraries; copy bin and lib into a folder of their own"
        )
    return dict(sorted(files.items()))


def check_machine(files: Mapping[str, Path], machine: str, device: str) -> None:
    """DeviceError where a program was built for another processor than `uname -m` of the device."""
    aliases = {"armv8l": "aarch64", "arm64": "aarch64", "amd64": "x86_64"}
    expected = "arm" if re.match(r"armv[67]", machine) else aliases.get(machine, machine)
    for name, path in files.items():
        with path.open("rb") as file:
            head = file.read(20)
        if head[:4] == b"\x7fELF" and Path(name).name in PROGRAMS:
            built = _ELF.get(int.from_bytes(head[18:20], "little"), "another processor")
            if built != expected:
                raise DeviceError(
                    f"{path} was built for {built}, and {device} is {machine}; build it for that"
                )


def start(names: Iterable[str], program: str) -> str:
    """The shell words that start a pushed program in its folder: libraries' path and its place."""
    folders = sorted({str(Path(name).parent) for name in names if ".so" in Path(name).name})
    place = next((name for name in names if Path(name).name == program), "")
    if not place:
        return program  # on the device's own path
    path = ":".join(f'"$PWD"/{shlex.quote(folder)}' for folder in folders)
    return (f"env LD_LIBRARY_PATH={path} " if path else "") + shlex.quote(f"./{place}")


def settings(runtime: Runtime) -> list[str]:
    """The plan's settings as llama-cli and llama-completion take them."""
    words = ["-c", str(runtime.n_ctx), "-b", str(runtime.n_ubatch), *_shared(runtime)]
    words += ["-fa", "on" if runtime.flash_attention else "off", *([] if runtime.repack else ["--no-repack"])]
    return words


def _shared(runtime: Runtime) -> list[str]:
    words = ["-ub", str(runtime.n_ubatch), "-ctk", runtime.type_k, "-ctv", runtime.type_v]
    return words + (["-t", str(runtime.threads)] if runtime.threads else [])


@dataclass(frozen=True)
class Tests:
    """What is measured of a bundle."""

    plan: Plan
    sha256: str  # of model.gguf
    device: str  # what to call it
    depths: Sequence[int]  # tokens in the context, for llama-bench
    repeats: int

    @property
    def sizes(self) -> tuple[int, int]:
        """(tokens of prefill, tokens of decoding) of every test."""
        return sizes(self.plan.runtime.n_ctx)


@dataclass(frozen=True)
class _LlamaProgram:
    """A program of llama.cpp in a folder on the device. line: the shell words that start it."""

    there: Folder
    name: str
    line: str

    def execute(self, words: str) -> str:
        """What a watched run with the bundle printed on stdout; DeviceError with its last words."""
        command = f"{self.line} -m bundle/model.gguf {words}"
        done = self.there.run(f"rm -f memory.txt power.txt; set -- {command}; {_WATCHED}", _TIMEOUT)
        if done.status:
            lines = self.log().decode("utf-8", "replace").strip().splitlines()
            last = foreign.shown((lines or [done.last_line or "it said nothing"])[-1][:300])
            raise DeviceError(f"llama.cpp failed on {self.there.device.name} (status {done.status}): {last}")
        return self.there.get("out.txt", _LIMIT).decode("utf-8", "replace")

    def log(self) -> bytes:
        """What the last run wrote on stderr."""
        return self.there.get("log.txt", _LIMIT)


def measure(there: Folder, names: Sequence[str], tests: Tests) -> tuple[Bench, bytes]:
    """(speeds and memory, the program's log). names: the pushed files of llama.cpp; none for Termux's own.

    Raises DeviceError where no program is there or it fails.
    """
    plan = tests.plan
    program = _choose(there, names)
    notes = [
        "llama.cpp's own program: its answers were not compared with the file's, nor its connections counted"
    ]
    words = ""
    if program.name == "llama-bench":
        words = _bench_words(program, plan.runtime, notes)
        depths, runtime = _bench(program, words, tests)
    else:
        depths, runtime = [_chat(program, tests)], "llama.cpp (it did not say which)"
    readings, log = _memory(program), program.log()
    energy, more = _energy(program, words, tests.sizes[1], depths[0].decode.value)
    if not more and plan.forecast and (more := planned(plan)):
        energy += f"; estimated for {plan.forecast.device}, as planned"
    bench = Bench(
        tenth=__version__,
        runtime=runtime,
        model=plan.model,
        sha256=tests.sha256,
        device=tests.device,
        readings=readings + more,
        depths=depths,
        energy=energy,
        notes=notes,
    )
    return bench, log


def _choose(there: Folder, names: Sequence[str]) -> _LlamaProgram:
    """llama-bench before the others."""
    for program in PROGRAMS:
        if any(Path(name).name == program for name in names):
            return _LlamaProgram(there, program, start(names, program))
    for program in PROGRAMS:
        if there.run(f"command -v {program} > /dev/null", 60).status == 0:
            return _LlamaProgram(there, program, start(names, program))
    raise DeviceError(
        f"{there.device.name} has no llama.cpp: in Termux, pkg install llama-cpp; else give --llama-cli PATH"
    )


def _bench(program: _LlamaProgram, words: str, tests: Tests) -> tuple[list[Depth], str]:
    """(the speeds at every depth, which llama.cpp it is), by llama-bench."""
    prefill, decode = tests.sizes
    asked = f"-p {prefill} -n {decode} -d {','.join(map(str, tests.depths))} -r {tests.repeats} -o json"
    runs = _parse_bench(program.execute(f"{words} {asked}"), program.there.device.name)
    runtime = f"llama.cpp b{runs[0].build_number} ({runs[0].build_commit})"
    return _by_depth(runs, prefill, decode), runtime


def _chat(program: _LlamaProgram, tests: Tests) -> Depth:
    """Both speeds after a short prompt, by llama-cli."""
    prompt = "The quick brown fox jumps over the lazy dog. " * 8
    words = shlex.join(settings(tests.plan.runtime))
    text = program.execute(f"{words} -n {tests.sizes[1]} --temp 0 -st -p {shlex.quote(prompt)}")
    text += program.log().decode("utf-8", "replace")
    return _parse_timings(text, program.there.device.name)


def _bench_words(program: _LlamaProgram, runtime: Runtime, notes: list[str]) -> str:
    """llama-bench's options for the plan's settings, as far as this build knows them."""
    help_text = program.there.run(f"{program.line} --help 2>&1", 60).out
    words = [*_shared(runtime), "-b", str(runtime.n_ubatch), "-fa", "1" if runtime.flash_attention else "0"]
    if not runtime.repack:
        if "--no-repack" in help_text:
            words.append("--no-repack")
        else:
            notes.append(
                "this llama-bench cannot switch repacking off: it holds a second copy of some weights"
            )
    return shlex.join(words)


def _parse_bench(text: str, device: str) -> list[_Run]:
    """The tests of llama-bench -o json; DeviceError for anything else."""
    try:
        answer = foreign.parsed(text)
        runs = [_Run.model_validate(run) for run in answer] if isinstance(answer, list) else []
    except ValueError:
        runs = []
    if not runs or not all(run.samples_ts and min(run.samples_ts) > 0 for run in runs):
        raise DeviceError(f"llama-bench on {device} gave no speeds; its log is beside the bundle")
    return runs


def _by_depth(runs: Sequence[_Run], prefill: int, decode: int) -> list[Depth]:
    depths = []
    for at in sorted({run.n_depth for run in runs}):
        speeds = {
            "decode": [r for r in runs if r.n_depth == at and r.n_gen],
            "prefill": [r for r in runs if r.n_depth == at and r.n_prompt],
        }
        of_each: dict[str, Reading] = {
            name: repeated(
                name, some[0].samples_ts, f"llama-bench, {count} tokens after {at}; median, half range"
            )
            for (name, some), count in zip(speeds.items(), (decode, prefill), strict=True)
            if some
        }
        if "decode" in of_each:
            depths.append(Depth(depth=at, decode=of_each["decode"], prefill=of_each.get("prefill")))
    if not depths:
        raise DeviceError("llama-bench decoded nothing; its log is beside the bundle")
    return depths


def _parse_timings(text: str, device: str) -> Depth:
    """Of llama-cli: "eval time = ... 24.23 tokens per second", or "Prompt: 306 t/s | Generation: 24 t/s"."""
    short, long = ("", ""), {True: "", False: ""}
    for line in foreign.lines(text):
        plain = re.sub(r"\x1b\[[\d;]*[A-Za-z]", "", line)
        if found := _SHORT.search(plain):
            short = (found[1], found[2])
        elif found := _LONG.search(plain):
            long[bool(found[1])] = found[2]
    prefill, decode = (foreign.number(word) for word in (short if any(short) else (long[True], long[False])))
    if not prefill or not decode or min(prefill, decode) < 0:
        raise DeviceError(f"llama-cli on {device} printed no timings; its log is beside the bundle")
    how = "llama-cli, one run after a short prompt"
    return Depth(depth=0, decode=reading("decode", decode, how), prefill=reading("prefill", prefill, how))


def _memory(program: _LlamaProgram) -> list[Reading]:
    """The largest of what the kernel said of the process; nothing where it said nothing."""
    text = program.there.run("cat memory.txt 2> /dev/null", 60).out
    largest: dict[str, int] = {}
    for line in foreign.lines(text):
        name, _, size = line.partition(":")
        kilobytes = foreign.whole(size.removesuffix(" kB")) if size.endswith(" kB") else None
        largest[name] = max(largest.get(name, 0), (kilobytes or 0) * 1024)
    names = {"VmHWM": "peak", "RssFile": "peak_file_backed", "RssAnon": "peak_anonymous"}
    contexts = "its contexts are those of the tests, not the plan's"
    how = f"resident memory of {program.name}, seen every 0.2 s; {contexts}"
    return [reading(name, largest[key], how) for key, name in names.items() if largest.get(key)]


def _gauge(sample: str) -> tuple[float, float]:
    """ "microamperes microvolts" of the fuel gauge; Unavailable for anything else."""
    values = [foreign.number(word) for word in sample.split()]
    if len(values) != 2 or values[0] is None or values[1] is None:
        raise Unavailable(f"it says {foreign.shown(sample)[:40]!r}")
    return values[0], values[1]


def plugged(dumpsys: str) -> str:
    """What feeds the phone ("USB"), by `dumpsys battery`; "" for its battery alone."""
    found = (re.match(r"\s*([A-Za-z]{1,40}) powered: true", line) for line in foreign.lines(dumpsys))
    return ", ".join(match[1] for match in found if match)


def _energy(program: _LlamaProgram, words: str, decode: int, speed: float) -> tuple[str, list[Reading]]:
    """(the counter or why there is none, readings): decoding for half a minute, power from the fuel gauge."""
    there = program.there
    state = there.run("dumpsys battery", 60)
    if state.status or "powered:" not in state.out:
        return "not measured: this shell may not ask for the battery's state (dumpsys)", []
    if source := plugged(state.out):
        return (
            f"not measured: the phone is plugged in ({source}), so its power reading means nothing; unplug it"
            " and use adb over Wi-Fi (adb tcpip 5555, adb connect ADDRESS)"
        ), []
    if program.name != "llama-bench":
        return "not measured: llama-bench is needed to decode long enough", []
    repeats = max(1, round(_LASTING * speed / decode))
    program.execute(f"{words} -p 0 -n {decode} -r {repeats} -o json")
    samples = foreign.lines(there.run("cat power.txt 2> /dev/null", 60).out)
    try:
        watts = [battery.power(*_gauge(sample)) for sample in samples]
    except Unavailable as error:
        return f"not measured: {_GAUGE} cannot be used by adb's shell ({error})", []
    if len(set(samples)) < _LEAST:
        return (
            f"not measured: the fuel gauge gave {len(set(samples))} values only in {len(samples) / 5:.0f} s",
            [],
        )
    power = statistics.median(watts)
    how = f"the whole phone's fuel gauge, median of {len(watts)} looks; {repeats * decode} tokens and a load"
    return f"counter battery: the whole phone, at its battery ({len(set(samples))} values)", [
        reading("power_decode", power, how, count=len(watts)),
        reading("energy_decode", power / speed, how, count=len(watts)),
    ]
