"""A machine that is elsewhere after every start goes on being itself, by its name, for all that a person does with ssh.

What runs here is what a person runs: OpenSSH's own programs, by a config that they have had for years.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuops import host_keys, transports
from gpuops.errors import HostKeyChanged
from gpuops.machine import Machine
from gpuops.workflow.session import address_book
from tests.computers import Cloud, Computer, until
from tests.transports.servers import serving

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("ssh", "scp", "sftp"))), reason="OpenSSH's client is not here"
)

STARTS = 20
STALE = "ec2-52-10-31-7.us-west-2.compute.amazonaws.com"


@pytest.fixture
def forwarded_port() -> int:
    """A port here that the person's config leads to the machine's notebook."""
    return _free_port()


@pytest.fixture
def notebook_port() -> Iterator[int]:
    """A port on the machine where a word is said to everyone. Its loopback network is this computer's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            try:
                while True:
                    with listener.accept()[0] as caller:
                        caller.sendall(b"notebook")
            except OSError:
                pass

        serving = threading.Thread(target=serve)
        serving.start()
        port: int = listener.getsockname()[1]
        yield port
        listener.shutdown(socket.SHUT_RDWR)
        serving.join()


@pytest.fixture
def old_config(computer: Computer, forwarded_port: int, notebook_port: int) -> bytes:
    """The person's config, with a block as in a course of 2017; its address has been somebody else's for long."""
    text = (
        "# my machines\n"
        "Host uni\n\tHostName = login.example.edu\n\tUser me   \n\n"
        f"Host {computer.name}\n"
        f"    HostName    {STALE}\n"
        "    User ubuntu\n"
        f"    IdentityFile {computer.folder}/aws-key-fast-ai.pem\n"
        f"    LocalForward {forwarded_port} localhost:{notebook_port}\n"
        "\n"
        "Host *\n    ServerAliveInterval 50\n    # there is no newline after this"
    ).encode()
    computer.ssh_config.parent.mkdir(parents=True)
    computer.ssh_config.write_bytes(text)
    return text


@pytest.mark.timeout(300)
def test_after_every_start_the_machine_is_elsewhere_and_ssh_gets_there_without_a_word(
    the_cloud: Cloud, computer: Computer, old_config: bytes
) -> None:
    machine = computer.up(types="g4dn.xlarge")
    hosts = [_host(machine)]
    for _ in range(STARTS):
        the_cloud.client().stop_instances(InstanceIds=[machine.id])
        until(lambda: the_cloud.states(machine.name) == ["stopped"], "the machine is stopped")
        hosts.append(_host(computer.up()))
        assert computer.ssh_config.read_bytes() == _brought_in(computer, old_config, hosts[-1])
        assert typed(computer, "ssh", computer.name, "true") == ""
    assert len(set(hosts)) == 1 + STARTS


def test_after_a_start_every_program_that_goes_by_the_config_gets_there(
    computer: Computer, old_config: bytes, forwarded_port: int, notebook_port: int, tmp_path: Path
) -> None:
    computer.up(types="g4dn.xlarge")
    computer.down()
    host = _host(computer.up())
    name, notebook = computer.name, "lesson 1.ipynb"
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / notebook).write_text("{}")

    # The person's own block is at work too.
    with shell_by(computer, name) as shell:
        assert said_to(shell, "echo $USER") == "ubuntu"
        assert _word_at(forwarded_port) == b"notebook"

    # The remote extension of an editor: a shell without a terminal, and a SOCKS proxy.
    socks_port = _free_port()
    with shell_by(computer, "-T", "-D", str(socks_port), name) as shell:
        assert said_to(shell, "uname") == os.uname().sysname
        assert _word_at(notebook_port, by_socks=socks_port) == b"notebook"

    typed(computer, "scp", "-r", str(tmp_path / "here"), f"{name}:by-scp")
    typed(computer, "scp", f"{name}:by-scp/{notebook}", str(tmp_path / "by-scp"))
    batch = tmp_path / "batch"
    batch.write_text(f'put "{tmp_path}/by-scp" by-sftp\nget by-sftp "{tmp_path}/by-sftp"\n')
    typed(computer, "sftp", "-b", str(batch), name)
    if shutil.which("rsync"):
        by_ssh = ("-e", f"ssh -F {computer.ssh_config}")
        typed(computer, "rsync", "-a", *by_ssh, str(tmp_path / "by-sftp"), f"{name}:by-rsync")
        typed(computer, "rsync", "-a", *by_ssh, f"{name}:by-rsync", str(tmp_path / "by-rsync"))
        assert (tmp_path / "by-rsync").read_text() == "{}"
    assert (tmp_path / "by-sftp").read_text() == "{}"

    assert computer.ssh_config.read_bytes() == _brought_in(computer, old_config, host)


