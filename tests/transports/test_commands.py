from __future__ import annotations

import io
import random
import threading
import time
from pathlib import Path

import pytest

from gpuops.errors import MachineUnreachable, RemoteCommandFailed
from gpuops.transports.ssh import SshTransport
from tests.transports.servers import Server, Wire, gone, until


@pytest.mark.parametrize(
    "word",
    [
        "two words",
        "it's",
        '"',
        "two\nlines",
        "Grüße 🙂",
        "$HOME",
        "`id`",
        "$(id)",
        "~",
        "*",
        "a;b",
        "\\",
        "",
        "-n",
        "!",
    ],
)
def test_every_argument_arrives_as_it_is(line: SshTransport, word: str) -> None:
    assert line.run(["printf", "%s", word]).stdout == word


def test_a_command_starts_in_the_home_folder(line: SshTransport, server: Server) -> None:
    assert line.run(["pwd"]).stdout.strip() == str(server.home)


@pytest.mark.parametrize("exit_code", [0, 1, 3, 42, 255])
def test_the_exit_code_is_the_commands_own(line: SshTransport, exit_code: int) -> None:
    assert line.run(["sh", "-c", f"exit {exit_code}"], check=False).exit_code == exit_code


def test_death_by_a_signal_is_128_and_its_number(line: SshTransport) -> None:
    assert line.run(["sh", "-c", "kill -TERM $$"], check=False).exit_code == 128 + 15


def test_a_command_that_does_not_exist_is_127(line: SshTransport) -> None:
    assert line.run(["no-such-command"], check=False).exit_code == 127


def test_a_failed_command_says_its_last_ten_lines_and_carries_its_result(line: SshTransport) -> None:
    with pytest.raises(RemoteCommandFailed) as caught:
        line.run(["sh", "-c", "seq 1 30 >&2; echo out; exit 7"])
    said = caught.value.what.splitlines()
    assert "seq 1 30" in said[0] and "fastai exited with 7" in said[0]
    assert said[1:] == [str(number) for number in range(21, 31)]
    assert caught.value.result.exit_code == 7
    assert caught.value.result.stdout == "out\n"


def test_a_long_command_is_shown_short(line: SshTransport) -> None:
    with pytest.raises(RemoteCommandFailed) as caught:
        line.run(["false", "x" * 10_000])
    assert len(caught.value.what) < 300


def test_megabytes_on_both_outputs_arrive_whole(line: SshTransport) -> None:
    script = "head -c 5000000 /dev/zero | tr '\\0' e >&2 & head -c 5000000 /dev/zero | tr '\\0' o; wait"
    result = line.run(["sh", "-c", script], timeout_s=30)
    assert result.stdout == "o" * 5_000_000
    assert result.stderr == "e" * 5_000_000


def test_one_output_after_the_other_does_not_block(line: SshTransport) -> None:
    script = "head -c 20000000 /dev/zero >&2; head -c 100 /dev/zero"
    result = line.run(["sh", "-c", script], timeout_s=30)
    assert (len(result.stdout), len(result.stderr)) == (100, 20_000_000)


def test_stdin_is_sent_and_ended(line: SshTransport) -> None:
    data = random.Random(1).randbytes(3_000_000)
    assert line.run(["sh", "-c", "wc -c"], stdin=data).stdout.strip() == "3000000"
    assert line.run(["cat"], stdin=b"").stdout == ""
    assert line.run(["cat"]).stdout == ""


def test_a_command_may_end_without_reading_its_stdin(line: SshTransport) -> None:
    assert line.run(["true"], stdin=bytes(20_000_000), timeout_s=20).exit_code == 0


def test_bytes_that_are_no_utf_8_are_replaced(line: SshTransport) -> None:
    assert line.run(["printf", "a\\377b"]).stdout == "a�b"


