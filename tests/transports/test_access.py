"""The way to a machine as the person's ssh config has it: keys in an agent, passphrases, other machines in between."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import os
import pickle
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gpuops import host_keys, openssh, sync, transports
from gpuops.errors import ConnectionFailed, HostKeyChanged, KeyRefused, MachineUnreachable
from gpuops.openssh import Access
from gpuops.ssh_config import AddressBook
from gpuops.sync import Route
from gpuops.transports import Transport
from tests.transports import servers
from tests.transports.servers import Server, Wire, until

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("ssh", "ssh-agent", "ssh-add", "ssh-keygen"))), reason="OpenSSH's client is not here"
)

PASSPHRASE = "correct horse battery staple"

# A connection made with no more than bash. Its first `cat` goes on when its second has nothing to read any more.
_RELAY = """
echo "$@" >"$0.called"
echo $$ >"$0.pid"
exec 3<>"/dev/tcp/$1/$2"
cat <&3 &
exec cat >&3
"""

# Opens a line, says so, and once it is interrupted, says what a command on the line has said.
_ANOTHER_PROGRAM = """
import pickle, signal, sys
from gpuops import transports
machine, identity_file, access = pickle.loads(sys.stdin.buffer.read())
with transports.open(machine, identity_file=identity_file, access=access) as line:
    try:
        print("open", flush=True)
        signal.pause()
    except KeyboardInterrupt:
        print(line.run(["echo", "still here"]).stdout, flush=True)
"""


@pytest.fixture(scope="session")
def bastion(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A machine on the way to the server."""
    kind = "asyncssh" if servers.why_not("openssh") else "openssh"
    with servers.serving(kind, tmp_path_factory.mktemp("bastion")) as bastion:
        yield bastion


