"""From a machine's address to a line on which its host key is proven and ours accepted, or why that did not work."""

from __future__ import annotations

import base64
import binascii
import contextlib
import logging
import socket
import threading
import time
from pathlib import Path

import paramiko
from paramiko.agent import AgentKey
from paramiko.auth_handler import AuthHandler
from paramiko.pkey import UnknownKeyType
from paramiko.ssh_exception import IncompatiblePeer

from gpuops.errors import ConnectionFailed, HostKeyChanged, KeyRefused, MachineUnreachable
from gpuops.machine import Address, Machine
from gpuops.openssh import Access
from gpuops.transports.client_keys import AgentFailed, ClientKeys
from gpuops.transports.proxy import Proxy

_KEEPALIVE_S = 20
_LINE_LOST_S = 60
# Bytes under way before the other side must wait for us: 8 MiB fill a 600 Mbit/s path of 100 ms.
WINDOW_BYTES = 8 * 2**20

# Paramiko logs the tracebacks of errors that it also raises; we say those in our own words.
logging.getLogger("paramiko").addHandler(logging.NullHandler())


def shake_hands(
    machine: Machine, *, identity_file: Path, access: Access, connect_timeout_s: float
) -> paramiko.Transport:
    """An authenticated line to the machine, which has shown the host key that we know it by, or is to have next.

    Raises `MachineUnreachable` (worth another try while it boots), `HostKeyChanged`, `KeyRefused`, `ConnectionFailed`.
    """
    if machine.ssh is None:
        raise MachineUnreachable(
            f"{machine.name} has no address: it is {machine.state.value}.", next_step="Start it: gpuops up"
        )
    if machine.ssh.jump is not None and not access.proxy:
        raise ConnectionFailed(
            f"{machine.name} is behind {machine.ssh.jump}, and this computer has no ssh program to go through it.",
            next_step="Install OpenSSH's client (Debian and Ubuntu: apt install openssh-client).",
        )
    known_keys = _known_host_keys(machine)
    with ClientKeys(identity_file, access, timeout_s=connect_timeout_s) as client_keys:
        line = _secure_line(machine, machine.ssh, access, known_keys, connect_timeout_s)
        try:
            _compare_host_keys(machine, known_keys, line.get_remote_server_key())
            _log_in(line, machine, machine.ssh, client_keys, identity_file, connect_timeout_s)
        except BaseException:
            line.close()
            raise
    line.set_keepalive(_KEEPALIVE_S)
    return line


def shown_host_key(address: Address, *, connect_timeout_s: float) -> str:
    """The public line of the host key that is shown there; nobody logs in. Raises `MachineUnreachable`."""
    try:
        try:
            line = _negotiate(address, Access(), ("ssh-ed25519",), connect_timeout_s)
        except IncompatiblePeer:
            line = _negotiate(address, Access(), None, connect_timeout_s)
    except (EOFError, OSError, paramiko.SSHException) as error:
        raise MachineUnreachable(
            f"{address.host}:{address.port} shows no host key: {str(error) or 'it hung up'}.",
            next_step="See whether it runs, and lets this computer's address in, in the provider's console.",
        ) from error
    with contextlib.closing(line):
        key = line.get_remote_server_key()
        return f"{key.get_name()} {key.get_base64()}"


def unreachable(machine: Machine, what: str) -> MachineUnreachable:
    costs = machine.state.bills and machine.price_usd_per_hour
    return MachineUnreachable(
        what,
        left_behind=f"{machine.name} is not stopped by this: ${machine.price_usd_per_hour:.2f} per hour."
        if costs
        else "",
        next_step="See whether it runs: gpuops status. Start it, and let this computer's address in: gpuops up",
    )


def _known_host_keys(machine: Machine) -> list[paramiko.PKey]:
    """The one that it's known by, and while that is being replaced, the next."""
    if machine.host_key is None:
        raise ConnectionFailed(
            f"No host key is known for {machine.name}, and none is accepted unseen.",
            next_step="On its own console, see which one it has: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub",
        )
    return [_host_key(machine, line) for line in (machine.host_key, machine.next_host_key) if line]


def _host_key(machine: Machine, public_line: str) -> paramiko.PKey:
    try:
        key_type, blob = public_line.split()[:2]
        return paramiko.PKey.from_type_string(key_type, base64.b64decode(blob, validate=True))
    except (ValueError, binascii.Error, paramiko.SSHException, UnknownKeyType) as error:
        raise ConnectionFailed(
            f"What is noted as {machine.name}'s host key is not a public key: {public_line[:60]!r}.",
            next_step="Compare it with the machine's own: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub (there)",
        ) from error


def _secure_line(
    machine: Machine, address: Address, access: Access, known_keys: list[paramiko.PKey], timeout_s: float
) -> paramiko.Transport:
    """An encrypted line, nobody logged in yet. A server with several host keys shows one of the known types."""
    where = f"{machine.name} ({address.host}:{address.port})"
    key_types: tuple[str, ...] = ()
    for name in dict.fromkeys(key.get_name() for key in known_keys):
        key_types += ("rsa-sha2-512", "rsa-sha2-256") if name == "ssh-rsa" else (name,)
    try:
        try:
            return _negotiate(address, access, key_types, timeout_s)
        except IncompatiblePeer:
            # It has no key of that type (any more); the person has to see which one it has.
            return _negotiate(address, access, None, timeout_s)
    except IncompatiblePeer as error:
        raise ConnectionFailed(
            f"{where} and this computer have no way of encrypting in common: {error}.",
            next_step=f"See what it offers: ssh -vv -p {address.port} {address.host}",
        ) from error
    except TimeoutError as error:
        raise unreachable(machine, f"{where} did not answer within {timeout_s:g} s.") from error
    except OSError as error:
        raise unreachable(machine, f"{where} can't be reached: {error.strerror or error}.") from error
    except (EOFError, paramiko.SSHException) as error:
        reason = str(error) or "it hung up"
        raise unreachable(machine, f"{where} answers, but does not speak ssh (yet): {reason}.") from error