def test_on_line_gets_each_line_in_order_and_the_unfinished_one_last(line: SshTransport) -> None:
    lines: list[str] = []
    line.run(["sh", "-c", "seq 1 20000; printf 'Grüße'"], on_line=lines.append)
    assert lines == [*(str(number) for number in range(1, 20001)), "Grüße"]


def test_on_line_gets_a_line_while_the_command_still_runs(line: SshTransport, tmp_path: Path) -> None:
    go_on = tmp_path / "go-on"
    script = 'echo first; while [ ! -e "$1" ]; do sleep 0.01; done; echo second'
    lines: list[str] = []

    def on_line(text: str) -> None:
        lines.append(text)
        go_on.touch()

    line.run(["sh", "-c", script, "sh", str(go_on)], on_line=on_line, timeout_s=10)
    assert lines == ["first", "second"]


def test_a_command_that_takes_too_long_is_killed_there(line: SshTransport, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    started = time.monotonic()
    with pytest.raises(RemoteCommandFailed, match=r"was killed: it took over 0\.3 s"):
        line.run(["sh", "-c", 'echo $$ >"$1"; while :; do sleep 0.05; done', "sh", str(pid_file)], timeout_s=0.3)
    assert time.monotonic() - started < 3
    pid = int(pid_file.read_text())
    until(lambda: gone(pid), "the command is gone")
    assert line.run(["echo", "still here"]).stdout == "still here\n"


def test_an_error_in_on_line_kills_the_command_and_is_raised(line: SshTransport, tmp_path: Path) -> None:
    def on_line(text: str) -> None:
        raise ZeroDivisionError(text)

    with pytest.raises(ZeroDivisionError) as caught:
        line.run(["sh", "-c", "echo $$; while :; do sleep 0.05; done"], on_line=on_line)
    until(lambda: gone(int(str(caught.value))), "the command is gone")


def test_a_line_that_breaks_while_a_command_runs_says_so(fragile_line: SshTransport, wire: Wire) -> None:
    with pytest.raises(MachineUnreachable, match="may run on"):
        fragile_line.run(["sh", "-c", "echo go; sleep 30"], on_line=lambda _: wire.cut())


def test_commands_run_side_by_side_on_one_line(line: SshTransport) -> None:
    outputs: dict[int, str] = {}

    def run(number: int) -> None:
        outputs[number] = line.run(["sh", "-c", f"seq 1 2000; echo {number}"]).stdout.split()[-1]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outputs == {number: str(number) for number in range(8)}


def test_pipe_carries_bytes_both_ways_at_once(line: SshTransport) -> None:
    data = random.Random(2).randbytes(20_000_000)
    sink = io.BytesIO()
    result = line.pipe(["cat"], source=io.BytesIO(data), sink=sink)
    assert sink.getvalue() == data
    assert result.stdout == ""


def test_pipe_without_a_sink_gives_the_output_as_text(line: SshTransport) -> None:
    assert line.pipe(["wc", "-c"], source=io.BytesIO(bytes(100))).stdout.strip() == "100"


def test_pipe_fails_as_run_does(line: SshTransport) -> None:
    with pytest.raises(RemoteCommandFailed, match="exited with 4"):
        line.pipe(["sh", "-c", "exit 4"], source=io.BytesIO(bytes(5_000_000)), sink=io.BytesIO())
    assert line.pipe(["sh", "-c", "exit 4"], check=False).exit_code == 4


def test_a_source_that_fails_never_looks_like_the_end_of_the_data(line: SshTransport, tmp_path: Path) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 100_000:
                raise OSError("the disk is gone")
            return super().read(size)

    whole = tmp_path / "whole"
    with pytest.raises(OSError, match="the disk is gone"):
        line.pipe(["sh", "-c", 'cat >/dev/null && touch "$1"', "sh", str(whole)], source=Failing(bytes(1_000_000)))
    assert line.run(["true"]).exit_code == 0
    assert not whole.exists()


def test_a_sink_that_fails_ends_the_command_and_is_raised(line: SshTransport) -> None:
    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        line.pipe(["cat", "/dev/zero"], sink=Full())
