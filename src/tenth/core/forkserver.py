"""A process that has imported what many jobs need, and forks a child for each of them.

Importing torch and transformers takes about 5 s of a core, and a fit runs a dozen jobs that need both. Here
they are imported once; a fork takes milliseconds, shares those pages, and is a child like any other: it has
its own log, dies alone, and gives back what memory it took. Forking after such imports is safe on Linux as
long as no thread of OpenMP ran before: so nothing but imports happens here. (Python's own
multiprocessing.forkserver would import the program's main module anew and pass objects as pickles.)
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import IO

from tenth.core import children

MOST = 2  # servers of a process at a time, each for its own imports and number of threads
_NUMBER = struct.Struct("<q")  # of a process; its status, as subprocess gives it
_COMMAND = """
import sys
from tenth.core import children, forkserver, jobs
children.restrain()
forkserver.serve(sys.argv[1:], jobs.main)
"""


class Forked:
    """A forked child: as much of subprocess.Popen as a job needs."""

    def __init__(self, server: ForkServer, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        self.stdin, self.stdout, self._server = stdin, stdout, server
        self.pid = server.receive()
        self._status = self.pid if self.pid < 0 else None  # the server died

    def poll(self) -> int | None:
        """The status; None where the child was not waited for."""
        return self._status

    def wait(self) -> int:
        """Wait for the end; the status, -N where signal N ended the child."""
        if self._status is None:
            self._status = self._server.receive()
            self._server.busy = False
        return self._status


class ForkServer:
    """The process. It ends with the thread that started it, or by `close`."""

    def __init__(self, modules: Sequence[str], environment: Mapping[str, str]) -> None:
        self.busy = False
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [*children.python(_COMMAND), *modules],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=dict(environment),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The number of the process, which is the parent of what it forks."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it can still fork."""
        return self._process.poll() is None

    def fork(self, log: IO[bytes]) -> Forked:
        """A child whose stderr is the log; one with a status already where the process has died."""
        (request, stdin), (stdout, answer) = os.pipe(), os.pipe()
        with contextlib.suppress(BrokenPipeError):
            socket.send_fds(self._socket, [b"f"], [request, answer, log.fileno()])
        os.close(request)
        os.close(answer)
        self.busy = True
        return Forked(self, os.fdopen(stdin, "wb"), os.fdopen(stdout, "rb"))

    def receive(self) -> int:
        """The next number that the process tells; SIGKILL's status where it died with its child."""
        data = b""
        while len(data) < _NUMBER.size:
            more = b""
            with contextlib.suppress(OSError):
                more = self._socket.recv(_NUMBER.size - len(data))
            if not more:
                self.close()
                return -signal.SIGKILL
            data += more
        number: int = _NUMBER.unpack(data)[0]
        return number

    def close(self) -> None:
        """End the process, and with it what it forked."""
        self._socket.close()
        self._process.kill()
        self._process.wait()


_servers: dict[tuple[str, ...], ForkServer] = {}  # the newest last


def server(modules: Sequence[str], threads: int, environment: Mapping[str, str]) -> ForkServer | None:
    """A server with those imports that is free, started now where there is none.

    None where a child is better started from nothing: on other systems than Linux, in another thread than the
    main one (whose end would end the server), and while the server's last child runs.
    """
    if not modules or sys.platform != "linux" or threading.current_thread() is not threading.main_thread():
        return None
    key = (*modules, str(threads), environment["PYTHONPATH"], os.path.realpath("."))
    found = _servers.pop(key, None)
    if found is None or not found.alive:
        while len(_servers) >= MOST:
            _servers.pop(next(iter(_servers))).close()
        found = ForkServer(modules, environment)
    _servers[key] = found
    return None if found.busy else found


@atexit.register
def close_all() -> None:
    """End all servers of this process."""
    while _servers:
        _servers.popitem()[1].close()


def serve(modules: Sequence[str], job: Callable[[], None]) -> None:
    """In the server: import the modules, then fork a child that runs `job` for every request, one by one."""
    requests = socket.socket(fileno=os.dup(0))
    for module in modules:
        with contextlib.suppress(ImportError):  # the job that needs it will say so
            importlib.import_module(module)
    gc.freeze()  # what is shared now is not copied by the collector's marks
    warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, which imports may start
    while files := socket.recv_fds(requests, 1, 3)[1]:
        child = os.fork()
        if not child:
            _child(requests, files, job)
        with contextlib.suppress(OSError):  # the child was faster
            os.setpgid(child, child)
        for file in files:
            os.close(file)
        requests.sendall(_NUMBER.pack(child))
        requests.sendall(_NUMBER.pack(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
    os._exit(0)


def _child(requests: socket.socket, files: Sequence[int], job: Callable[[], None]) -> None:
    """The life of a forked child, which never returns."""
    try:
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        requests.close()
        for file, number in zip(files, (0, 1, 2), strict=True):
            os.dup2(file, number)
            os.close(file)
        job()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(1)