@pytest.fixture(scope="session")
def outer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A machine on the way to the bastion."""
    with servers.serving("asyncssh", tmp_path_factory.mktemp("outer")) as outer:
        yield outer


@pytest.fixture(autouse=True)
def _nothing_is_left(server: Server, bastion: Server, outer: Server, tmp_path: Path) -> Iterator[None]:
    """Neither a program that was started on the way, nor a descriptor."""
    before = _descriptors()
    yield
    until(lambda: not at_work(tmp_path), "every program has ended")
    until(lambda: _descriptors() <= before, "every descriptor is closed")


# Keys


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Path]:
    """The socket of a real agent, which holds no keys yet; whoever it asks for a permission refuses it."""
    path = tmp_path / "agent"
    refusing = {**os.environ, "SSH_ASKPASS": shutil.which("false") or "", "DISPLAY": ":0"}
    with subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL, env=refusing) as process:
        try:
            until(path.exists, "the agent listens")
            yield path
        finally:
            process.terminate()


@pytest.mark.parametrize("named_by", ["SSH_AUTH_SOCK", "IdentityAgent"])
@pytest.mark.parametrize("key_type", ["ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa"])
def test_a_key_with_a_passphrase_that_an_agent_holds_logs_in(
    server: Server, agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key_type: str, named_by: str
) -> None:
    key = with_passphrase(server.client_keys[key_type], tmp_path)
    add(agent, key)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(agent if named_by == "SSH_AUTH_SOCK" else tmp_path / "another"))
    lines = [f'IdentityAgent "{agent}"'] if named_by == "IdentityAgent" else []
    access = written(tmp_path, entry("fastai", server, *lines, key=key))
    with open_line(server, access, key=key) as line:
        assert line.run(["echo", "in"]).stdout == "in\n"


@pytest.mark.parametrize(
    ("key_format", "agent_has"),
    [(key_format, "no agent") for key_format in ("RFC4716", "PKCS8", "PEM")]
    + [("RFC4716", "nothing"), ("RFC4716", "another key")],
)
def test_a_key_with_a_passphrase_that_no_agent_holds_is_told_with_what_to_type(
    server: Server, agent: Path, tmp_path: Path, key_format: str, agent_has: str
) -> None:
    key = with_passphrase(server.client_keys["ssh-rsa"], tmp_path, "-m", key_format)
    if agent_has == "another key":
        add(agent, server.client_keys["ssh-ed25519"])
    with pytest.raises(ConnectionFailed) as caught:
        open_line(server, Access(agent="" if agent_has == "no agent" else str(agent)), key=key)
    assert type(caught.value) is ConnectionFailed  # not one that is worth another try
    assert caught.value.what == f"The private key {key} has a passphrase, and no ssh agent here holds it."
    assert f"ssh-add '{key}'" in caught.value.next_step


@pytest.mark.parametrize(
    ("kept", "named"), [("private", "private"), ("public", "private"), ("public", "public"), ("both", "public")]
)
def test_of_a_key_that_an_agent_holds_either_half_is_enough_here(
    server: Server, agent: Path, tmp_path: Path, kept: str, named: str
) -> None:
    """As with OpenSSH, where a key that lies in the agent alone is named by its public half."""
    private = with_passphrase(server.client_key, tmp_path)
    public = private.with_name(f"{private.name}.pub")
    add(agent, private)
    if kept != "both":
        {"private": public, "public": private}[kept].unlink()
    file = {"private": private, "public": public}[named]
    access = written(tmp_path, entry("fastai", server, f"IdentityAgent {agent}", key=file))
    for identity_file in (file, host_keys.client_key(tmp_path / "stranger")):
        with open_line(server, access, key=identity_file) as line:
            assert line.alive()


def test_the_next_of_several_keys_is_tried_when_one_is_refused(server: Server, tmp_path: Path) -> None:
    first, second = (host_keys.client_key(tmp_path / name) for name in ("first", "second"))
    third = f'IdentityFile "{server.client_keys["ssh-rsa"]}"'
    access = written(tmp_path, entry("fastai", server, third, key=second))
    with open_line(server, access, key=first) as line:
        assert line.run(["echo", "in"]).stdout == "in\n"


def test_the_next_of_several_keys_is_tried_when_one_cannot_be_used(server: Server, tmp_path: Path) -> None:
    locked, damaged = with_passphrase(server.client_key, tmp_path), tmp_path / "damaged"
    damaged.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n")
    access = written(tmp_path, entry("fastai", server, f'IdentityFile "{server.client_key}"', key=damaged))
    with open_line(server, access, key=locked) as line:
        assert line.alive()


def test_a_refusal_names_every_key_that_was_refused_and_why_others_were_not_tried(
    server: Server, agent: Path, tmp_path: Path
) -> None:
    first, second = (host_keys.client_key(tmp_path / name) for name in ("first", "second"))
    add(agent, second)
    locked = with_passphrase(server.client_key, tmp_path)
    access = written(
        tmp_path, entry("fastai", server, f"IdentityAgent {agent}", f'IdentityFile "{locked}"', key=second)
    )
    with pytest.raises(KeyRefused) as caught:
        open_line(server, access, key=first)
    for stranger in (first, second):
        assert host_keys.fingerprint(host_keys.public_key_line(stranger)) in caught.value.what
    assert f"The private key {locked} has a passphrase" in caught.value.what


@pytest.mark.parametrize("agent_is", ["not there", "a file", "dead", "silent", "cut off", "nonsense"])
def test_an_agent_that_does_not_answer_is_as_none(server: Server, tmp_path: Path, agent_is: str) -> None:
    path = tmp_path / "agent"
    if agent_is == "a file":
        path.write_text("")
    elif agent_is == "dead":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    locked = with_passphrase(server.client_key, tmp_path)
    says = {"silent": b"", "cut off": b"\0\0", "nonsense": b"\0\0\0\1\x63"}.get(agent_is)
    with contextlib.nullcontext() if says is None else false_agent(path, says, hangs_up=agent_is == "cut off"):
        with open_line(server, Access(agent=str(path)), timeout_s=1) as line:
            assert line.alive()
        with pytest.raises(ConnectionFailed, match="has a passphrase"):
            open_line(server, Access(agent=str(path)), key=locked, timeout_s=1)


def test_an_agent_that_may_not_use_its_key_is_what_is_told(server: Server, agent: Path) -> None:
    """The machine is not to blame, and to try it again for minutes would be of no use."""
    add(agent, server.client_key, "-c")  # it asks before each use
    with pytest.raises(ConnectionFailed, match="ssh agent did not sign") as caught:
        open_line(server, Access(agent=str(agent)))
    assert type(caught.value) is ConnectionFailed
    assert str(server.client_key) in caught.value.what


def test_an_agent_that_goes_away_before_it_signs_is_what_is_told(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "agent"
    with (
        false_agent(path, _listing(server.client_key), hangs_up=True),
        pytest.raises(ConnectionFailed, match="ssh agent did not sign") as caught,
    ):
        open_line(server, Access(agent=str(path)))
    assert type(caught.value) is ConnectionFailed


def test_an_agent_that_is_slow_to_sign_is_suspected_and_may_be_asked_again(server: Server, tmp_path: Path) -> None:
    """It may wait for a touch, or for somebody's permission."""
    path = tmp_path / "agent"
    with (
        false_agent(path, _listing(server.client_key)),
        pytest.raises(MachineUnreachable, match=r"took over 1 s.*agent"),
    ):
        open_line(server, Access(agent=str(path)), timeout_s=1)


