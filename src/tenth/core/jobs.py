"""Native work in a child process, so that an abort in llama.cpp is an error message here and nothing worse.

A piece of work is a `Job`: a frozen record whose fields are its inputs, and whose `run` is what the child
calls.

parent                                   child
stdin   {"job": {"kind": "module:Class", "fields": {...}}, "parent": pid, "environment": {...}}
stdout  <- {"event": {...}}   any number     (a private descriptor; descriptor 1 is pointed at the log)
        <- {"result": ...}  or  {"error": "InputError", "message": "...", "extra": {...}}
stderr  -> the log: llama.cpp's lines, and tracebacks of our own mistakes
"""

from __future__ import annotations

import contextlib
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
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Generic, TypeVar, get_type_hints

from pydantic import JsonValue, TypeAdapter

from tenth.core import children, errors, forkserver
from tenth.core.records import Record

SAID = "llama.cpp: "  # begins a line of the log that llama.cpp said, perhaps in a model's words
Event = dict[str, Any]  # JSON: what a running child tells, such as {"done": 3, "total": 8}
Child = subprocess.Popen[bytes] | forkserver.Forked
Emit = Callable[[Event], None]
Result = TypeVar("Result")


class Job(Record, Generic[Result]):
    """A piece of work for a child process. Its fields are the inputs and travel as JSON.

    A field "threads", or that of a field "runtime", bounds OpenMP in the child too; a field "folder" or
    "destination" is named in the message where a disk is full.
    """

    @abstractmethod
    def run(self, emit: Emit) -> Result:
        """Do the work; `emit` sends an event to the parent. The annotated result travels as JSON."""

    def returned(self) -> TypeAdapter[Result]:
        """What `run` is annotated to return, and how that becomes JSON and back."""
        return TypeAdapter(get_type_hints(type(self).run)["return"])

    @property
    def imports(self) -> tuple[str, ...]:
        """Modules that it needs and that take seconds to import: its child is forked with them."""
        return ()

    def plain(self, emit: Emit) -> JsonValue:
        """Run it here; the result as JSON."""
        plain: JsonValue = self.returned().dump_python(self.run(emit), mode="json")
        return plain

    def pack(self) -> Packed:
        """The job as plain JSON, for a job that runs it or for another machine."""
        kind = f"{type(self).__module__}:{type(self).__qualname__}"
        return Packed(kind=kind, fields=self.model_dump(mode="json"))


class Compute(Record):
    """Where torch computes. Results differ by float32's rounding only."""

    threads: int = 0  # 0: all cores
    device: str = "cpu"  # or "cuda"


class Packed(Record):
    """A job of any kind as plain JSON."""

    kind: str  # "module:Class"
    fields: dict[str, JsonValue]

    @property
    def threads(self) -> int:
        """The job's threads, its own or its runtime's; 0 where it does not say."""
        runtime = self.fields.get("runtime")
        of_runtime = runtime.get("threads") if isinstance(runtime, dict) else 0
        threads = self.fields.get("threads", of_runtime)
        return threads if isinstance(threads, int) else 0

    def unpack(self) -> Job[Any]:
        """The job itself, whose module is imported now; TypeError for the name of anything else."""
        module, _, name = self.kind.partition(":")
        kind = getattr(importlib.import_module(module), name)
        if not (isinstance(kind, type) and issubclass(kind, Job)):
            raise TypeError(f"{self.kind} is no job")
        return kind.model_validate(self.fields)


class ChildDied(errors.NativeError):
    """The child ended without an answer."""

    def __init__(self, kind: str, status: int, last_line: str, timeout: float | None) -> None:
        self.status = status  # of the process; -N where signal N ended it
        self.last_line = last_line  # that it left in the log
        self.timeout = timeout  # seconds after which it was ended; None where it ended by itself
        if timeout is not None:
            how = f"was ended after {timeout:g} s"
        elif status < 0:
            how = f"was ended by {signal.Signals(-status).name}"
        else:
            how = f"ended with status {status} and no answer"
        words = f"; its last words: {last_line[:300]}" if last_line else ""
        super().__init__(f"the runtime's child process ({kind}) {how}{words}")

    @property
    def signal(self) -> int:
        """The number of the signal that ended it, 0 for an exit status."""
        return max(-self.status, 0)

    @property
    def timed_out(self) -> bool:
        """Whether it was ended because its time was up."""
        return self.timeout is not None

    @property
    def killed(self) -> bool:
        """Whether SIGKILL ended it before its time was up: by the kernel for memory, or by somebody."""
        return self.signal == signal.SIGKILL and not self.timed_out


@dataclass(frozen=True)
class Surroundings:
    """How a child process is started.

    log: the file that its noise is appended to, None for a temporary one. env: added to the environment.
    timeout: seconds after which it is killed. wrapper: a command that becomes the child, such as a tracer.
    """

    log: Path | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    timeout: float | None = None
    wrapper: Sequence[str] = ()


def run(job: Job[Result], on_event: Emit | None = None, around: Surroundings | None = None) -> Result:
    """Run a job in a child process and return its result; `on_event` gets what it emits.

    A TenthError of the child is raised here with its class. Raises ChildDied (a NativeError) where the child
    dies, NativeError where it fails otherwise. Whatever is raised here, Ctrl-C included, ends the child.
    """
    packed, around = job.pack(), around or Surroundings()
    modules = () if around.wrapper else job.imports
    return job.returned().validate_python(_run_packed(packed, modules, on_event, around))


