"""The person's own ssh config on the disk: brought up to date where that is ours to do, and otherwise explained."""

from __future__ import annotations

import errno
import os
import re
import shlex
import stat
import tempfile
from pathlib import Path

from gpuops import durable, openssh
from gpuops.errors import SshConfigError
from gpuops.ssh_config import blocks

BACKUP_NAME = ".config.before-gpuops"
"""Beside the config: how it was before our last change. Hidden, so that no wildcard of an Include line meets it."""

# What decides whether ssh comes to the machine, as whom, and knows it.
_DECISIVE = ("hostname", "port", "user", "hostkeyalias", "userknownhostsfile")

# An editor saves once; what saves without end has the last word.
_TRIES = 10


class UserConfig:
    """`path` is the person's; `ours` is the file that its `include` line brings in.

    OpenSSH has `wait_s` to read a config: it may run programs of the person's meanwhile (Match exec).
    """

    def __init__(self, path: Path, *, ours: Path, wait_s: float) -> None:
        self.path = path
        self._ours = ours
        self._wait_s = wait_s
        self._backup = ours.with_name(BACKUP_NAME)
        # Absolute, as OpenSSH reads "~" from the account and not from $HOME; and what it would expand, which differs
        # by its version, is matched by a wildcard.
        self.include = b'Include "%b"' % re.sub(rb"[][*%\\]", b"?", os.fsencode(ours.absolute()))

    def bring_in(self, name: str, host: str) -> None:
        """Our line at its top, and `host` in a block named like the machine; not where it can't or mustn't be changed.

        What an editor, which knows no lock of ours, saves before the very last moment is kept and changed instead.
        Raises `SshConfigError` where it can't be read, or the disk doesn't take it.
        """
        for _ in range(_TRIES):
            before = read(self.path)
            after = self._brought_in(before, name, host)
            if after == before or self._unwritable():
                return
            try:
                return self._replace(before, after, name)
            except _Overtaken:
                continue
            except (_Refused, PermissionError):
                return
            except OSError as error:
                raise SshConfigError(
                    f"{self.path} can't be written: {error}.",
                    left_behind="It is as it was.",
                    next_step=f"Put this line at its top yourself: {os.fsdecode(self.include)}",
                ) from error

    def leave_out(self) -> None:
        """Take our line out, wherever it was moved to, and the backup with it. Raises `OSError`."""
        before = read(self.path)
        if (after := blocks.without(before, self.include)) != before:
            if blocked := self._unwritable():
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(blocked))
            self._replace(before, after, "")
        durable.remove(self._backup)

    def leads_to(self, name: str) -> bool:
        """Whether it brings ssh to the machine, as our own file does: by our line, or in words of their own."""
        try:
            has_line = blocks.includes(read(self.path), self.include)
            return (has_line or openssh.is_there()) and not self._misled(name)
        except SshConfigError:
            return False

    def left_to_do(self, name: str, host: str) -> tuple[str, ...]:
        """What keeps it from that, each with what the person can do; and an old address that isn't ours to write."""
        text, blocked, include = read(self.path), self._unwritable(), os.fsdecode(self.include)
        todo = []
        if text.startswith(blocks.BYTE_ORDER_MARK):
            file = shlex.quote(str(self.path))
            todo.append(
                f"{self.path} begins with a byte order mark, so OpenSSH refuses all of it. Take it off: "
                f"tail -c +4 {file} >{file}.new && cat {file}.new >{file} && rm {file}.new"
            )
        elif refusal := self._refusal(text, name, "" if blocked else host):
            todo.append(f"{refusal}. Mend that line, and see: ssh -G {name}")
        if not blocks.includes(text, self.include) and (todo or not self.leads_to(name)):
            reason = f"{blocked} can't be written to" if blocked else f"{self.path} was left as it is"
            todo.append(f"{reason}. Put this line at its top: {include}")
        elif not todo and (wrong := self._misled(name)):
            todo.append(f"{wrong}. Move this line to its top: {include}")
        if line := blocks.by_hand(text, name, host, read_only=blocked is not None):
            todo.append(
                f"{self.path}, line {line.line}, has another address of {name}; it is left alone, as {line.reason}. "
                f"Write there: HostName {host}"
            )
        if text and self.path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            todo.append(f"Others may write to {self.path}, so OpenSSH refuses it: chmod go-w {self.path}")
        return tuple(todo)

    def _brought_in(self, text: bytes, name: str, host: str) -> bytes:
        if text.startswith(blocks.BYTE_ORDER_MARK):
            return text
        return blocks.addressed(blocks.included(text, self.include), name, host)

    def _refusal(self, text: bytes, name: str, host: str) -> str:
        """What OpenSSH has against this text, or with a `host` would have once it is brought in; else "".

        Asked without our line first, so that the lines are numbered as they are now.
        """
        results = [blocks.addressed(text, name, host), self._brought_in(text, name, host)] if host else [text]
        for result in dict.fromkeys(results):
            with tempfile.NamedTemporaryFile() as file:
                file.write(result)
                file.flush()
                try:
                    self._resolved(Path(file.name), name)
                except SshConfigError as error:
                    return error.what.rstrip(".").replace(file.name, str(self.path))
        return ""

    def _misled(self, name: str) -> str:
        """Where ssh goes instead, although our line is in the config: something above it speaks first."""
        theirs, ours = (self._resolved(path, name) for path in (self.path, self._ours))
        for keyword in _DECISIVE:
            if theirs.get(keyword) != ours.get(keyword):
                value = " ".join(theirs.get(keyword, ("of nobody",)))
                return f"`ssh {name}` has the {keyword} {value} from {self.path}"
        return ""

    def _resolved(self, config: Path, name: str) -> dict[str, tuple[str, ...]]:
        return openssh.resolved(config, name, within_s=self._wait_s)

    def _unwritable(self) -> Path | None:
        """What keeps it from being replaced. A file that is read-only for its owner is meant to be, for root too."""
        target = Path(os.path.realpath(self.path))
        if target.exists() and not (target.stat().st_mode & stat.S_IWUSR and os.access(target, os.W_OK)):
            return self.path
        return unwritable_folder(target.parent)

    def _replace(self, before: bytes, after: bytes, name: str) -> None:
        """Atomically, with its mode and owner, and a backup. Raises `OSError`.

        Nothing is changed, but `_Refused` or `_Overtaken` raised, where OpenSSH doesn't take the new text for the host
        of that name (if there is one), or by then the old one is another.
        """
        target = Path(os.path.realpath(self.path))  # a symlink (dotfiles) stays one
        owner = target.stat() if target.exists() else None

        def keep_owner(temporary: Path) -> None:
            if owner:
                os.chown(temporary, owner.st_uid, owner.st_gid)

        def check(temporary: Path) -> None:
            keep_owner(temporary)
            if name:
                try:
                    self._resolved(temporary, name)
                except SshConfigError as error:
                    raise _Refused from error
            if owner:
                durable.write(self._backup, before, check=keep_owner)
            if read(self.path) != before:
                raise _Overtaken(errno.EBUSY, "somebody else is saving it", str(self.path))

        durable.write(target, after, mode=stat.S_IMODE(owner.st_mode) if owner else 0o600, check=check)


class _Refused(Exception):
    """OpenSSH doesn't take it."""


class _Overtaken(OSError):
    """Somebody else has saved it meanwhile."""


def read(path: Path) -> bytes:
    """A config's bytes; none where there is no file. Raises `SshConfigError`."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        mend = f"Mend its permissions: chmod u+rw {path}" if path.is_file() else f"A file has to be there: {path}"
        raise SshConfigError(f"{path} can't be read: {error.strerror}.", next_step=mend) from error


def unwritable_folder(folder: Path) -> Path | None:
    """The folder, or the one in which it would have to be made, where nothing can be written to it."""
    while not folder.exists():
        folder = folder.parent
    return None if os.access(folder, os.W_OK | os.X_OK) else folder