# Ways


@pytest.mark.parametrize("jumps", ["bastion", "outer,bastion"])
def test_a_line_goes_through_the_machines_that_the_persons_config_names(
    server: Server, bastion: Server, outer: Server, tmp_path: Path, jumps: str
) -> None:
    before = [_logins(hop) for hop in (bastion, outer)]
    access = behind(server, jumps, tmp_path, bastion=bastion, outer=outer)
    with open_line(server, access) as line:
        assert line.run(["cat"], stdin=bytes(2_000_000)).stdout == "\0" * 2_000_000
    assert _logins(bastion) > before[0]
    assert (_logins(outer) > before[1]) == ("outer" in jumps)


def test_a_jump_may_be_an_address_with_a_user_and_a_port(server: Server, bastion: Server, tmp_path: Path) -> None:
    there = bastion.address
    access = written(
        tmp_path,
        entry("fastai", server, f"ProxyJump {there.user}@{there.host}:{there.port}"),
        f'Host {there.host}\n  IdentityFile "{bastion.client_key}"\n',
        known=[bastion],
    )
    with open_line(server, access) as line:
        assert line.alive()


def test_a_way_of_three_jumps_by_a_config_in_an_odd_folder(
    server: Server, bastion: Server, outer: Server, tmp_path: Path
) -> None:
    """Each ssh is called by the next one's shell, after its %-tokens have been replaced."""
    config = behind(server, "outer,bastion,outer", tmp_path, bastion=bastion, outer=outer).config
    assert config
    odd = tmp_path / "it's 50%h $HOME"
    odd.mkdir()
    with open_line(server, openssh.access(config.rename(odd / "config"), "fastai")) as line:
        assert line.run(["echo", "in"]).stdout == "in\n"


@pytest.mark.parametrize("key_type", ["ssh-ed25519", "ecdsa-sha2-nistp384"])
def test_the_known_host_key_is_insisted_on_behind_a_jump_too(
    server: Server, bastion: Server, tmp_path: Path, key_type: str
) -> None:
    known = host_keys.generate().public_line if key_type == "ssh-ed25519" else _p384()
    logins = _logins(server)
    with pytest.raises(HostKeyChanged, match="Nothing was sent to it") as caught:
        open_line(server, behind(server, "bastion", tmp_path, bastion=bastion), host_key=known)
    assert host_keys.fingerprint(known) in caught.value.what
    assert any(host_keys.fingerprint(shown) in caught.value.what for shown in server.public_keys.values())
    assert _logins(server) == logins


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_a_line_goes_through_a_command_of_the_persons_in_their_own_shell(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: str
) -> None:
    monkeypatch.setenv("SHELL", shutil.which(shell) or "")
    only_for_bash = "2> >(cat >/dev/null)" if shell == "bash" else ""
    access = written(
        tmp_path, entry("fastai", server, f"ProxyCommand bash {relay(tmp_path)} %h %p %r %n %% {only_for_bash}")
    )
    with open_line(server, access) as line:
        assert line.run(["echo", "through"]).stdout == "through\n"
    there = server.address
    called = relay(tmp_path).with_name("relay.called").read_text()
    assert called == f"{there.host} {there.port} {there.user} fastai %\n"