def _run_packed(
    packed: Packed, modules: Sequence[str], on_event: Emit | None, around: Surroundings
) -> JsonValue:
    with _log_file(around.log) as sink:
        begin = sink.seek(0, os.SEEK_END)
        environment = _environment(packed.threads, around.env)
        server = forkserver.server(modules, packed.threads, environment)
        child = server.fork(sink) if server else _started(around.wrapper, environment, sink)
        parent = server.pid if server else os.getpid()
        request = {"job": packed.model_dump(mode="json"), "parent": parent, "environment": environment}
        with _ended(child, around.timeout) as alarm:
            answer = _converse(child, json.dumps(request), on_event)
            status = child.wait()
        if answer is None:
            timeout = around.timeout if alarm.rang else None
            raise ChildDied(packed.kind, status, _last_line(sink, begin), timeout)
    if "error" in answer:
        raise _revive(answer)
    result: JsonValue = answer["result"]
    return result


def _started(wrapper: Sequence[str], environment: Mapping[str, str], log: IO[bytes]) -> Child:
    """A child that waits for its request."""
    return subprocess.Popen(
        [*wrapper, *children.python("from tenth.core.jobs import main; main()")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env=environment,
        start_new_session=True,  # Ctrl-C of the terminal reaches the parent only, which ends the child
    )


class _Alarm(threading.Timer):
    """Ends a child when its time is up; `rang` tells whether that happened."""

    def __init__(self, child: Child, timeout: float) -> None:
        super().__init__(timeout, self._ring)
        self.daemon, self.rang, self._child = True, False, child

    def _ring(self) -> None:
        self.rang = True
        _end(self._child)


@contextlib.contextmanager
def _ended(child: Child, timeout: float | None) -> Iterator[_Alarm]:
    """The child's life: at the end of the with statement it is gone, and its pipes are closed."""
    alarm = _Alarm(child, timeout or 0.0)
    if timeout:
        alarm.start()
    try:
        yield alarm
    finally:
        alarm.cancel()
        if child.poll() is None:
            _end(child)
            child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()


def _end(child: Child) -> None:
    """Kill a child that leads a session, and with it whatever it started there."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


def _log_file(log: Path | None) -> IO[bytes]:
    """The log opened for appending; where none is wanted one without a name, which a kill leaves nowhere."""
    return log.open("a+b") if log is not None else tempfile.TemporaryFile()


def _environment(threads: int, extra: Mapping[str, str]) -> dict[str, str]:
    """The parent's environment and import path, without llama.cpp's gdb backtraces on an abort."""
    bound = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    return children.python_environment({"GGML_NO_BACKTRACE": "1", **bound, **extra})


def _converse(child: Child, request: str, on_event: Emit | None) -> Event | None:
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


def _last_line(log: IO[bytes], begin: int) -> str:
    """The last line that this child left in its log, of its last 4 KiB; none of llama.cpp's."""
    end = log.seek(0, os.SEEK_END)
    log.seek(max(begin, end - 4096))
    lines = [line.strip() for line in log.read().decode("utf-8", "replace").splitlines()]
    return next((line for line in reversed(lines) if line.strip(".") and not line.startswith(SAID)), "")


def _revive(answer: Event) -> errors.TenthError:
    kind = getattr(errors, str(answer["error"]), errors.NativeError)
    if kind is errors.BudgetError:
        return errors.BudgetError(answer["message"], answer.get("extra"))
    if not (isinstance(kind, type) and issubclass(kind, errors.TenthError)):
        kind = errors.NativeError
    return kind(answer["message"])


def main() -> None:
    """Run one job in the child: read it from stdin, write events and the result to stdout."""
    children.restrain()
    request = json.load(sys.stdin)
    os.environ.clear()  # a forked child has its server's, which may be older
    os.environ.update(request["environment"])
    if sys.platform == "linux" and os.getppid() != request["parent"]:
        os._exit(1)  # the parent died before the death signal was set
    channel = os.dup(1)
    os.dup2(2, 1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    logging.getLogger("tenth").setLevel(logging.DEBUG)
    lock = threading.Lock()

    def send(message: Event) -> None:
        data = json.dumps(message).encode() + b"\n"
        with lock:
            while data:
                data = data[os.write(channel, data) :]

    send(_answer(Packed.model_validate(request["job"]), lambda event: send({"event": event})))
    sys.stderr.flush()
    os._exit(0)  # no destructors of native code after the answer


def _answer(packed: Packed, emit: Emit) -> dict[str, JsonValue]:
    """The last message of a child: its result, or what went wrong."""
    try:
        result = packed.unpack().plain(emit)
        json.dumps(result)
        return {"result": result}
    except errors.TenthError as error:
        extra = getattr(error, "smallest", None)
        return {"error": type(error).__name__, "message": str(error), "extra": extra}
    except OSError as error:
        traceback.print_exc()
        return {"error": "OutputError", "message": _trouble(error, packed.fields)}
    except Exception as error:
        traceback.print_exc()
        message = f"{packed.kind} failed in the child process: {type(error).__name__}: {error}"
        return {"error": "NativeError", "message": message}


def _trouble(error: OSError, fields: Mapping[str, JsonValue]) -> str:
    """One line for a file that cannot be read or written; numpy reports a full disk without an errno."""
    place = fields.get("folder") or fields.get("destination") or error.filename
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or "requested and" in str(error):
        return f"no space left on the disk of {place}; free some, or choose another folder"
    return f"cannot read or write {error.filename or place}: {error.strerror or error}"
