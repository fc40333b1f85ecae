"""Other devices: one file for each way to reach them.

A target is NAME:REST for the file NAME.py here (adb:SERIAL), and [user@]host for ssh; both may be followed
by :FOLDER, the folder there. A further way is one further file with a `Transport` and
``connect(address, port)``.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass

from tenth.core.errors import InputError
from tenth.remote._base import Folder, Transport

__all__ = ["Address", "Folder", "Transport", "connect", "parse"]

_PLAIN = "ssh"
_OTHERS = {"package", "llama", "run"}  # files here that are no transport


@dataclass(frozen=True)
class Address:
    """A device as a person wrote it."""

    transport: str  # "ssh", "adb"
    address: str  # "pi@raspberry", "R5CT1234"
    folder: str  # there; "" for one of our choice

    @property
    def slug(self) -> str:
        """The address as part of a file's name: "pi-raspberry"."""
        return re.sub(r"[^A-Za-z0-9._]+", "-", self.address).strip("-.")[:60]


def parse(words: str) -> Address:
    """ "pi@raspberry:models" -> ssh, pi@raspberry, models. InputError for control characters or nothing."""
    known = {module.name for module in pkgutil.iter_modules(__path__)} - _OTHERS
    first, colon, rest = words.partition(":")
    if not words or not words.isprintable():
        raise InputError("no device is named; give user@host, user@host:folder or adb:SERIAL")
    if colon and first in known and not first.startswith("_"):
        # A serial may hold a port itself (adb over Wi-Fi): the folder there is absolute.
        address, slash, folder = rest.partition(":/")
        return Address(first, address, slash[1:] + folder)
    bracket = re.fullmatch(r"([^\[\]]*\[[^\[\]]*\]):?(.*)", words)
    address, folder = bracket.groups() if bracket else (first, rest)
    return Address(_PLAIN, address, folder.removeprefix("~/"))


def connect(target: Address, port: int | None = None) -> AbstractContextManager[Transport]:
    """The way to it, for a `with`. InputError where its program is not installed here or the name is none."""
    way: AbstractContextManager[Transport] = importlib.import_module(
        f"{__name__}.{target.transport}"
    ).connect(target.address, port)
    return way