@pytest.mark.parametrize("names", ["bastion", "outer,bastion"])
@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("its host key is unknown", "Host key verification failed"),
        ("nobody listens there", "Connection refused"),
        ("our key is refused", "Permission denied"),
    ],
)
def test_a_jump_that_fails_is_told_in_openssh_s_words(
    server: Server, bastion: Server, outer: Server, tmp_path: Path, wrong: str, says: str, names: str
) -> None:
    hops = {name: {"bastion": bastion, "outer": outer}[name] for name in names.split(",")}
    first = next(iter(hops))
    known = [hop for name, hop in hops.items() if (name, wrong) != (first, "its host key is unknown")]
    if wrong == "nobody listens there":
        hops[first] = _elsewhere(hops[first], _closed_port(hops[first]))
    if wrong == "our key is refused":
        hops[first] = dataclasses.replace(hops[first], client_key=host_keys.client_key(tmp_path / "stranger"))
    access = behind(server, names, tmp_path, known=known, **hops)
    with pytest.raises(MachineUnreachable) as caught:
        open_line(server, access)
    assert says in caught.value.what
    assert f"fastai ({server.address.host}:{server.address.port})" in caught.value.what
    assert "$0.90 per hour" in caught.value.left_behind


def test_a_machine_that_does_not_answer_its_jump_is_told_in_openssh_s_words(
    server: Server, bastion: Server, tmp_path: Path
) -> None:
    gone = _elsewhere(server, _closed_port(server))
    with pytest.raises(MachineUnreachable, match="open failed"):
        open_line(gone, behind(gone, "bastion", tmp_path, bastion=bastion))


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("no-such-program %h", "no-such-program"),
        ("sh -c 'echo Mind the gap >&2; exit 3'", "Mind the gap"),
        ("sh -c 'exit 3'", "exited with 3"),
        ("true", "does not speak ssh"),
        ("echo This is no ssh", "does not speak ssh"),
    ],
)
def test_a_command_that_leads_nowhere_is_told_by_its_last_words(
    server: Server, tmp_path: Path, command: str, says: str
) -> None:
    with pytest.raises(MachineUnreachable, match=says):
        open_line(server, written(tmp_path, entry("fastai", server, f"ProxyCommand {command}")))


@pytest.mark.parametrize(
    "way",
    ["ProxyJump silent", "ProxyJump silent,bastion", "ProxyJump bastion", "ProxyCommand sh -c 'echo Hi >&2; sleep 60'"],
)
def test_a_way_that_never_gets_there_is_given_up_in_time(
    server: Server, bastion: Server, tmp_path: Path, way: str
) -> None:
    """Of two jumps, the ssh to the first waits for its greeting whatever becomes of the ssh to the second."""
    with socket.create_server((bastion.address.host, 0)) as listener:
        silent = _elsewhere(bastion, listener.getsockname()[1])
        blocks = [entry("silent", silent, key=silent.client_key), entry("bastion", bastion, key=bastion.client_key)]
        access = written(tmp_path, entry("fastai", silent, way), *blocks, known=[bastion])
        started = time.monotonic()
        with pytest.raises(MachineUnreachable, match=r"did not answer within 0\.5 s"):
            open_line(server, access, timeout_s=0.5)
        assert time.monotonic() - started < 3
        until(lambda: not at_work(tmp_path), "every program has ended, although the other side goes on")


def test_what_a_way_says_by_the_way_is_not_taken_for_its_end(server: Server, tmp_path: Path) -> None:
    """As a bastion's banner; not even where the first attempt, for the known type of host key, comes to nothing."""
    greeting = f"ProxyCommand sh -c 'echo Authorized users only >&2; exec bash {relay(tmp_path)} %h %p'"
    access = written(tmp_path, entry("fastai", server, greeting))
    with open_line(server, access) as line:
        assert line.alive()
    known = _p384()
    with pytest.raises(HostKeyChanged) as caught:
        open_line(server, access, host_key=known)
    assert host_keys.fingerprint(known) in caught.value.what


