"""A machine over ssh, as paramiko and OpenSSH's programs see it; and the same with OpenSSH's sshd as its server."""

from __future__ import annotations

import io
import os
import secrets
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest

from tests.sandbox.machines import PATIENCE_S, Key, Machine, machine_in, namespaces_are_allowed, run, until

MIB = 1 << 20


@pytest.fixture(scope="module", params=["asyncssh", "openssh"])
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    if request.param == "openssh":
        if not shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin"):
            pytest.skip("OpenSSH's sshd is not installed")
        if not namespaces_are_allowed():
            pytest.skip("without namespaces sshd can't let in a user other than the one who runs it")
    with machine_in(tmp_path_factory.mktemp(request.param), server=request.param) as machine:
        yield machine.start().wait_for_ssh()
        # Tracebacks through our own code: asyncssh itself now and then logs one (a KeyError), for a pipe that
        # speaks after its channel has closed, which harms nothing.
        assert "/gpuops/sandbox/" not in machine.console
        assert "Warning" not in machine.console


@pytest.fixture(scope="module")
def client(machine: Machine) -> Iterator[paramiko.SSHClient]:
    with machine.connect() as client:
        yield client


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not shutil.which(program), reason=f"{program} is not installed")


# Who gets in


def test_the_host_key_is_the_injected_one(machine: Machine) -> None:
    with socket.create_connection((machine.host, machine.port)) as line, paramiko.Transport(line) as transport:
        transport.start_client(timeout=PATIENCE_S)
        key = transport.get_remote_server_key()
        assert [key.get_name(), key.get_base64()] == machine.host_key.public.split()[:2]


def test_another_key_is_refused(machine: Machine, tmp_path: Path) -> None:
    with pytest.raises(paramiko.AuthenticationException), machine.connect(key_filename=str(Key(tmp_path / "k").path)):
        pass


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_another_user_is_refused(machine: Machine, user: str) -> None:
    with pytest.raises(paramiko.AuthenticationException), machine.connect(username=user):
        pass


def test_root_is_refused_on_a_line_that_has_asked_for_the_user_first(machine: Machine) -> None:
    """Which made the server read the user's keys: they must not count for root."""
    with socket.create_connection((machine.host, machine.port)) as line, paramiko.Transport(line) as transport:
        transport.start_client(timeout=PATIENCE_S)
        with pytest.raises(paramiko.AuthenticationException):
            transport.auth_password("ubuntu", "ubuntu")
        with pytest.raises((paramiko.SSHException, EOFError)):
            transport.auth_publickey("root", paramiko.Ed25519Key.from_private_key_file(str(machine.client_key.path)))


def test_passwords_are_not_offered(machine: Machine) -> None:
    with (
        pytest.raises(paramiko.BadAuthenticationType) as refused,
        machine.connect(key_filename=None, password="ubuntu"),
    ):
        pass
    assert refused.value.allowed_types == ["publickey"]


# Commands


@pytest.mark.parametrize("code", [0, 1, 64, 255])
def test_exit_codes_arrive(client: paramiko.SSHClient, code: int) -> None:
    assert run(client, f"exit {code}").returncode == code


@needs("ssh")
def test_a_command_killed_by_a_signal_is_told_as_such(machine: Machine, client: paramiko.SSHClient) -> None:
    assert run(client, "kill -9 $$").returncode == -1  # paramiko's word for a signal
    assert subprocess.run([*machine.openssh("ssh"), f"ubuntu@{machine.host}", "kill -9 $$"]).returncode == 255


def test_stdin_stdout_and_stderr_are_bytes_and_apart(client: paramiko.SSHClient) -> None:
    sent = bytes(range(256)) * 64 + secrets.token_bytes(MIB)
    answer = run(client, "cat; echo error >&2", stdin=sent)
    assert (answer.stdout == sent, answer.stderr, answer.returncode) == (True, b"error\n", 0)


def test_a_stream_that_ends_early_does_not_cut_off_the_other(client: paramiko.SSHClient) -> None:
    assert run(client, "exec >&-; sleep 0.1; echo late >&2; exit 3").stderr == b"late\n"


def test_commands_run_at_home_in_parallel(machine: Machine, client: paramiko.SSHClient) -> None:
    channels = [client.exec_command("pwd; read go; echo $go") for _ in range(8)]
    for number, (stdin, _, _) in enumerate(channels):
        stdin.write(f"{number}\n")
    answers = [stdout.read().decode().split() for _, stdout, _ in channels]
    assert answers == [[str(machine.home), str(number)] for number in range(8)]


def test_a_background_process_survives_its_session(machine: Machine) -> None:
    machine.run("nohup sh -c 'until [ -e go ]; do sleep 0.02; done; echo went > went' > log 2>&1 < /dev/null &")
    (machine.home / "go").touch()
    until(lambda: (machine.home / "went").exists(), "the background process went on")
    (machine.home / "go").unlink()


def test_a_command_without_a_terminal_sees_its_vanished_client_as_the_end_of_its_input(machine: Machine) -> None:
    with machine.connect() as client:
        client.exec_command("cat > /dev/null; echo end > ~/end-of-input")
    until((machine.home / "end-of-input").exists, "the command met the end of its input")


# Terminals


def test_a_terminal_has_the_clients_size_and_follows_it(client: paramiko.SSHClient) -> None:
    channel = client.get_transport().open_session()  # type: ignore[union-attr]
    channel.get_pty(term="xterm-256color", width=101, height=41)
    channel.exec_command("tty; stty size; echo $TERM; read go; stty size")
    output = channel.makefile("rb")
    assert output.readline().startswith(b"/dev/")
    assert [output.readline() for _ in range(2)] == [b"41 101\r\n", b"xterm-256color\r\n"]
    channel.resize_pty(width=77, height=33)
    until(lambda: b"33 77" in run(client, f"stty size < {_terminal(client)}").stdout, "the terminal is resized")
    channel.sendall(b"go\n")
    assert output.read().split() == [b"go", b"33", b"77"]
    assert channel.recv_exit_status() == 0