def test_another_machine_at_the_very_address_is_refused_by_ssh_and_by_gpuops_and_told_nothing(
    the_cloud: Cloud, computer: Computer, old_config: bytes, tmp_path: Path
) -> None:
    machine = computer.up(types="g4dn.xlarge")
    assert machine.ssh and machine.host_key
    the_cloud.client().stop_instances(InstanceIds=[machine.id])
    until(lambda: the_cloud.states(machine.name) == ["stopped"], "the machine is stopped")
    # It would let this computer in: nothing but its host key is wrong.
    with serving("asyncssh", tmp_path / "other", address=machine.ssh, admits=[computer.client_key]) as other:
        ran = run(computer, "ssh", machine.name, "true")
        assert (ran.returncode, ran.stdout) == (255, "")
        assert "REMOTE HOST IDENTIFICATION HAS CHANGED!" in ran.stderr
        assert "Host key verification failed." in ran.stderr
        with pytest.raises(HostKeyChanged, match="Nothing was sent to it") as caught:
            transports.open(
                machine,
                identity_file=computer.home / "keys" / "id_ed25519",
                access=address_book(computer.settings()).access(machine),
            )
        assert host_keys.fingerprint(machine.host_key) in caught.value.what
        assert host_keys.fingerprint(other.public_keys["ssh-ed25519"]) in caught.value.what
        assert "publickey" not in other.log.read_text()
        careless = ("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null")
        assert run(computer, "ssh", *careless, machine.name, "true").returncode == 0
        assert "publickey" in other.log.read_text()


def run(computer: Computer, program: str, *words: str) -> subprocess.CompletedProcess[str]:
    """The program by the person's config, where nobody could answer a question: it has no terminal."""
    argv = [program, *words] if program == "rsync" else [program, "-F", str(computer.ssh_config), *words]
    return subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, start_new_session=True
    )


def typed(computer: Computer, program: str, *words: str) -> str:
    """What it said on its standard output, when it went well and there was nothing else to say."""
    ran = run(computer, program, *words)
    assert (ran.returncode, ran.stderr) == (0, ""), ran
    return ran.stdout


@contextlib.contextmanager
def shell_by(computer: Computer, *words: str) -> Iterator[subprocess.Popen[str]]:
    """`ssh WORDS sh`, which reads what it is to do; it has to end well, without a word to standard error."""
    pipe = subprocess.PIPE
    argv = ["ssh", "-F", str(computer.ssh_config), *words, "sh"]
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as shell:
        try:
            yield shell
        except BaseException:
            shell.kill()
            raise
        assert shell.communicate(timeout=30) == ("", "")
    assert shell.returncode == 0


def said_to(shell: subprocess.Popen[str], line: str) -> str:
    """What the shell answers to this line, in one line."""
    assert shell.stdin and shell.stdout
    shell.stdin.write(f"{line}\n")
    shell.stdin.flush()
    return shell.stdout.readline().rstrip("\n")


def _word_at(port: int, *, by_socks: int | None = None) -> bytes:
    """What is said to whoever calls at this port; with `by_socks`, at the machine's, by the proxy at that port here."""
    with socket.create_connection(("127.0.0.1", by_socks or port), timeout=10) as connection:
        heard = connection.makefile("rb")
        if by_socks:  # RFC 1928: no login, then CONNECT to an address of IPv4
            connection.sendall(b"\5\1\0" + b"\5\1\0\1" + socket.inet_aton("127.0.0.1") + port.to_bytes(2, "big"))
            assert heard.read(2 + 10)[:4] == b"\5\0\5\0"
        with heard:
            return heard.read()


def _brought_in(computer: Computer, config: bytes, host: str) -> bytes:
    """The person's config as it is to be: our line, and theirs with this address."""
    return f'Include "{computer.address_book}"\n'.encode() + config.replace(STALE.encode(), host.encode())


def _host(machine: Machine) -> str:
    assert machine.ssh
    return machine.ssh.host


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