@pytest.mark.parametrize("jumps", ["bastion", "outer,bastion"])
def test_nobody_is_asked_anything_on_the_way(
    server: Server, bastion: Server, outer: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jumps: str
) -> None:
    """Not in a window either, which OpenSSH opens where it has no terminal."""
    askpass = tmp_path / "askpass"
    askpass.write_text('#!/bin/sh\ntouch "$0.called"\necho yes\n')
    askpass.chmod(0o700)
    monkeypatch.setenv("SSH_ASKPASS", str(askpass))
    monkeypatch.setenv("DISPLAY", ":0")
    access = behind(server, jumps, tmp_path, bastion=bastion, outer=outer, known=[])
    with pytest.raises(MachineUnreachable, match="Host key verification failed"):
        open_line(server, access)
    assert not askpass.with_name("askpass.called").exists()


# The end of a way


def test_closing_the_line_ends_the_programs_that_carry_it(
    server: Server, bastion: Server, outer: Server, tmp_path: Path
) -> None:
    with open_line(server, behind(server, "outer,bastion", tmp_path, bastion=bastion, outer=outer)):
        assert len(at_work(tmp_path)) == 2
    until(lambda: not at_work(tmp_path), "both have ended")


@pytest.mark.parametrize(
    "command",
    ["bash {relay} %h %p", "bash {relay} %h %p | cat", "sh -c 'trap \"\" TERM; bash {relay} %h %p; sleep 60'"],
    ids=["a child of its own", "two in a pipe", "deaf to SIGTERM"],
)
def test_closing_the_line_ends_whatever_the_persons_command_has_started(
    server: Server, tmp_path: Path, command: str
) -> None:
    access = written(tmp_path, entry("fastai", server, f"ProxyCommand {command.format(relay=relay(tmp_path))}"))
    with open_line(server, access):
        group = os.getpgid(int(relay(tmp_path).with_name("relay.pid").read_text()))
        assert group != os.getpgrp()
    until(lambda: _is_empty(group), "all of it has ended")


def test_a_connection_to_the_jump_that_is_there_is_shared_and_none_is_left_behind(
    server: Server, bastion: Server, tmp_path: Path
) -> None:
    access = behind(server, "bastion", tmp_path, bastion=bastion)
    assert access.config
    with access.config.open("a") as file:
        file.write(f"Host *\n  ControlMaster auto\n  ControlPersist 60\n  ControlPath {tmp_path}/%n\n")
    with open_line(server, access):
        pass
    until(lambda: not at_work(tmp_path), "nothing of it is left")
    by_hand = ["ssh", "-F", str(access.config), "bastion"]
    quiet = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "check": True}
    subprocess.run([*by_hand, "true"], **quiet)  # type: ignore[call-overload]
    try:
        logins = _logins(bastion)
        with open_line(server, access) as line:
            assert line.alive()
        assert _logins(bastion) == logins
        subprocess.run([*by_hand, "-O", "check"], **quiet)  # type: ignore[call-overload]
    finally:
        subprocess.run([*by_hand, "-O", "exit"], **quiet)  # type: ignore[call-overload]


def test_a_way_that_breaks_ends_the_line_and_its_program(server: Server, bastion: Server, tmp_path: Path) -> None:
    wire = Wire(bastion.address)
    fragile = dataclasses.replace(bastion, address=wire.address)
    line = open_line(server, behind(server, "bastion", tmp_path, bastion=fragile))
    with pytest.raises(MachineUnreachable):
        line.run(["sh", "-c", "echo go; sleep 30"], on_line=lambda _: wire.cut())
    assert not line.alive()
    until(lambda: not at_work(tmp_path), "its program has ended, although nobody has closed the line")


def test_a_line_whose_program_is_killed_is_not_alive(server: Server, bastion: Server, tmp_path: Path) -> None:
    with open_line(server, behind(server, "bastion", tmp_path, bastion=bastion)) as line:
        [program] = at_work(tmp_path)
        os.kill(program, signal.SIGKILL)
        until(lambda: not line.alive(), "the line is dead")
        with pytest.raises(MachineUnreachable):
            line.run(["true"])