def _negotiate(
    address: Address, access: Access, key_types: tuple[str, ...] | None, timeout_s: float
) -> paramiko.Transport:
    connection = _connected(address, access, timeout_s)
    try:
        line = paramiko.Transport(connection, default_window_size=WINDOW_BYTES)
    except BaseException:
        connection.close()
        raise
    line.banner_timeout = line.handshake_timeout = timeout_s
    algorithms = line.get_security_options()
    # AES-GCM needs no second pass for the checksum: twice as fast here as paramiko's own first choice, AES-CTR.
    algorithms.ciphers = [
        *(name for name in algorithms.ciphers if "gcm" in name),
        *(name for name in algorithms.ciphers if "ctr" in name),
    ]
    if key_types is not None:
        algorithms.key_types = key_types
    deadline = time.monotonic() + timeout_s
    try:
        line.start_client(timeout=timeout_s)
        line.get_remote_server_key()  # raises where the time ran out in the middle
    except IncompatiblePeer:
        line.close()
        raise
    except (EOFError, OSError, paramiko.SSHException) as error:
        line.close()
        connection.close()
        if isinstance(connection, Proxy) and connection.complaint:
            raise ConnectionError(f"the way there failed: {connection.complaint.rstrip('.')}") from error
        if time.monotonic() >= deadline:
            raise TimeoutError from error
        raise
    except BaseException:
        line.close()
        raise
    return line


def _connected(address: Address, access: Access, timeout_s: float) -> socket.socket:
    if access.proxy:
        return Proxy(access.proxy)
    connection = socket.create_connection((address.host, address.port), timeout=timeout_s)
    try:
        _tune(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _tune(connection: socket.socket) -> None:
    # Without it every small request waits 40 ms for the other side's delayed acknowledgement.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A machine that is switched off says nothing. Linux then gives the line up when keepalives stay unacknowledged.
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _LINE_LOST_S * 1000)


def _compare_host_keys(machine: Machine, known_keys: list[paramiko.PKey], shown: paramiko.PKey) -> None:
    if any(shown.asbytes() == known.asbytes() for known in known_keys):
        return
    known = " or ".join(f"{known.fingerprint} ({known.get_name()})" for known in known_keys)
    raise HostKeyChanged(
        f"{machine.name} shows another host key than the one it is known by. Nothing was sent to it.\n"
        f"known: {known}\n"
        f"shown: {shown.fingerprint} ({shown.get_name()})",
        next_step="Unless you reinstalled it, someone may stand between you and it. Compare on its own console: "
        f"ssh-keygen -lf /etc/ssh/ssh_host_{_short_type(shown)}_key.pub",
    )


def _short_type(key: paramiko.PKey) -> str:
    return key.get_name().removeprefix("ssh-").removesuffix("-v01@openssh.com").split("-")[0]


def _log_in(
    line: paramiko.Transport,
    machine: Machine,
    address: Address,
    keys: ClientKeys,
    identity_file: Path,
    timeout_s: float,
) -> None:
    login = _Login(line)
    refused = []
    for file, key in keys:
        answered = threading.Event()
        try:
            login.auth_publickey(address.user, key, answered)
        except (EOFError, OSError, paramiko.SSHException) as error:
            raise unreachable(machine, f"{machine.name} hung up before the login.") from error
        in_time = answered.wait(timeout_s)
        if not in_time or (login.unsigned and login.unsigned.was_slow):
            agent = f", in which the ssh agent was to sign with {file}" if isinstance(key, AgentKey) else ""
            raise unreachable(machine, f"The login to {machine.name} took over {timeout_s:g} s{agent}.")
        if line.is_authenticated():
            return
        # While a machine boots, it hangs up after a good key too ("System is booting up"): no verdict on the key.
        if not line.is_active():
            raise unreachable(machine, f"{machine.name} hung up during the login.") from line.get_exception()
        if login.unsigned:
            keys.not_signed(file, login.unsigned)
        else:
            refused.append(f"{key.fingerprint} ({file})")
    if not refused:
        raise keys.unusable[0]
    raise KeyRefused(
        " ".join(
            [
                f"{machine.name} does not accept {' or '.join(refused)} for the user {address.user!r}.",
                *(error.what for error in keys.unusable),
            ]
        ),
        next_step="From a computer that gets in, add this one's key: "
        f"ssh-copy-id -f -i {identity_file}.pub -p {address.port} {address.user}@{address.host}",
    )


class _Login(AuthHandler):
    """Tries one key after the other. An agent that doesn't sign with one has `unsigned` say why.

    paramiko's own asks for the login service anew with every key, at which asyncssh's server hangs up, and drops the
    line where an agent doesn't sign.
    """

    def __init__(self, line: paramiko.Transport) -> None:
        super().__init__(line)
        line.auth_handler = self
        self.unsigned: AgentFailed | None = None
        self._is_served = False

    def _request_auth(self) -> None:
        self.unsigned = None
        if self._is_served:
            served = paramiko.Message()
            served.add_string("ssh-userauth")
            self._parse_service_accept(paramiko.Message(served.asbytes()))
        else:
            super()._request_auth()  # type: ignore[misc]  # the stubs leave out what is private

    def _parse_service_accept(self, message: paramiko.Message) -> None:
        self._is_served = True
        try:
            super()._parse_service_accept(message)  # type: ignore[misc]
        except AgentFailed as error:
            self.unsigned = error
            assert self.auth_event
            self.auth_event.set()
