from __future__ import annotations

import dataclasses
import socket
import threading
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gpuops import host_keys, openssh, transports
from gpuops.errors import ConnectionFailed, HostKeyChanged, KeyRefused, MachineUnreachable
from gpuops.machine import Machine
from gpuops.transports.ssh import SshTransport
from tests.transports.servers import Server, Wire, until


def connect(machine: Machine, identity_file: Path, timeout_s: float = 10.0) -> SshTransport:
    return SshTransport.connect(machine, identity_file=identity_file, connect_timeout_s=timeout_s)


def test_open_gives_a_line_that_is_alive_until_it_is_closed(server: Server) -> None:
    with transports.open(server.machine(), identity_file=server.client_key) as line:
        assert line.alive()
        assert line.run(["echo", "here"]).stdout == "here\n"
    assert not line.alive()


@pytest.mark.parametrize("key_type", ["ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa"])
def test_of_several_host_keys_the_server_shows_the_known_one(server: Server, key_type: str) -> None:
    with connect(server.machine(host_key=server.public_keys[key_type]), server.client_key) as line:
        assert line.alive()


def test_a_comment_after_the_known_host_key_does_not_matter(server: Server) -> None:
    with connect(server.machine(host_key=server.public_keys["ssh-ed25519"] + " root@box"), server.client_key) as line:
        assert line.alive()


def test_a_changed_host_key_is_refused_with_both_fingerprints_and_nobody_logs_in(server: Server) -> None:
    known = host_keys.generate().public_line
    logins = server.log.read_text().count("publickey")
    with pytest.raises(HostKeyChanged) as caught:
        connect(server.machine(host_key=known), server.client_key)
    assert host_keys.fingerprint(known) in caught.value.what
    assert host_keys.fingerprint(server.public_keys["ssh-ed25519"]) in caught.value.what
    assert "ssh-keygen -lf" in caught.value.next_step
    assert server.log.read_text().count("publickey") == logins


def test_a_server_without_a_key_of_the_known_type_is_refused_with_both_fingerprints(server: Server) -> None:
    public_key = ec.generate_private_key(ec.SECP384R1()).public_key()
    known = public_key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    with pytest.raises(HostKeyChanged) as caught:
        connect(server.machine(host_key=known), server.client_key)
    assert host_keys.fingerprint(known) in caught.value.what
    assert any(host_keys.fingerprint(shown) in caught.value.what for shown in server.public_keys.values())


def test_while_the_host_key_is_replaced_both_are_accepted_and_no_third(server: Server) -> None:
    shown, other = server.public_keys["ssh-ed25519"], host_keys.generate().public_line
    for known, following in ((shown, other), (other, shown)):
        with connect(server.machine(host_key=known, next_host_key=following), server.client_key) as line:
            assert line.alive()
    third = host_keys.generate().public_line
    with pytest.raises(HostKeyChanged) as caught:
        connect(server.machine(host_key=other, next_host_key=third), server.client_key)
    assert f"{host_keys.fingerprint(other)} (ssh-ed25519) or {host_keys.fingerprint(third)}" in caught.value.what


def test_the_host_key_that_is_shown_can_be_asked_for_without_logging_in(server: Server) -> None:
    logins = server.log.read_text().count("publickey")
    assert transports.shown_host_key(server.address) == server.public_keys["ssh-ed25519"]
    assert server.log.read_text().count("publickey") == logins
    with pytest.raises(MachineUnreachable, match="shows no host key"):
        transports.shown_host_key(dataclasses.replace(server.address, port=1))


def test_a_machine_without_a_known_host_key_is_not_even_called(server: Server) -> None:
    with pytest.raises(ConnectionFailed, match="No host key is known for fastai") as caught:
        connect(server.machine(host_key=None, ssh=dataclasses.replace(server.address, port=1)), server.client_key)
    assert type(caught.value) is ConnectionFailed


@pytest.mark.parametrize("noted", ["ssh-ed25519", "ssh-ed25519 AAAA", "ssh-ed25519 !!", "ssh-dss AAAA", "nonsense"])
def test_a_damaged_note_of_the_host_key_is_an_error(server: Server, noted: str) -> None:
    with pytest.raises(ConnectionFailed, match="is not a public key"):
        connect(server.machine(host_key=noted), server.client_key)


def test_a_client_key_that_the_machine_does_not_know_is_refused(server: Server, tmp_path: Path) -> None:
    stranger = host_keys.client_key(tmp_path)
    with pytest.raises(KeyRefused) as caught:
        connect(server.machine(), stranger)
    assert host_keys.fingerprint(host_keys.public_key_line(stranger)) in caught.value.what
    assert f"ssh-copy-id -f -i {stranger}.pub" in caught.value.next_step


def test_a_client_key_that_cannot_be_read_is_an_error(server: Server, tmp_path: Path) -> None:
    (tmp_path / "damaged").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n")
    for path in (tmp_path / "missing", tmp_path / "damaged"):
        with pytest.raises(ConnectionFailed, match="can't be used"):
            connect(server.machine(), path)


def test_a_port_on_which_nobody_listens_is_unreachable(server: Server) -> None:
    with socket.create_server((server.address.host, 0)) as probe:
        closed_port = probe.getsockname()[1]
    with pytest.raises(MachineUnreachable, match="refused") as caught:
        connect(server.machine(ssh=dataclasses.replace(server.address, port=closed_port)), server.client_key)
    assert "gpuops status" in caught.value.next_step
    assert "$0.90 per hour" in caught.value.left_behind


def test_a_server_that_never_speaks_is_given_up(server: Server) -> None:
    with socket.create_server((server.address.host, 0)) as silent:
        machine = server.machine(ssh=dataclasses.replace(server.address, port=silent.getsockname()[1]))
        started = time.monotonic()
        with pytest.raises(MachineUnreachable):
            connect(machine, server.client_key, 0.3)
        assert time.monotonic() - started < 2


def test_a_server_that_hangs_up_is_unreachable(server: Server) -> None:
    with socket.create_server((server.address.host, 0)) as rude:
        machine = server.machine(ssh=dataclasses.replace(server.address, port=rude.getsockname()[1]))
        rude.settimeout(5)
        threading.Thread(target=lambda: rude.accept()[0].close(), daemon=True).start()
        with pytest.raises(MachineUnreachable):
            connect(machine, server.client_key)


def test_a_machine_without_an_address_is_unreachable(server: Server) -> None:
    with pytest.raises(MachineUnreachable, match="no address"):
        connect(server.machine(ssh=None), server.client_key)


def test_without_an_ssh_program_a_machine_behind_another_is_refused_instead_of_called_directly(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    config = tmp_path / "config"
    config.write_text("Host fastai\n  ProxyJump bastion\n")
    machine = server.machine(ssh=dataclasses.replace(server.address, jump="bastion"))
    logins = server.log.read_text().count("publickey")
    with pytest.raises(ConnectionFailed, match=r"behind bastion.* no ssh program") as caught:
        transports.open(machine, identity_file=server.client_key, access=openssh.access(config, "fastai"))
    assert type(caught.value) is ConnectionFailed
    assert "Install OpenSSH" in caught.value.next_step
    assert server.log.read_text().count("publickey") == logins


def test_a_broken_line_is_not_alive(fragile_line: SshTransport, wire: Wire) -> None:
    wire.cut()
    until(lambda: not fragile_line.alive(), "the line is dead")
    with pytest.raises(MachineUnreachable):
        fragile_line.run(["true"])
