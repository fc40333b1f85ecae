"""The offline proof: the file loads and answers in a namespace without interfaces; calls out are counted.

Three ways to see attempts, the best that the machine allows:

    strace                every network call and every opened file of the process, native code included
    kernel counters       packets that found no way out of the namespace (OutNoRoutes): IPv4 of any code
    Python's audit hooks  what Python code itself asks for; llama.cpp is not seen

Without strace, files are those that Python opened, the model, and what is mapped at the end. The result says
what was not seen.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from pydantic import JsonValue

from tenth.core import children, jobs
from tenth.core.records import Offline, Record
from tenth.core.store import temporary_folder
from tenth.runtime import limits

_MARK = "/tenth-offline/"  # opened in vain: where in the trace our part begins and ends
_CALLS = "%network,?open,?openat,?openat2,?io_uring_setup"
_OPEN = re.compile(r'\bopen(?:at2?)?\((?:[^,"]+, )?"((?:[^"\\]|\\.)*)"')
_ATTEMPT = re.compile(r"\b(?:connect|sendto|sendmsg|sendmmsg|io_uring_setup)\(")
_SHOWN = 20  # attempts and files that are listed
_LIBRARIES = (
    "/lib",
    "/lib32",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/etc/ld.so.cache",
    "/system",
    "/apex",
    "/vendor",
)
_KERNEL = ("/proc", "/sys", "/dev")
# A user namespace can only be entered by a process of a single thread.
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


class _Seen(Record):
    """What the child saw of itself."""

    result: JsonValue  # of the job
    network: str
    unrouted: int  # IPv4 packets that found no way out
    attempts: list[str]  # to reach something, as Python's hooks tell
    files: list[str]  # that were opened or are mapped
    path: list[str]  # where Python's own files are


def enclose(job: jobs.Job[jobs.Result], folder: Path, log: Path | None = None) -> tuple[jobs.Result, Offline]:
    """Run a job without a network and traced; returns its result and what it tried.

    folder: files in it are the bundle's own. Raises what `jobs.run` raises.
    """
    inner = job.pack()
    with temporary_folder() as temporary:
        trace = temporary / "trace"
        tracer = _strace(trace)
        around = jobs.Surroundings(log, _ENVIRONMENT, wrapper=tracer)
        child = jobs.run(_Traced(job=inner, threads=inner.threads), around=around)
        if tracer:
            attempts, files = _read_trace(trace)
            method, blind = "strace of every network call and opened file", ""
        else:
            attempts, files = child.attempts, child.files
            method, blind = _fallback(child.network)
    inside, outside, libraries, kernel = _sorted(files, folder, child.path)
    offline = Offline(
        network=child.network,
        method=method,
        blind=blind,
        connections=max(len(attempts), child.unrouted),
        attempts=[attempt[:200] for attempt in attempts[:_SHOWN]],
        inside=inside[:_SHOWN],
        outside=outside[:_SHOWN],
        libraries=libraries,
        kernel=kernel,
    )
    return job.returned().validate_python(child.result), offline


def _fallback(network: str) -> tuple[str, str]:
    """(how attempts were seen without strace, what that cannot see)."""
    files = "files that native code opened and closed"
    if network == limits.ISOLATED:
        return (
            "the kernel's counters of the namespace, Python's audit hooks, mapped files",
            f"native code's IPv6 and local sockets, {files} (strace would see them: install it)",
        )
    return "Python's audit hooks, mapped files", f"native code's connections, {files}"


def _strace(trace: Path) -> list[str]:
    """The command that traces what follows it; nothing where strace is missing or not allowed to."""
    program = children.program("strace")
    if program is None:
        return []
    # -D: the tracer is the grandchild, so that the worker's parent stays its parent.
    command = [program, "-D", "-f", "-qq", "-e", f"trace={_CALLS}", "-o", str(trace)]
    try:
        tried = subprocess.run([*command, "true"], capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return command if tried.returncode == 0 else []


def _read_trace(trace: Path) -> tuple[list[str], list[str]]:
    """(attempts to send, files opened) between the marks."""
    attempts: list[str] = []
    files: list[str] = []
    inside = False
    with trace.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            opened = _OPEN.search(line)
            if opened and opened[1].startswith(_MARK):
                inside = opened[1].endswith("begin")
            elif not inside or " resumed>" in line:
                continue
            elif opened:
                if not re.search(r"= -1 \w+", line):
                    files.append(opened[1])
            elif _ATTEMPT.search(line):
                attempts.append(line.split(maxsplit=1)[-1].strip())
    return attempts, files


def _sorted(files: Iterable[str], folder: Path, path: Iterable[str]) -> tuple[list[str], list[str], int, int]:
    """(in the folder, elsewhere, how many of libraries, how many of the kernel's); each file once."""
    roots = [*_LIBRARIES, *path]
    inside, outside, libraries, kernel = [], [], 0, 0
    for file in sorted({os.path.realpath(file) for file in files}):
        where = Path(file)
        if where.is_relative_to(folder.resolve()):
            inside.append(where.relative_to(folder.resolve()).as_posix())
        elif any(where.is_relative_to(root) for root in _KERNEL):
            kernel += 1
        elif any(where.is_relative_to(root) for root in roots):
            libraries += 1
        else:
            outside.append(file)
    return inside, outside, libraries, kernel


class _Traced(jobs.Job[_Seen]):
    """The child's side of `enclose`."""

    job: jobs.Packed
    threads: int

    def run(self, emit: jobs.Emit) -> _Seen:
        """Leave the network, do the job, and say what was seen meanwhile."""
        network = limits.isolate_network()
        attempts, files = _listen()
        before = _unrouted()
        _mark("begin")
        result = self.job.unpack().plain(emit)
        _mark("end")
        tried, opened = list(attempts), list(files)
        roots = {sys.prefix, sys.base_prefix, *sys.path, *sysconfig.get_paths().values()}
        return _Seen(
            result=result,
            network=network,
            unrouted=_unrouted() - before if network == limits.ISOLATED else 0,
            attempts=tried,
            files=opened + _mapped(),
            path=sorted({os.path.realpath(root) for root in roots if root}),
        )


def _mark(name: str) -> None:
    try:
        os.close(os.open(_MARK + name, os.O_RDONLY))
    except OSError:
        return


def _listen() -> tuple[list[str], list[str]]:
    """(attempts, files), which Python's own calls are added to from now on."""
    attempts: list[str] = []
    files: list[str] = []

    def hook(event: str, details: tuple[object, ...]) -> None:
        if event == "open" and isinstance(details[0], str | bytes):
            file = os.fsdecode(details[0])
            if not file.startswith(_MARK) and Path(file).exists():
                files.append(file)
        elif event == "tenth.runtime.llama.open":
            files.append(str(details[0]))
        elif event in ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo"):
            attempts.append(f"{event} {details[1:] if event != 'socket.getaddrinfo' else details[:2]}")

    sys.addaudithook(hook)
    return attempts, files


def _unrouted() -> int:
    """IPv4 packets of this network namespace that found no way out."""
    try:
        names, values = (
            line.split() for line in Path("/proc/self/net/snmp").read_text().splitlines() if line[:3] == "Ip:"
        )
        return int(dict(zip(names, values, strict=True))["OutNoRoutes"])
    except (OSError, ValueError, KeyError):
        return 0


def _mapped() -> list[str]:
    try:
        with Path("/proc/self/maps").open(encoding="utf-8", errors="replace") as lines:
            return sorted({line.split(maxsplit=5)[5].strip() for line in lines if " /" in line})
    except (OSError, IndexError):
        return []
