"""The address book: one file of ours with a Host block for each machine, and one Include line in the person's config.

Our file is written whole; the person's is changed by that one line, once, and every other byte of it stays.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from gpuops import durable, host_keys
from gpuops.errors import SshConfigError
from gpuops.machine import Inventory, Machine, State
from gpuops.render import render

FILE_NAME = "gpuops.config"
_HEADER = "# Written by gpuops, and written anew at every start and stop: changes made here are lost.\n"
_BLOCK = re.compile(
    r"^# gpuops machine (?P<name>\S+) (?P<place>\S+) (?P<id>\S+): .*\n(?:(?!# gpuops machine ).*\n?)*", re.M
)


class AddressBook:
    """`user_config` is the person's own ssh config; ours lies beside it. `keys` holds our key and known hosts.

    `identity_file` is the private key to come with, where it isn't ours. Commands write one after the other, and wait
    `wait_s` for each other at most.
    """

    def __init__(
        self, *, user_config: Path, keys: Path, identity_file: Path | None = None, wait_s: float = 10.0
    ) -> None:
        self._identity_file = identity_file or keys / "id_ed25519"
        self._user_config = user_config
        self.path = user_config.parent / FILE_NAME
        self._keys = keys
        self._known_hosts = keys / "known_hosts"
        self._lock = keys / "ssh-config.lock"
        self._wait_s = wait_s

    def check(self) -> None:
        """Raises `SshConfigError` if it couldn't be kept: asked before anything that costs money is done."""
        for value in (self.path, self._keys, self._identity_file):
            if set(str(value)) & set('"\n'):
                raise SshConfigError(f"{str(value)!r} has a character that an ssh config can't hold.")
        self._read(self.path)
        if self._include() in self._read(self._user_config).splitlines():
            return
        target = Path(os.path.realpath(self._user_config))
        blocked = target if target.exists() and not os.access(target, os.W_OK) else _unwritable_folder(target.parent)
        if blocked:
            raise SshConfigError(
                f"{blocked} can't be written to, so `ssh NAME` could not be made to work.",
                next_step=f"Make it writable, or put this line at its top yourself: {self._include().decode()}",
            )

    def update(self, machines: Iterable[Machine]) -> None:
        """Write these machines' blocks anew; those of a machine that is gone are taken out, all others stay.

        Raises `SshConfigError`, as all that writes here.
        """
        with self._locked():
            blocks = self._blocks()
            pins = self._pins()
            for machine in machines:
                blocks.pop(machine.name, None)
                if machine.state.exists and not machine.unusable:
                    blocks[machine.name] = self._block(machine)
                    if machine.host_key:
                        pins[machine.id] = _host_keys(machine)
                else:
                    pins.pop(machine.id, None)
            self._write(blocks, pins)

    def regenerate(self, inventory: Inventory, *, provider: str) -> None:
        """The same from everything that this provider has listed: blocks of places that did not answer stay too."""
        names = [machine.name for machine in inventory.machines]
        unanswered = {place.place for place in inventory.unanswered}
        with self._locked():
            blocks = {
                match["name"]: match[0]
                for match in _BLOCK.finditer(self._text())
                if match["place"] in unanswered or not match["place"].startswith(f"{provider}/")
            }
            pins = self._pins()
            for machine in inventory.machines:
                if machine.host_key:
                    pins[machine.id] = _host_keys(machine)
                # Of two of one name, neither is the one that the person means.
                if names.count(machine.name) == 1 and not machine.unusable:
                    blocks[machine.name] = self._block(machine)
            self._write(blocks, pins)

    def remove_everything(self) -> None:
        """Take our line out of the person's config, and delete our own files."""
        with self._locked():
            try:
                before = self._read(self._user_config)
                lines = before.splitlines(keepends=True)
                rest = b"".join(line for line in lines if line.rstrip(b"\r\n") != self._include())
                if rest != before:
                    self._replace_user_config(rest)
                durable.remove(self.path)
                durable.remove(self._known_hosts)
            except OSError as error:
                raise SshConfigError(
                    f"The ssh config can't be cleaned: {error}.",
                    left_behind="What is left of it harms nothing.",
                    next_step=f"Delete this line of {self._user_config} yourself: {self._include().decode()}",
                ) from error
            durable.remove(self._lock)
        with contextlib.suppress(OSError):  # our key is still in it
            self._keys.rmdir()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """What is read inside is still so when it's written. The lock ends with its process."""
        import filelock

        lock = filelock.FileLock(self._lock, timeout=self._wait_s, poll_interval=0.01, mode=0o600)
        try:
            self._keys.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock.acquire()
        except filelock.Timeout as error:
            raise SshConfigError(
                f"Another gpuops command has been writing the ssh config for {self._wait_s:g} s.",
                left_behind="The ssh config was not changed.",
                next_step="Wait until it has ended; `gpuops status` writes the ssh config anew.",
            ) from error
        except OSError as error:
            raise SshConfigError(
                f"The ssh config can't be locked: {error}.",
                left_behind="It was not changed.",
                next_step=f"Make {self._keys} a folder that can be written to.",
            ) from error
        try:
            yield
        finally:
            lock.release()

    def _write(self, blocks: dict[str, str], pins: dict[str, tuple[str, ...]]) -> None:
        text = _HEADER + "".join("\n" + blocks[name].rstrip("\n") + "\n" for name in sorted(blocks))
        try:
            if (known := host_keys.known_hosts_text(pins).encode()) != self._read(self._known_hosts):
                durable.write(self._known_hosts, known)
            if text != self._text():
                durable.write(self.path, text.encode())
            self._ensure_included()
        except OSError as error:
            raise SshConfigError(
                f"The ssh config can't be written: {error}.",
                next_step=f"`ssh -F {self.path} NAME` works as soon as that file can be written.",
            ) from error

    def _block(self, machine: Machine) -> str:
        address = machine.ssh
        # A stopped machine has no address. .invalid never resolves (RFC 2606), so ssh's own error says what to do.
        host = address.host if address and machine.state is State.RUNNING else f"run-gpuops-up-{machine.name}.invalid"
        return render(
            "ssh-host.j2",
            machine=machine,
            host=host,
            user=address.user if address else machine.tags.get("gpuops:user", "ubuntu"),
            port=address.port if address else 22,
            identity_file=_percent(self._identity_file),
            known_hosts=_percent(self._known_hosts),
        )

    def _ensure_included(self) -> None:
        """Put our Include line at the top: an Include further down would stand under the Host block above it."""
        before = self._read(self._user_config)
        if self._include() in before.splitlines():
            return
        newline = b"\r\n" if before.split(b"\n", 1)[0].endswith(b"\r") else b"\n"
        self._replace_user_config(self._include() + newline + before)

    def _replace_user_config(self, data: bytes) -> None:
        target = Path(os.path.realpath(self._user_config))  # a symlink (dotfiles) stays one
        owner = target.stat() if target.exists() else None
        mode = stat.S_IMODE(owner.st_mode) if owner else 0o600
        durable.write(target, data, mode=mode)
        if owner and (owner.st_uid, owner.st_gid) != (target.stat().st_uid, target.stat().st_gid):
            os.chown(target, owner.st_uid, owner.st_gid)

    def _include(self) -> bytes:
        # Absolute, as OpenSSH reads "~" from the account and not from $HOME.
        return f'Include "{self.path.absolute()}"'.encode()

    def _blocks(self) -> dict[str, str]:
        return {match["name"]: match[0] for match in _BLOCK.finditer(self._text())}

    def _pins(self) -> dict[str, tuple[str, ...]]:
        pins: dict[str, tuple[str, ...]] = {}
        for line in self._read(self._known_hosts).decode(errors="replace").splitlines():
            alias, _, key = line.partition(" ")
            if host_keys.is_key(key):
                pins[alias] = (*pins.get(alias, ()), key)
        return pins

    def _text(self) -> str:
        return self._read(self.path).decode(errors="replace")

    def _read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            mend = f"Mend its permissions: chmod u+rw {path}" if path.is_file() else f"A file has to be there: {path}"
            raise SshConfigError(f"{path} can't be read: {error.strerror}.", next_step=mend) from error


def _host_keys(machine: Machine) -> tuple[str, ...]:
    """All that it may show: two, while its host key is being replaced."""
    return tuple(key for key in (machine.host_key, machine.next_host_key) if key)


def _unwritable_folder(folder: Path) -> Path | None:
    while not folder.exists():
        folder = folder.parent
    return None if os.access(folder, os.W_OK | os.X_OK) else folder


def _percent(path: Path) -> str:
    """ssh_config expands %-tokens in file names."""
    return str(path.absolute()).replace("%", "%%")
