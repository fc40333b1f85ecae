"""A real sshd on loopback that plays another device; where root allows it, in a network namespace of its own
and under a memory limit. Shared by the tests and bench/remote.py.

    PATH: an `ssh` that reads our client configuration -> ProxyCommand into the namespace -> sshd -> sh
"""

from __future__ import annotations

import ctypes
import fcntl
import getpass
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
from waiting import soon

from tenth.runtime import limits

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
HOST = "device"
_CLONE_NEWNET = 0x40000000
_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 1  # ioctls of a network interface


@dataclass
class Sshd:
    """A running server. ssh to HOST reaches it once `path` begins PATH."""

    folder: Path
    process: subprocess.Popen[bytes]
    port: int
    isolated: bool

    @property
    def path(self) -> str:
        """A PATH whose ssh knows the device."""
        return f"{self.folder / 'bin'}:{os.environ['PATH']}"

    def children(self) -> list[int]:
        """The processes that serve a connection, newest last."""
        return [child.pid for child in psutil.Process(self.process.pid).children()]

    def stop(self) -> None:
        """End it and its connections."""
        for pid in self.children():
            _kill(pid)
        self.process.terminate()
        self.process.wait()


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def free_port() -> int:
    """A port that no one listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(folder: Path, first_on_path: Path | None = None, memory: int | None = None) -> Sshd:
    """Make keys and configurations in `folder`, start sshd, wait until it listens.

    first_on_path: programs there hide the device's own. memory: bytes that the device has (needs root).
    """
    assert SSHD
    for name in ("host", "user"):
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(make, check=True, stdin=subprocess.DEVNULL)
    port = free_port()
    first = [str(first_on_path)] if first_on_path else []
    path = ":".join([*first, str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"])
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile none\nStrictModes no\n"
        f"AuthorizedKeysFile {folder}/user.pub\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n"
        f"KbdInteractiveAuthentication no\nMaxStartups 100\n"
        # A login shell may read files of its own that change PATH.
        f'ForceCommand exec env PATH={path} sh -c "$SSH_ORIGINAL_COMMAND"\n'
    )
    root = os.geteuid() == 0
    if root:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd locks its unprivileged half in
    options = [str(folder / "sshd_config"), str(memory or 0)]
    log = (folder / "sshd.log").open("wb")
    process = subprocess.Popen([sys.executable, __file__, *options], stdin=subprocess.DEVNULL, stderr=log)
    log.close()
    (folder / "bin").mkdir()
    wrapper = folder / "bin" / "ssh"
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/config "$@"\n')
    wrapper.chmod(0o755)
    host_key = (folder / "host.pub").read_text().split()
    (folder / "known").write_text(f"{HOST} {host_key[0]} {host_key[1]}\n")
    way = f"{sys.executable} {__file__} {process.pid} {port}"
    (folder / "config").write_text(
        f"Host {HOST}\n  HostName 127.0.0.1\n  HostKeyAlias {HOST}\n  Port {port}\n"
        f"  User {getpass.getuser()}\n"
        f"  IdentityFile {folder}/user\n  UserKnownHostsFile {folder}/known\n  ProxyCommand {way}\n"
        "Host *\n  IdentitiesOnly yes\n  IdentityAgent none\n  StrictHostKeyChecking yes\n"
        "  GlobalKnownHostsFile none\n"
    )
    running = Sshd(folder, process, port, False)
    noise = folder / "sshd.log"
    try:
        soon(lambda: b"Server listening" in noise.read_bytes(), "sshd does not listen", 5)
    except AssertionError:
        running.stop()
        raise RuntimeError(noise.read_text()) from None
    running.isolated = b"isolated" in noise.read_bytes()
    return running


def _serve(config: str, memory: int) -> None:
    """This process becomes sshd, in its namespace and memory group where that is allowed."""
    assert SSHD
    if ctypes.CDLL(None).unshare(_CLONE_NEWNET) == 0:
        _loopback_up()
        print("isolated", file=sys.stderr, flush=True)
    if memory and limits.limit_memory(memory) is None:
        sys.exit("no memory group can be made")
    os.execv(SSHD, [SSHD, "-D", "-e", "-f", config])


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(handle, _GET_FLAGS, request))[1]
        fcntl.ioctl(handle, _SET_FLAGS, struct.pack("16sh14x", b"lo", flags | _UP))


def _relay(pid: int, port: int) -> None:
    """Join the server's network namespace, then pass bytes between it and our stdin and stdout."""
    libc = ctypes.CDLL(None)
    try:
        with Path(f"/proc/{pid}/ns/net").open("rb") as namespace:
            libc.setns(namespace.fileno(), _CLONE_NEWNET)
    except OSError:  # not root: it is in ours
        pass
    with socket.create_connection(("127.0.0.1", port)) as line:
        reader = os.fork()
        if reader == 0:
            while data := os.read(0, 65536):
                line.sendall(data)
            line.shutdown(socket.SHUT_WR)
            os._exit(0)
        while data := line.recv(65536):
            os.write(1, data)
    os.kill(reader, signal.SIGKILL)  # it holds the other ends of our pipes


if __name__ == "__main__":
    if sys.argv[1].isdigit():
        _relay(int(sys.argv[1]), int(sys.argv[2]))
    else:
        _serve(sys.argv[1], int(sys.argv[2]))