def _terminal(client: paramiko.SSHClient) -> str:
    """The terminal of the one `stty` script that runs."""
    found = run(client, "ps -e -o tty=,args= | grep '[s]tty size; echo'").stdout.decode().split()
    return f"/dev/{found[0]}"


def test_a_shell_in_a_terminal_is_interactive_and_ends_with_its_last_code(client: paramiko.SSHClient) -> None:
    channel = client.invoke_shell()
    channel.sendall(b"echo $- is $((6 * 7)); exit 5\n")
    output = channel.makefile("rb").read()
    assert b" is 42" in output
    assert channel.recv_exit_status() == 5


def test_a_command_in_a_terminal_is_hung_up_when_its_client_vanishes(machine: Machine) -> None:
    with machine.connect() as client:
        _, output, _ = client.exec_command(
            "trap 'echo > ~/hung-up; exit' HUP; echo up; while :; do sleep 0.02; done", get_pty=True
        )
        assert output.readline() == "up\r\n"
        client.get_transport().sock.close()  # type: ignore[union-attr]
    until((machine.home / "hung-up").exists, "the command is hung up")


# Files


def test_sftp_sees_the_same_files_as_commands_starting_at_home(machine: Machine, client: paramiko.SSHClient) -> None:
    data = secrets.token_bytes(MIB)
    with client.open_sftp() as sftp:
        assert sftp.normalize(".") == str(machine.home)
        sftp.mkdir("folder")
        sftp.putfo(io.BytesIO(data), "folder/there")
        sftp.posix_rename("folder/there", "folder/file")
        sftp.symlink("file", "folder/link")
        sftp.chmod("folder/file", 0o640)
        assert sftp.readlink("folder/link") == "file"
        with sftp.open(f"{machine.home}/folder/link", "rb") as file:
            file.prefetch()
            assert file.read() == data
        with pytest.raises(FileNotFoundError):
            sftp.stat("folder/none")
    assert run(client, "stat -c '%a %s' folder/file").stdout.decode().split() == ["640", str(MIB)]


@pytest.mark.parametrize("protocol", ["-s", "-O"])
@needs("scp")
def test_scp_copies_there_and_back(machine: Machine, tmp_path: Path, protocol: str) -> None:
    (tmp_path / "there").write_bytes(secrets.token_bytes(MIB))
    scp, remote = [*machine.openssh("scp"), protocol], f"ubuntu@{machine.host}:scp{protocol}"
    subprocess.run([*scp, tmp_path / "there", remote], check=True)
    subprocess.run([*scp, remote, tmp_path / "back"], check=True)
    assert (tmp_path / "back").read_bytes() == (tmp_path / "there").read_bytes()


@needs("rsync")
@needs("ssh")
def test_rsync_copies_a_tree_there_and_back(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "there/deep").mkdir(parents=True)
    for number in range(100):
        (tmp_path / f"there/deep/{number}").write_text(str(number))
    (tmp_path / "there/link").symlink_to("deep/7")
    if os.geteuid() == 0:
        # A real machine's user isn't root, so rsync there doesn't try to give files to the sender's users.
        os.chown(tmp_path / "there/deep/1", 4711, 4711)
    rsync = ["rsync", "-a", "--stats", "-e", subprocess.list2cmdline(machine.openssh("ssh"))]
    remote = f"ubuntu@{machine.host}:tree/"
    subprocess.run([*rsync, f"{tmp_path}/there/", remote], check=True)
    again = subprocess.run([*rsync, f"{tmp_path}/there/", remote], check=True, capture_output=True, text=True)
    assert "Number of regular files transferred: 0" in again.stdout
    subprocess.run([*rsync, remote, f"{tmp_path}/back/"], check=True)
    assert (tmp_path / "back/link").read_text() == "7"
    assert len(list((tmp_path / "back/deep").iterdir())) == 100


# Forwarding


def test_a_port_of_the_machine_is_reached_through_the_line(client: paramiko.SSHClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_echo_once, args=(server,), daemon=True).start()
        transport = client.get_transport()
        assert transport
        with transport.open_channel("direct-tcpip", server.getsockname(), ("127.0.0.1", 0)) as channel:
            channel.sendall(b"ping")
            channel.shutdown_write()
            assert channel.makefile("rb").read() == b"ping"


def _echo_once(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        while data := connection.recv(4096):
            connection.sendall(data)


def test_a_port_that_nobody_listens_on_is_refused(client: paramiko.SSHClient) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        transport = client.get_transport()
        assert transport
        with pytest.raises(paramiko.ChannelException):
            transport.open_channel("direct-tcpip", unused.getsockname(), ("127.0.0.1", 0))


def test_small_answers_are_not_held_back(client: paramiko.SSHClient) -> None:
    """Nagle's algorithm with delayed acknowledgements would make each exchange take 40 ms."""
    client.get_transport().sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # type: ignore[union-attr]
    stdin, stdout, _ = client.exec_command("cat", bufsize=0)
    times_s = []
    for _ in range(20):
        begin = time.perf_counter()
        stdin.write("ping\n")
        stdin.flush()
        assert stdout.readline() == "ping\n"
        times_s.append(time.perf_counter() - begin)
    stdin.channel.close()
    assert sorted(times_s)[10] < 0.03
