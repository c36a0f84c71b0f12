from __future__ import annotations

import random
import threading
import uuid
from pathlib import Path

import pytest

from gpuops.errors import DiskFull, MachineUnreachable, RemoteCommandFailed, RemoteFileMissing
from gpuops.transports.ssh import SshTransport
from tests.transports.servers import Server, Wire, until


@pytest.fixture
def folder(server: Server) -> Path:
    """A folder of the machine's, new for each test; its name, relative to the home folder, is not an easy one."""
    folder = server.home / f"-it's a ${uuid.uuid4().hex}"
    folder.mkdir()
    return folder


def test_read_gives_every_byte(line: SshTransport, folder: Path) -> None:
    data = random.Random(3).randbytes(8_000_000)
    (folder / "data").write_bytes(data)
    assert b"".join(line.read(str(folder / "data"))) == data


def test_read_starts_at_the_offset(line: SshTransport, folder: Path) -> None:
    log = folder / "log.txt"
    log.write_bytes(b"0123456789")
    assert b"".join(line.read(str(log), 7)) == b"789"
    assert b"".join(line.read(str(log), 10)) == b""
    assert b"".join(line.read(str(log), 99)) == b""
    with log.open("ab") as file:
        file.write(b"more")
    assert b"".join(line.read(str(log), 10)) == b"more"


@pytest.mark.parametrize("prefix", ["", "~/"])
def test_a_relative_path_counts_from_the_home_folder(line: SshTransport, folder: Path, prefix: str) -> None:
    path = f"{prefix}{folder.name}/x"
    line.write(path, b"home")
    assert (folder / "x").read_bytes() == b"home"
    assert b"".join(line.read(path)) == b"home"


def test_reading_a_file_that_is_not_there_says_so(line: SshTransport, folder: Path) -> None:
    with pytest.raises(RemoteFileMissing, match="has no file") as caught:
        list(line.read(str(folder / "nothing")))
    assert "ls -la" in caught.value.next_step


def test_reading_a_folder_is_an_error_of_another_kind(line: SshTransport, folder: Path) -> None:
    with pytest.raises(RemoteCommandFailed, match="directory") as caught:
        list(line.read(str(folder)))
    assert not isinstance(caught.value, RemoteFileMissing)


def test_a_reader_may_stop_in_the_middle(line: SshTransport) -> None:
    chunks = line.read("/dev/zero")
    assert next(chunks)
    chunks.close()  # type: ignore[attr-defined]
    assert line.run(["true"]).exit_code == 0


@pytest.mark.parametrize("mode", [0o644, 0o600, 0o755])
def test_write_makes_the_folders_and_sets_the_mode(line: SshTransport, folder: Path, mode: int) -> None:
    data = random.Random(4).randbytes(3_000_000)
    path = folder / "new one" / "deeper" / "it's"
    line.write(str(path), data, mode=mode)
    assert path.read_bytes() == data
    assert path.stat().st_mode & 0o777 == mode
    assert [entry.name for entry in path.parent.iterdir()] == ["it's"]


def test_write_replaces_what_was_there(line: SshTransport, folder: Path) -> None:
    path = folder / "file"
    line.write(str(path), b"old")
    old = path.open("rb")
    line.write(str(path), b"")
    with old:
        assert old.read() == b"old"  # the old file was never touched: whoever reads it, reads it whole
    assert path.read_bytes() == b""


def test_a_file_is_what_it_was_until_the_new_one_is_whole(
    server: Server, fragile_line: SshTransport, wire: Wire, folder: Path
) -> None:
    path = folder / "file"
    path.write_bytes(b"old")

    def cut_in_the_middle() -> None:
        until(lambda: any(entry.stat().st_size > 0 for entry in folder.glob(".file.*")), "some of it arrived")
        wire.cut()

    cutting = threading.Thread(target=cut_in_the_middle)
    cutting.start()
    with pytest.raises(MachineUnreachable):
        fragile_line.write(str(path), bytes(200_000_000))
    cutting.join()
    until(lambda: not list(folder.glob(".file.*")), "what arrived of it is gone")
    assert path.read_bytes() == b"old"


def test_a_full_disk_says_how_much_was_wanted(server: Server, line: SshTransport, folder: Path) -> None:
    (folder / "file").write_bytes(b"old")
    full_disk = server.home / "bin" / "cat"
    full_disk.write_text("#!/bin/sh\nexec /bin/cat >/dev/full\n")
    full_disk.chmod(0o755)
    try:
        with pytest.raises(DiskFull, match="12,345 bytes") as caught:
            line.write(str(folder / "file"), bytes(12_345))
    finally:
        full_disk.unlink()
    assert "df -h" in caught.value.next_step
    assert [entry.read_bytes() for entry in folder.iterdir()] == [b"old"]


def test_a_folder_in_the_files_place_is_an_error(line: SshTransport, folder: Path) -> None:
    with pytest.raises(RemoteCommandFailed, match="Is a directory"):
        line.write(str(folder), b"data")
    assert list(folder.iterdir()) == []