def test_ctrl_c_leaves_the_way_open(server: Server, bastion: Server, tmp_path: Path) -> None:
    """It is meant for us, and the line may be needed to clean up."""
    with another_program(server, behind(server, "bastion", tmp_path, bastion=bastion)) as program:
        os.killpg(program.pid, signal.SIGINT)  # as a terminal does it
        assert program.stdout and program.stdout.read() == b"still here\n\n"
    assert program.returncode == 0


@pytest.mark.parametrize("jumps", ["bastion", "outer,bastion"])
def test_a_way_ends_with_the_program_that_went_it_however_that_ended(
    server: Server, bastion: Server, outer: Server, tmp_path: Path, jumps: str
) -> None:
    access = behind(server, jumps, tmp_path, bastion=bastion, outer=outer)
    with another_program(server, access) as program:
        assert at_work(tmp_path)
        program.kill()
    until(lambda: not at_work(tmp_path), "what it had started has ended")


# The address book


def test_a_machine_behind_another_is_reached_that_way_by_gpuops_by_rsync_and_by_hand(
    server: Server, bastion: Server, tmp_path: Path
) -> None:
    config = behind(server, "bastion", tmp_path, bastion=bastion).config
    assert config
    config.write_text(config.read_text().replace("Host fastai\n", "Host something-else\n"))
    machine = server.machine(ssh=dataclasses.replace(server.address, jump="bastion"))
    book = AddressBook(user_config=config, keys=tmp_path / "keys", identity_file=server.client_key)
    book.update([machine])
    book.bring_in(machine)
    assert book.left_to_do(machine) == ()
    access = book.access(machine)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "file").write_text("sent")
    logins = [_logins(bastion)]
    with transports.open(machine, identity_file=server.client_key, access=access) as line:
        logins.append(_logins(bastion))
        route = Route.find(line, host=machine.name, access=access)
        assert (route.rsync_access is not None) == bool(shutil.which("rsync"))
        route.push(sync.data(tmp_path / "here"), f"pushed/{tmp_path.name}")
        route.pull(f"pushed/{tmp_path.name}", tmp_path / "back")
    assert (tmp_path / "back" / "file").read_text() == "sent"
    if shutil.which("rsync"):
        logins.append(_logins(bastion))
    by_hand = ["ssh", "-F", str(config), machine.name, "echo", "in"]
    done = subprocess.run(by_hand, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("in\n", "")
    logins.append(_logins(bastion))
    assert logins == sorted(set(logins))


# What the tests stand on


def open_line(
    server: Server, access: Access, *, key: Path | None = None, timeout_s: float = 10.0, **changes: object
) -> Transport:
    """A line to the machine `fastai`, which is this server, with that key or the one that it lets in."""
    return transports.open(
        server.machine(**changes),
        identity_file=key or server.client_key,
        access=access,
        connect_timeout_s=timeout_s,
    )


def entry(alias: str, server: Server, *lines: str, key: Path | None = None) -> str:
    """A block of an ssh config. Nothing in it leads to the account's own keys."""
    there = server.address
    where = [f"HostName {there.host}", f"Port {there.port}", f"User {there.user}"]
    return "\n  ".join([f"Host {alias}", *where, f'IdentityFile "{key or "none"}"', *lines]) + "\n"


def written(folder: Path, *blocks: str, known: Sequence[Server] = ()) -> Access:
    """What is made of an ssh config with these blocks; the host keys of `known` are in its known_hosts."""
    known_hosts, config = folder / "known_hosts", folder / "config"
    lines = [f"[{one.address.host}]:{one.address.port} {one.public_keys['ssh-ed25519']}\n" for one in known]
    known_hosts.write_text("".join(lines))
    theirs = f'Host *\n  UserKnownHostsFile "{known_hosts}"\n  GlobalKnownHostsFile /dev/null\n  IdentitiesOnly yes\n'
    config.write_text("\n".join([*blocks, theirs]))
    return openssh.access(config, "fastai")


def behind(
    server: Server, jumps: str, folder: Path, *, known: Sequence[Server] | None = None, **hops: Server
) -> Access:
    """The way to the server by these jumps, whose aliases are the names of the hops; all are known, or `known` are."""
    blocks = [entry(alias, hop, key=hop.client_key) for alias, hop in hops.items()]
    known = list(hops.values()) if known is None else known
    return written(folder, entry("fastai", server, f"ProxyJump {jumps}"), *blocks, known=known)


def relay(folder: Path) -> Path:
    """A script that connects its standard input and output to a HOST and a PORT, and notes how it was called."""
    path = folder / "relay"
    path.write_text(_RELAY)
    return path


def add(agent: Path, key: Path, *options: str) -> None:
    askpass = agent.with_name("answer")
    askpass.write_text(f"#!/bin/sh\necho '{PASSPHRASE}'\n")
    askpass.chmod(0o700)
    environment = {"SSH_AUTH_SOCK": str(agent), "SSH_ASKPASS": str(askpass), "SSH_ASKPASS_REQUIRE": "force"}
    subprocess.run(["ssh-add", "-q", *options, key], env={**os.environ, **environment}, check=True)


def with_passphrase(key: Path, folder: Path, *options: str) -> Path:
    """A copy of the key, as a careful owner keeps it."""
    copy = folder / f"my {key.name}"
    shutil.copy(key, copy)
    shutil.copy(f"{key}.pub", f"{copy}.pub")
    argv = ["ssh-keygen", "-q", "-p", "-P", "", "-N", PASSPHRASE, *options, "-f", str(copy)]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    return copy


@contextlib.contextmanager
def false_agent(path: Path, says: bytes, *, hangs_up: bool = False) -> Iterator[None]:
    """Something at an agent's socket that says this to everyone, and then nothing more."""
    with contextlib.ExitStack() as callers, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    caller = callers.enter_context(listener.accept()[0])
                    caller.recv(4096)  # one that hangs up before it is asked is no agent at all
                    caller.sendall(says)
                    if hangs_up:
                        caller.close()

        serving = threading.Thread(target=serve)
        serving.start()
        yield
        listener.shutdown(socket.SHUT_RDWR)
        serving.join()


@contextlib.contextmanager
def another_program(server: Server, access: Access) -> Iterator[subprocess.Popen[bytes]]:
    """A program, in a process group of its own, that has just opened a line."""
    argv = [sys.executable, "-c", _ANOTHER_PROGRAM]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, start_new_session=True) as program:
        assert program.stdin and program.stdout
        try:
            program.stdin.write(pickle.dumps((server.machine(), server.client_key, access)))
            program.stdin.close()
            assert program.stdout.readline() == b"open\n"
            yield program
        except BaseException:
            program.kill()
            raise


