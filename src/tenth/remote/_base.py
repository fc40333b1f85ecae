"""What every way to another device can do, and the folder there that is gone afterwards, whatever happens.

The folder is held by a small shell script on the device (`_KEEPER`), whose stdin is a pipe from here:

    here                                    device
    beat N        every 15 s  ----------->  remembers it; 90 s without one count as a lost connection
    keep          (tenth push) ---------->  gives the folder its final name
    end of stdin  ----------------------->  kills what still runs there, removes the folder
                                            (so do SIGHUP, SIGTERM and SIGINT)

So a finished run, an error, Ctrl-C, the death of this process and a cut cable all end the same way.
"""

from __future__ import annotations

import abc
import contextlib
import os
import shlex
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypeVar

from tenth.core import children
from tenth.core.errors import DeviceError
from tenth.devices import foreign

_T = TypeVar("_T")
BEAT, SILENCE = 15, 90  # seconds
ANSWER = 60  # seconds for the device to make a folder or to say what it is
PATIENCE = 900  # seconds for a file from the device
MAX_OUTPUT, MAX_SAID = 16 << 20, 2 << 20  # bytes of a command's stdout and stderr, taken from a device
_LINE = 2000  # letters of a line on stderr

# {parent}: sets `parent`; {final}: the name that `keep` gives, or empty; {replace}: 1 to replace a push.
# Positional parameters are the folders made on the way, deepest first.
_KEEPER = r"""
umask 077
w= d= final={final}
clean() {{
  trap '' HUP INT TERM PIPE
  [ -n "$w" ] && kill "$w"
  n=0
  while [ -n "$d" ] && [ -e "$d" ] && [ "$n" -lt 20 ]; do
    for f in "$d"/.run/*; do
      p=${{f##*/}}
      case $p in *[!0-9]*) ;; *) kill -9 "-$p"; kill -9 "$p" ;; esac
    done
    [ "$n" = 0 ] || sleep 1
    rm -rf "$d"
    n=$((n + 1))
  done
  for p in "$@"; do rmdir "$p"; done
}} 2>/dev/null
set --
if [ -n "$final" ] && [ -e "$final" ]; then
  [ -f "$final/{mark}" ] || {{ echo taken; exit 0; }}
  [ -n "{replace}" ] || {{ echo pushed; exit 0; }}
fi
parent=
{parent}
[ -n "$parent" ] || {{ echo nowhere; exit 0; }}
p=$parent
while [ ! -d "$p" ]; do set -- "$@" "$p"; p=$(dirname "$p"); done
trap 'clean "$@"' EXIT
trap 'exit 1' HUP INT TERM PIPE
mkdir -p "$parent" && parent=$(cd "$parent" && pwd) && d=$(mktemp -d "$parent/tenth-XXXXXX") || exit 1
mkdir "$d/.run" && echo 0 > "$d/.run/beat" || exit 1
(
  exec < /dev/null > /dev/null 2>&1
  s= last=
  trap 'kill $s; exit' TERM
  while :; do
    sleep {silence} & s=$!
    wait $s
    now=$(cat "$d/.run/beat") || exit
    [ "$now" = "$last" ] && kill -TERM $$
    last=$now
  done
) & w=$!
echo "folder $d"
while read -r word rest; do
  case $word in
  beat) echo "$rest" > "$d/.run/beat" ;;
  keep)
    : > "$d/{mark}" && rm -rf "$final" "$d/.run" && mv "$d" "$final" || exit 1
    d=
    set --
    echo "kept $(cd "$final" && pwd)"
    ;;
  esac
done
"""
MARK = ".tenth-push"
# The first folder that is there, can be written, and is no disk in memory: pages there would count as memory.
_SEARCH = """
for p in {candidates}; do
  [ -d "$p" ] && [ -w "$p" ] || continue
  case $(stat -f -c %T "$p" 2> /dev/null) in tmpfs | ramfs) continue ;; esac
  parent=$p
  break
done
"""


@dataclass(frozen=True)
class Done:
    """How a command on the device ended."""

    status: int
    out: str  # its stdout
    last_line: str  # of its stderr


