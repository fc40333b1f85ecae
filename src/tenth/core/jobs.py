"""Native work in a child process, so that an abort in llama.cpp is an error message here and nothing worse.

parent                                   child
stdin   {"function": "module:name", "arguments": {...}, "parent": pid}
stdout  <- {"event": {...}}   any number     (a private descriptor; descriptor 1 is pointed at the log)
        <- {"result": ...}  or  {"error": "InputError", "message": "...", "extra": {...}}
stderr  -> the log: llama.cpp's lines, and tracebacks of our own mistakes
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tenth.core import errors

Emit = Callable[[dict[str, Any]], None]
_PR_SET_PDEATHSIG = 1


class ChildDied(errors.NativeError):
    """The child ended without an answer. ``signal`` is the number that ended it, 0 for an exit status."""

    def __init__(self, message: str, number: int = 0) -> None:
        super().__init__(message)
        self.signal = number


def call(
    function: str,
    arguments: dict[str, Any],
    on_event: Emit | None = None,
    log: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    wrapper: Sequence[str] = (),
) -> Any:
    """Run ``function`` ("tenth.measurement.quality:score") in a child as ``f(emit=..., **arguments)``.

    arguments and the returned value are JSON; ``emit`` in the child calls ``on_event`` here. log: the file
    that the child's noise is appended to. timeout: seconds, after which the child is killed. wrapper: a
    command that becomes the child, such as a tracer. "threads" among the arguments bounds OpenMP too. A
    TenthError of the child is raised here with its class. Raises ChildDied (a NativeError) with the signal's
    name and the last log line where the child dies, NativeError where it fails otherwise. Whatever is raised
    here, Ctrl-C included, ends the child.
    """
    request = json.dumps({"function": function, "arguments": arguments, "parent": os.getpid()})
    with _log_file(log) as (sink, log_path):
        begin = sink.tell()
        child = subprocess.Popen(
            [*wrapper, sys.executable, "-P", "-c", "from tenth.core.jobs import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=sink,
            env=_environment(arguments, env or {}),
            start_new_session=True,  # Ctrl-C of the terminal reaches the parent only, which ends the child
        )
        alarm = threading.Timer(timeout or 0, _end, [child])
        alarm.daemon = True
        if timeout:
            alarm.start()
        try:
            answer = _converse(child, request, on_event)
            status = child.wait()
        finally:
            overtime = bool(timeout) and not alarm.is_alive()
            alarm.cancel()
            if child.poll() is None:
                _end(child)
                child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe:
                    with contextlib.suppress(OSError):
                        pipe.close()
        if answer is None:
            raise _death(function, status, _last_line(log_path, begin), timeout if overtime else None)
    if "error" in answer:
        raise _revive(answer)
    return answer["result"]


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill a child that leads a session, and with it whatever it started there."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


@contextlib.contextmanager
def _log_file(log: Path | None) -> Iterator[tuple[IO[bytes], Path]]:
    """The log opened for appending; a temporary one, removed afterwards, where none is wanted."""
    if log is not None:
        with log.open("ab") as sink:
            yield sink, log
        return
    with tempfile.NamedTemporaryFile(prefix="tenth-", suffix=".log") as sink:
        yield sink.file, Path(sink.name)


def _environment(arguments: dict[str, Any], extra: Mapping[str, str]) -> dict[str, str]:
    """The parent's environment and import path, without llama.cpp's gdb backtraces on an abort."""
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    environment["GGML_NO_BACKTRACE"] = "1"
    if arguments.get("threads"):
        environment["OMP_NUM_THREADS"] = str(arguments["threads"])
    return {**environment, **extra}


def _converse(child: subprocess.Popen[bytes], request: str, on_event: Emit | None) -> dict[str, Any] | None:
    """Send the request, pass events on, return the last message that is not an event."""
    assert child.stdin is not None
    assert child.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        child.stdin.write(request.encode())
        child.stdin.close()
    answer = None
    for line in child.stdout:
        try:
            message = json.loads(line)
        except ValueError:  # a line cut short by the child's death
            break
        if "event" in message:
            if on_event:
                on_event(message["event"])
        else:
            answer = message
    return answer


def _last_line(log: Path, begin: int) -> str:
    """The last line that this child left in its log, of its last 4 KiB."""
    with log.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(begin, end - 4096))
        lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines()]
    return next((line for line in reversed(lines) if line.strip(".")), "")


def _death(function: str, status: int, last: str, timeout: float | None) -> ChildDied:
    if timeout is not None:
        how = f"was ended after {timeout:g} s"
    elif status < 0:
        how = f"was ended by {signal.Signals(-status).name}"
    else:
        how = f"ended with status {status} and no answer"
    said = f"; its last words: {last[:300]}" if last else ""
    return ChildDied(f"the runtime's child process ({function}) {how}{said}", max(-status, 0))


def _revive(answer: dict[str, Any]) -> errors.TenthError:
    kind = getattr(errors, str(answer["error"]), errors.NativeError)
    if kind is errors.BudgetError:
        return errors.BudgetError(answer["message"], answer.get("extra"))
    if not (isinstance(kind, type) and issubclass(kind, errors.TenthError)):
        kind = errors.NativeError
    return kind(answer["message"])


def main() -> None:
    """The child's side."""
    _restrain()
    request = json.load(sys.stdin)
    if sys.platform == "linux" and os.getppid() != request["parent"]:
        os._exit(1)  # the parent died before the death signal was set
    channel = os.dup(1)
    os.dup2(2, 1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    logging.getLogger("tenth").setLevel(logging.DEBUG)
    lock = threading.Lock()

    def send(message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        with lock:
            while data:
                data = data[os.write(channel, data) :]

    send(_run(request, lambda event: send({"event": event})))
    sys.stderr.flush()
    os._exit(0)  # no destructors of native code after the answer


def _run(request: dict[str, Any], emit: Emit) -> dict[str, Any]:
    module, _, name = request["function"].partition(":")
    try:
        result = getattr(importlib.import_module(module), name)(emit=emit, **request["arguments"])
        json.dumps(result)
        return {"result": result}
    except errors.TenthError as error:
        extra = getattr(error, "smallest", None)
        return {"error": type(error).__name__, "message": str(error), "extra": extra}
    except OSError as error:
        traceback.print_exc()
        return {"error": "OutputError", "message": _trouble(error, request["arguments"])}
    except Exception as error:
        traceback.print_exc()
        message = f"{request['function']} failed in the child process: {type(error).__name__}: {error}"
        return {"error": "NativeError", "message": message}


def _trouble(error: OSError, arguments: Mapping[str, Any]) -> str:
    """One line for a file that cannot be read or written; numpy reports a full disk without an errno."""
    place = arguments.get("folder") or arguments.get("destination") or error.filename
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or "requested and" in str(error):
        return f"no space left on the disk of {place}; free some, or choose another folder"
    return f"cannot read or write {error.filename or place}: {error.strerror or error}"


def _restrain() -> None:
    """No core dumps; on Linux, die with the parent."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
