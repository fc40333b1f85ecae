"""The model in a child process, as long as it is wanted: started, watched, and started again when it dies.

One thread lives with the child: it starts it, waits for its end, and starts it anew. Another looks while
something is asked whether llama.cpp works on it: a chat template or a text that keeps it from beginning is
ended with the child, since nothing else ends it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tenth.core import children
from tenth.core.errors import InputError, NativeError
from tenth.core.format import megabytes
from tenth.core.progress import one_line
from tenth.core.store import temporary_folder
from tenth.runtime import limits
from tenth.runtime.bundle import Bundle
from tenth.runtime.server.checks import body_limit
from tenth.runtime.server.child import Orders
from tenth.runtime.template import complaint

# Beside what the proof ran, llama.cpp's HTTP server holds 3.5 MB (threads, JSON, the template: seen with two
# models), and for the time of a request up to 100 bytes for each byte of a text that is too long for it.
_SERVER, _PER_BYTE = 4_000_000, 100
PREPARING = 30  # seconds in which a request's template and text must become tokens
_WEDGED = 300  # seconds in which llama.cpp's loop must come round; a batch of a slow device takes a minute
_LOADING, _SLOWEST_DISK = 30, 10e6  # seconds for a model without size; bytes/s
_LONGEST_SOCKET = 103  # bytes of its path, on a Mac; Linux takes 107
_DEATHS = 5  # in a row, with nothing asked: then it is given up
_PERIOD, _LOOKS = 2, 3  # seconds between looks at a request that is late, and how many must find nothing done
_LOOK = 0.1  # seconds between looks at the memory where there is no cgroup
_STAMP = re.compile(r"^[\d.]+ [A-Z] ")  # how llama.cpp begins a line of its log


@dataclass(eq=False)
class Flight:
    """A request that the child works on."""

    began: float = field(default_factory=time.monotonic)
    answered: bool = False  # its first byte came: it is beyond template and tokens


class Engine:
    """A running model. Enter it to start it: NativeError where it does not load; leave it to end it."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        runtime = bundle.plan.runtime
        self.largest_body = body_limit(runtime.n_ctx)
        self.limit = bundle.plan.budget.memory + _SERVER + _PER_BYTE * self.largest_body
        self.key = secrets.token_hex(16)
        self.pid = 0  # of the child; 0 while there is none
        self.deaths = 0  # that were noticed so far
        self.reason = ""  # why the last child ended
        self.given_up = False
        self._ready = False
        self._ending = False
        self._served = False  # whether this child has answered something
        self._stuck = ""  # why this child was ended from here
        self._process: subprocess.Popen[bytes] | None = None
        self._flights: set[Flight] = set()
        self._changed = threading.Condition()

    def __enter__(self) -> Self:
        self._stack = contextlib.ExitStack()
        self._folder = self._stack.enter_context(temporary_folder())  # of this user alone
        self.socket = self._folder / "model.sock"
        if len(os.fsencode(self.socket)) > _LONGEST_SOCKET:
            self._stack.close()
            raise InputError(f"{self._folder.parent} is too long a path for a socket; set TMPDIR to another")
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._live, self._look)]
        for thread in self._threads:
            thread.start()
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._ready or self.given_up)
            self.check()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._ending = True
            self._changed.notify_all()
            process = self._process
        if process and process.stdin:
            with contextlib.suppress(OSError):
                process.stdin.close()  # which ends it
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            if process.poll() is None:
                process.kill()
        for thread in self._threads:
            thread.join()
        self._stack.close()

    def check(self) -> None:
        """NativeError where the model is given up."""
        if self.given_up:
            raise NativeError(self.reason)

    def wait(self) -> None:
        """Block while the model is served; NativeError when it is given up."""
        with self._changed:
            while not self.given_up:
                self._changed.wait(1)  # so that Ctrl-C is heard on every system
        self.check()

    @property
    def ready(self) -> bool:
        """Whether it can be asked now."""
        return self._ready

    def wait_ready(self, seconds: float) -> bool:
        """Wait until it can be asked; False where it cannot within that time."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self.given_up or self._ending, seconds)
            return self._ready

    @contextlib.contextmanager
    def asked(self) -> Iterator[Flight]:
        """For the time of a request, which is watched."""
        flight = Flight()
        with self._changed:
            self._flights.add(flight)
            self._changed.notify_all()
        try:
            yield flight
        finally:
            with self._changed:
                self._flights.discard(flight)
                self._served = self._served or (flight.answered and self._ready)

    def connect(self, timeout: float | None = None) -> http.client.HTTPConnection:
        """A connection to the child, not opened yet."""
        return _Connection(self.socket, timeout)

    def why(self) -> str:
        """After a connection broke: why the child ended, once that is known; else that it broke."""
        before = self.deaths
        with self._changed:
            self._changed.wait_for(lambda: self.deaths > before or not self._ready, 5)
        return self.reason or "the connection to llama.cpp broke off"

    def _live(self) -> None:
        """Start the child, wait for its end, start it again."""
        alone = 0  # deaths in a row with nothing asked
        while not self._ending:
            with self._child() as child:
                loaded = self._load(child)
                if loaded:
                    self._set_ready()
                    child.listen()
                asked = bool(self._flights)
                child.process.wait()
                reason = child.death(self.limit)
            with self._changed:
                alone = (0 if self._served else alone) + (not (loaded and asked))
                self._served = False
                self.pid, self._ready, self.reason, self._stuck = 0, False, self._stuck or reason, ""
                self.deaths += 1
                self.given_up = alone >= _DEATHS or (self.deaths == 1 and not loaded)
                self._changed.notify_all()
                if self.given_up or self._ending:
                    return
                self._changed.wait_for(lambda: self._ending, min(0.1 * 2**alone, 5) if alone else 0)

    def _set_ready(self) -> None:
        with self._changed:
            self._ready = True
            self._changed.notify_all()

    @contextlib.contextmanager
    def _child(self) -> Iterator[_Child]:
        """A child with its orders; at the end it is gone, and so is its memory group."""
        self.socket.unlink(missing_ok=True)
        orders = Orders(
            gguf=self.bundle.gguf.resolve(),
            runtime=self.bundle.plan.runtime,
            socket=self.socket,
            key=self.key,
            alias=self.bundle.plan.model or "tenth",
            limit=self.limit,
        )
        child = _Child(orders, self._folder / "log")
        with self._changed:
            self.pid, self._process = child.process.pid, child.process
            if self._ending:
                child.process.kill()
        try:
            yield child
        finally:
            child.close()

    def _load(self, child: _Child) -> bool:
        """Wait until the child has loaded the model; False where it ended first, or took too long."""
        seconds = _LOADING + self.bundle.gguf.stat().st_size / _SLOWEST_DISK
        slow = f"llama.cpp did not load the model and try its chat template within {seconds:.0f} s"
        alarm = threading.Timer(seconds, self._kill, (child.process.pid, slow))
        alarm.daemon = True
        alarm.start()
        try:
            return child.listen(until="ready")
        finally:
            alarm.cancel()

    def _look(self) -> None:
        """While something is asked: end the child where it does not work on it."""
        idle = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ending or bool(self._flights))
                self._changed.wait_for(lambda: self._ending, _PERIOD)
                if self._ending:
                    return
                now = time.monotonic()
                late = [flight for flight in self._flights if now - flight.began > PREPARING]
                pid = self.pid
            if not late or not self._ready:
                idle = 0
                continue
            idle = 0 if self._works(pid) or any(flight.answered for flight in late) else idle + 1
            if idle >= _LOOKS:
                self._kill(pid, f"a chat template or a text took llama.cpp more than {PREPARING} s")

    def _works(self, pid: int) -> bool:
        """Whether llama.cpp computes something; it is ended where it does not even say so."""
        connection = self.connect(_WEDGED)
        try:
            connection.request("GET", "/slots", headers={"Authorization": f"Bearer {self.key}"})
            slots = json.loads(connection.getresponse().read())
            return any(slot["is_processing"] for slot in slots)
        except TimeoutError:
            self._kill(pid, f"llama.cpp did nothing for {_WEDGED} s")
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
            pass  # it has just ended, or begins anew
        finally:
            connection.close()
        return True

    def _kill(self, pid: int, why: str) -> None:
        with self._changed:
            if self.pid == pid and pid:
                self._stuck = why
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


class _Child:
    """A process of child.py, and what it told."""

    def __init__(self, orders: Orders, log: Path) -> None:
        self.log = log
        self.group: limits.Cgroup | None = None
        self.over = False
        with log.open("wb") as sink:
            self.process = subprocess.Popen(
                children.python("from tenth.runtime.server.child import main; main()"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                env=_environment(),
                start_new_session=True,  # Ctrl-C is for the parent, which then closes the child's stdin
            )
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(orders.model_dump_json().encode() + b"\n")
            self.process.stdin.flush()

    def listen(self, until: str = "") -> bool:
        """Take note of what it tells; True when it told of `until`, False when it tells no more."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(ValueError):  # cut short by its death
                event = json.loads(line)
                self.group = limits.Cgroup.from_event(event) or self.group
                if "watch" in event:
                    threading.Thread(target=self._watch, args=(int(event["watch"]),), daemon=True).start()
                if until in event:
                    return True
        return False

    def _watch(self, most: int) -> None:
        """Where there is no cgroup: end it when it holds more bytes than that."""
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.process.pid)
            while self.process.poll() is None:
                if process.memory_info().rss > most:
                    self.over = True
                    self.process.kill()
                    return
                time.sleep(_LOOK)

    def close(self) -> None:
        """End it, and remove its memory group."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                if pipe:
                    pipe.close()
        if self.group:
            limits.remove(self.group.path)

    def death(self, limit: int) -> str:
        """One line for how it ended: the limit, the signal or status, and what llama.cpp said last."""
        code = self.process.returncode
        over = self.over or bool(self.group and self.group.hits())
        if code == -signal.SIGKILL and over:
            return f"llama.cpp wanted more memory than the {megabytes(limit)} MB that it may hold"
        with self.log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - (64 << 10)))
            lines = [_STAMP.sub("", line) for line in file.read().decode("utf-8", "replace").splitlines()]
        about_template = any("chat template" in line.lower() or "chat_template" in line for line in lines)
        if about_template and (why := complaint(lines)):
            return f"llama.cpp cannot use the file's chat template: {why}"
        words = ("assert", "abort", "terminate") if code < 0 else ("error", "fail")
        telling = [line for line in lines if any(word in line.lower() for word in words)]
        if code >= 0:
            telling = telling or lines
        said = f', saying "{one_line(telling[-1].strip())[:300]}"' if telling else ""
        with contextlib.suppress(ValueError):
            if code < 0:
                return f"llama.cpp died of {signal.Signals(-code).name}{said}"
        return f"llama.cpp could not run the model (status {code}){said}"


class _Connection(http.client.HTTPConnection):
    """HTTP over the child's Unix socket."""

    def __init__(self, path: Path, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Open it; OSError where the child is gone."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _environment() -> dict[str, str]:
    # Idle OpenMP threads must not burn the cores between tokens. The dropped names steer llama.cpp.
    steering = ("LLAMA_", "AIP_", "GGML_")
    everything = children.python_environment()
    kept = {name: value for name, value in everything.items() if not name.startswith(steering)}
    return kept | {"OMP_WAIT_POLICY": "passive", "GGML_NO_BACKTRACE": "1"}
