"""The address book: one file of ours with a Host block for each machine, brought in by the person's own ssh config.

Our file is written whole, at every look at the machines. The person's is changed when a machine is brought up, by one
Include line and by the address in a block of theirs that bears the machine's name; every other byte of it stays.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from gpuops import durable, host_keys, openssh
from gpuops.errors import SshConfigError
from gpuops.machine import Inventory, Machine, State
from gpuops.openssh import Access
from gpuops.render import render
from gpuops.ssh_config.user_config import UserConfig, read, unwritable_folder

FILE_NAME = "gpuops.config"
_HEADER = "# Written by gpuops, and written anew at every start and stop: changes made here are lost.\n"
# What can stand in a config unquoted, and means itself there.
_ADDRESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:_-]*")
# What no file name in an ssh config can have: it would end it or be expanded, or isn't text.
_UNHEARD_OF = re.compile(r'["\r\n\ud800-\udfff]|\$\{')
_BLOCK = re.compile(
    r"^# gpuops machine (?P<name>\S+) (?P<place>\S+) (?P<id>\S+): .*\n(?:(?!# gpuops machine ).*\n?)*", re.M
)


class AddressBook:
    """`user_config` is the person's own ssh config; ours lies beside it. `keys` holds our key and known hosts.

    `identity_file` is the private key to come with, where it isn't ours. With `edits_user_config` False the person's
    config is neither read nor written. Commands write one after the other; they wait `wait_s` for each other at most,
    and as long for OpenSSH to read a config.
    """

    def __init__(
        self,
        *,
        user_config: Path,
        keys: Path,
        identity_file: Path | None = None,
        edits_user_config: bool = True,
        wait_s: float = 10.0,
    ) -> None:
        self._identity_file = identity_file or keys / "id_ed25519"
        self.path = user_config.parent / FILE_NAME
        self._user_config = UserConfig(user_config, ours=self.path, wait_s=wait_s)
        self._edits_user_config = edits_user_config
        self._keys = keys
        self._known_hosts = keys / "known_hosts"
        self._lock = keys / "ssh-config.lock"
        self._wait_s = wait_s
        self._access: dict[str, Access] = {}

    def check(self) -> None:
        """Raises `SshConfigError` if it couldn't be kept: asked before anything that costs money is done."""
        for value in (self.path, self._keys, self._identity_file):
            if _UNHEARD_OF.search(str(value)):
                raise SshConfigError(f"{str(value)!r} has a character that an ssh config can't hold.")
        read(self.path)
        if self._edits_user_config:
            read(self._user_config.path)
        if blocked := unwritable_folder(self.path.parent):
            raise SshConfigError(
                f"{blocked} can't be written to, so `ssh NAME` could not be made to work.",
                next_step=f"Make it writable: chmod u+rwx {blocked}",
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

    def bring_in(self, machine: Machine) -> None:
        """Have the person's ssh lead to this running machine, as far as that is ours to do: `left_to_do` says the rest.

        Where OpenSSH would refuse the result, nothing is changed.
        """
        if self._edits_user_config and machine.ssh:
            with self._locked():
                self._user_config.bring_in(machine.name, _checked(machine, machine.ssh.host))
                self._access.clear()

    def left_to_do(self, machine: Machine) -> tuple[str, ...]:
        """What the person has to do themselves before their own ssh leads to this running machine; mostly nothing."""
        if not self._edits_user_config or not machine.ssh:
            return ()
        return self._user_config.left_to_do(machine.name, machine.ssh.host)

    def access(self, machine: Machine) -> Access:
        """How OpenSSH gets to this machine: by the person's config where that leads there, else by ours alone.

        Where it can't be asked, that is no reason not to get there ourselves.
        """
        if machine.name not in self._access:
            if f" {machine.id}: " not in self._blocks().get(machine.name, "").partition("\n")[0]:
                self.update([machine])
            theirs = self._edits_user_config and self._user_config.leads_to(machine.name)
            config = self._user_config.path if theirs else self.path
            try:
                self._access[machine.name] = openssh.access(config, machine.name)
            except SshConfigError:
                self._access[machine.name] = Access(config=config)
        return self._access[machine.name]

    def remove_everything(self) -> None:
        """Take our line out of the person's config, and delete our own files."""
        with self._locked():
            try:
                self._user_config.leave_out()
                durable.remove(self.path)
                durable.remove(self._known_hosts)
            except OSError as error:
                line = os.fsdecode(self._user_config.include)
                raise SshConfigError(
                    f"The ssh config can't be cleaned: {error}.",
                    left_behind="What is left of it harms nothing.",
                    next_step=f"Delete this line of {self._user_config.path} yourself: {line}",
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
            if (known := host_keys.known_hosts_text(pins).encode()) != read(self._known_hosts):
                durable.write(self._known_hosts, known)
            if text != self._text():
                durable.write(self.path, text.encode(), mode=self._mode())
                self._access.clear()
        except OSError as error:
            raise SshConfigError(
                f"The ssh config can't be written: {error}.",
                next_step=f"`ssh -F {self.path} NAME` works as soon as that file can be written.",
            ) from error

    def _mode(self) -> int:
        """Where root is at a person's: an Include of a file that they can't read would end every ssh of theirs."""
        folder = self.path.parent
        return 0o600 if not folder.exists() or folder.stat().st_uid == os.geteuid() else 0o644

    def _block(self, machine: Machine) -> str:
        address = machine.ssh
        # A stopped machine has no address. .invalid never resolves (RFC 2606), so ssh's own error says what to do.
        host = address.host if address and machine.state is State.RUNNING else f"run-gpuops-up-{machine.name}.invalid"
        return render(
            "ssh-host.j2",
            machine=machine,
            host=_checked(machine, host),
            user=address.user if address else machine.tags.get("gpuops:user", "ubuntu"),
            port=address.port if address else 22,
            jump=address.jump if address else None,
            identity_file=_percent(self._identity_file),
            known_hosts=_percent(self._known_hosts),
        )

    def _blocks(self) -> dict[str, str]:
        return {match["name"]: match[0] for match in _BLOCK.finditer(self._text())}

    def _pins(self) -> dict[str, tuple[str, ...]]:
        pins: dict[str, tuple[str, ...]] = {}
        for line in read(self._known_hosts).decode(errors="replace").splitlines():
            alias, _, key = line.partition(" ")
            if host_keys.is_key(key):
                pins[alias] = (*pins.get(alias, ()), key)
        return pins

    def _text(self) -> str:
        return read(self.path).decode(errors="replace")


def _checked(machine: Machine, host: str) -> str:
    if not _ADDRESS.fullmatch(host):
        raise SshConfigError(f"{machine.provider} says that {machine.name} is at {host!r}, which is no address.")
    return host


def _host_keys(machine: Machine) -> tuple[str, ...]:
    """All that it may show: two, while its host key is being replaced."""
    return tuple(key for key in (machine.host_key, machine.next_host_key) if key)


def _percent(path: Path) -> str:
    """ssh_config expands %-tokens in file names."""
    return str(path.absolute()).replace("%", "%%")