class Transport(abc.ABC):
    """A way to one other device. A file of this package holds one, and ``connect(address, port)``.

    name: as the person wrote it. folders: shell words, where a run may have its folder, best first.
    """

    name: str
    folders: str

    @abc.abstractmethod
    def command(self, script: str) -> list[str]:
        """The local command that runs a POSIX shell script there, with its stdin, stdout and status."""

    @abc.abstractmethod
    def put(self, files: Mapping[str, Path], folder: str, advance: Callable[[float], None]) -> None:
        """Copy local files to names below `folder` there, modes included; advance gets the bytes done.

        Raises DeviceError.
        """

    def get(self, path: str, limit: int) -> bytes:
        """The bytes of a file there, whatever it says of its size.

        DeviceError where it is absent, larger than `limit`, or does not come within `PATIENCE` seconds.
        """
        process = subprocess.Popen(
            self.command(f"exec cat {_quote(path)}"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=children.environment(),
            start_new_session=True,
        )
        alarm = threading.Timer(PATIENCE, process.kill)
        alarm.daemon = True
        alarm.start()
        with process:
            assert process.stdout
            data = process.stdout.read(limit + 1)
            alarm.cancel()
            if len(data) > limit:
                process.kill()
                raise DeviceError(f"{path} on {self.name} is larger than {limit} bytes; it is not taken")
        if process.returncode:
            raise DeviceError(f"{path} cannot be read on {self.name}")
        return data

    @abc.abstractmethod
    def reason(self, status: int, stderr: str) -> str:
        """One line for how the transport's program failed; "" where it did not, but what it ran."""

    @abc.abstractmethod
    def shell(self, command: str) -> str:
        """What a person types here to run a command there, for a terminal."""

    def run(
        self, script: str, timeout: float | None = None, on_line: Callable[[str], None] | None = None
    ) -> Done:
        """Run a script there; on_line gets each line of its stderr.

        Raises DeviceError where the connection breaks, it says too much, or `timeout` seconds are up.
        """
        process = subprocess.Popen(
            self.command(script),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=children.environment(),
            start_new_session=True,  # Ctrl-C is for us, and the keeper then ends what runs there
        )
        assert process.stdout
        assert process.stderr
        out, lines = bytearray(), _Said()
        # Threads, not waited for: ssh hands its pipes to the master, which may keep them open after a kill.
        readers = [
            threading.Thread(target=_collect, args=(process, out), daemon=True),
            threading.Thread(target=_listen, args=(process, lines, on_line), daemon=True),
        ]
        for reader in readers:
            reader.start()
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise DeviceError(f"{self.name} did not finish within {timeout:g} s; it is ended there") from None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if len(out) > MAX_OUTPUT or lines.bytes > MAX_SAID:
            most = MAX_OUTPUT if len(out) > MAX_OUTPUT else MAX_SAID
            raise DeviceError(f"{self.name} answered with more than {most} bytes; nothing of it is used")
        for reader in readers:
            reader.join(timeout=5)
        trouble = self.reason(status, "\n".join(lines.last)) if status else ""
        if trouble:
            raise DeviceError(trouble)
        return Done(status, out.decode("utf-8", "replace"), lines.last[-1] if lines.last else "")

    @contextlib.contextmanager
    def folder(self, where: str = "", final: str = "", replace: bool = False) -> Iterator[Folder]:
        """A fresh folder there, removed at the end with all that still runs in it.

        where: make it in that folder (made, and removed, if absent); else in one of `folders`. final: the
        name that `Folder.keep` gives it; its parent is then used. replace: what an earlier `keep` left under
        that name may go. Raises DeviceError where the device cannot be reached or gives no folder.
        """
        given = f"$(dirname {_quote(final)})" if final else _quote(where) if where else ""
        script = _KEEPER.format(
            final=_quote(final) if final else "",
            replace="1" if replace else "",
            mark=MARK,
            silence=SILENCE,
            parent=f"parent={given}" if given else _SEARCH.format(candidates=self.folders),
        )
        with tempfile.TemporaryFile() as errors:
            keeper = subprocess.Popen(
                self.command(script),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=children.environment(),
                start_new_session=True,
            )
            stop = threading.Event()
            try:
                path = self._expect(keeper, errors, "folder", final or where)
                heart = threading.Thread(target=_beat, args=(keeper, stop), daemon=True)
                heart.start()
                yield Folder(self, path, keeper, errors)
            finally:
                stop.set()
                assert keeper.stdin
                assert keeper.stdout
                with contextlib.suppress(OSError, ValueError):
                    keeper.stdin.close()
                try:
                    keeper.wait(timeout=SILENCE)
                except subprocess.TimeoutExpired:
                    keeper.kill()
                    keeper.wait()
                keeper.stdout.close()

    def _expect(self, keeper: subprocess.Popen[bytes], errors: IO[bytes], word: str, folder: str) -> str:
        """What follows `word` in the keeper's next line."""
        alarm = threading.Timer(ANSWER, keeper.kill)
        alarm.daemon = True
        alarm.start()
        assert keeper.stdout
        answer = keeper.stdout.readline(_LINE).decode("utf-8", "replace").strip()
        alarm.cancel()
        first, _, rest = answer.partition(" ")
        if first == word and rest.isprintable():
            return rest
        if first == "taken":
            raise DeviceError(
                f"{folder} on {self.name} is there already and no tenth push; name another folder"
            )
        if first == "pushed":
            raise DeviceError(f"{folder} on {self.name} is there already; --overwrite replaces it")
        if first == "nowhere":
            raise DeviceError(
                f"{self.name} has no folder on a disk that can be written; name one: {self.name}:FOLDER"
            )
        status = keeper.wait()
        errors.seek(0)
        stderr = errors.read(64 << 10).decode("utf-8", "replace")
        said = [foreign.shown(line).strip() for line in stderr.splitlines() if line.strip()]
        last = said[-1][:300] if said else "it said nothing"
        raise DeviceError(self.reason(status, stderr) or f"no folder could be made on {self.name}: {last}")


@dataclass(frozen=True)
class Folder:
    """A folder on the device, while `Transport.folder` holds it."""

    device: Transport
    path: str
    keeper: subprocess.Popen[bytes]
    errors: IO[bytes]

    def put(self, files: Mapping[str, Path], advance: Callable[[float], None]) -> None:
        """Copy local files to names below this folder."""
        self._lost_or(lambda: self.device.put(files, self.path, advance))

    def get(self, name: str, limit: int) -> bytes:
        """The bytes of a file below this folder."""
        return self._lost_or(lambda: self.device.get(f"{self.path}/{name}", limit))

    def run(
        self, script: str, timeout: float | None = None, on_line: Callable[[str], None] | None = None
    ) -> Done:
        """Run a script in this folder; it and its children end with the folder."""
        here = _quote(self.path)
        # The shell of a connection leads a group of its own, which the keeper can end by this number.
        line = f"cd {here} && : > .run/$$ || exit 1; ({script}); s=$?; rm -f {here}/.run/$$; exit $s"
        return self._lost_or(lambda: self.device.run(line, timeout, on_line))

    def keep(self) -> str:
        """Give the folder its final name; returns its path."""
        assert self.keeper.stdin
        self.keeper.stdin.write(b"keep\n")
        self.keeper.stdin.flush()
        return self.device._expect(self.keeper, self.errors, "kept", self.path)

    def _lost_or(self, work: Callable[[], _T]) -> _T:
        """The result of `work`; where the connection is gone, the error that says so."""
        try:
            return work()
        except DeviceError:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.keeper.wait(timeout=1)
                raise DeviceError(
                    f"the connection to {self.device.name} was lost; the device itself ends and removes what"
                    f" was begun there, {SILENCE} s later at most; run the same command again"
                ) from None
            raise


def _quote(path: str) -> str:
    """One word for the device's shell; a name that begins with - is no option."""
    return shlex.quote(f"./{path}" if path.startswith("-") else path)


def _beat(keeper: subprocess.Popen[bytes], stop: threading.Event) -> None:
    number = 0
    assert keeper.stdin
    while not stop.wait(BEAT):
        number += 1
        try:
            keeper.stdin.write(f"beat {number}\n".encode())
            keeper.stdin.flush()
        except (OSError, ValueError):  # the connection is gone; who uses it will notice
            return


def _collect(process: subprocess.Popen[bytes], out: bytearray) -> None:
    """Keep what it writes on stdout; end it where that is too much."""
    assert process.stdout
    with process.stdout as stream:
        while block := os.read(stream.fileno(), 65536):
            out += block
            if len(out) > MAX_OUTPUT:
                process.kill()
                return


@dataclass
class _Said:
    """What a command says on stderr: its last lines, and how many bytes it was."""

    last: deque[str] = field(default_factory=lambda: deque(maxlen=20))
    bytes: int = 0


def _listen(process: subprocess.Popen[bytes], said: _Said, on_line: Callable[[str], None] | None) -> None:
    """Keep the last lines, pass each on as a terminal may show it; end it where that is too much."""
    assert process.stderr
    with process.stderr as stream:
        for raw in iter(lambda: stream.readline(_LINE), b""):
            said.bytes += len(raw)
            if said.bytes > MAX_SAID:
                process.kill()
                return
            line = foreign.shown(raw.decode("utf-8", "replace")).rstrip()
            if line:
                said.last.append(line)
                if on_line:
                    on_line(line)