def at_work(folder: Path) -> list[int]:
    """The processes that have been started with something in this folder, but for agents."""
    listed = subprocess.run(["ps", "-A", "-ww", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if f"{folder}/" in line and "ssh-agent" not in line]


def _is_empty(process_group: int) -> bool:
    listed = subprocess.run(["ps", "-A", "-o", "pgid=,stat="], capture_output=True, text=True, check=True).stdout
    states = [line.split()[1] for line in listed.splitlines() if int(line.split()[0]) == process_group]
    return all(state.startswith("Z") for state in states)


def _descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def _logins(server: Server) -> int:
    return server.log.read_text().count("publickey")


def _elsewhere(server: Server, port: int) -> Server:
    """The same at another port, where it is not."""
    return dataclasses.replace(server, address=dataclasses.replace(server.address, port=port))


def _closed_port(server: Server) -> int:
    with socket.create_server((server.address.host, 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _p384() -> str:
    """The public line of a host key of a type that no server here has."""
    public_key = ec.generate_private_key(ec.SECP384R1()).public_key()
    return public_key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def _listing(key: Path) -> bytes:
    """An agent's answer that it holds this key alone (draft-miller-ssh-agent, section 4.4)."""
    blob = base64.b64decode(host_keys.public_key_line(key).split()[1])
    body = b"\x0c" + struct.pack(">II", 1, len(blob)) + blob + struct.pack(">I", 0)
    return struct.pack(">I", len(body)) + body
