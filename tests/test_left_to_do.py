"""What is left alone in the person's ssh config: each told with what they can do, and that is enough."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from gpuops.ssh_config import AddressBook
from tests.computers import until
from tests.ssh_configs import HERE, PLAIN, UNSAFE, address_book, machine, needs_ssh, our_line, read_by_ssh, start

not_root = pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / ".ssh" / "config"
    path.parent.mkdir(mode=0o700)
    return path


@pytest.fixture
def book(config: Path) -> AddressBook:
    return address_book(config)


@pytest.mark.parametrize(("before", "number"), UNSAFE.values(), ids=UNSAFE.keys())
def test_a_block_that_cannot_be_edited_safely_is_left_alone_and_the_line_to_write_is_told(
    book: AddressBook, config: Path, before: bytes, number: int
) -> None:
    """Law 5."""
    config.write_bytes(PLAIN + before)
    [told] = start(book)
    assert config.read_bytes() == our_line(book) + b"\n" + PLAIN + before
    lines = config.read_bytes().split(b"\n")
    at = 1 + PLAIN.count(b"\n") + number
    assert f"{config}, line {at}, has another address of fast-ai" in told
    assert told.endswith(f"Write there: HostName {HERE}")
    # What the person does with it, in every line that they are told of, leaves nothing to be told.
    for _ in range(2):
        lines[at - 1] = f"HostName {HERE}".encode()
        config.write_bytes(b"\n".join(lines))
        if rest := start(book):
            at = int(re.findall(r", line (\d+),", rest[0])[0])
    assert start(book) == ()
    assert config.read_bytes() == b"\n".join(lines)


def test_a_read_only_config_is_left_alone_and_the_line_to_add_is_told(book: AddressBook, config: Path) -> None:
    """For root too, who could write it."""
    before = PLAIN + b"Host fast-ai\n  HostName 52.1.2.3\n"
    config.write_bytes(before)
    config.chmod(0o444)
    add, address = start(book)
    assert config.read_bytes() == before
    assert config.stat().st_mode & 0o777 == 0o444
    assert add == f"{config} can't be written to. Put this line at its top: {our_line(book).decode()}"
    assert f"{config}, line 5, has another address of fast-ai" in address
    config.chmod(0o644)
    config.write_bytes(our_line(book) + b"\n" + before.replace(b"52.1.2.3", HERE.encode()))
    config.chmod(0o444)
    assert start(book) == ()


@not_root
def test_a_symlink_into_a_read_only_folder_is_left_alone_and_the_line_to_add_is_told(
    book: AddressBook, config: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store" / "ssh_config"
    store.parent.mkdir()
    store.write_bytes(PLAIN)
    config.symlink_to(store)
    store.parent.chmod(0o555)
    try:
        [told] = start(book)
    finally:
        store.parent.chmod(0o755)
    assert store.read_bytes() == PLAIN
    assert told == f"{store.parent} can't be written to. Put this line at its top: {our_line(book).decode()}"


@needs_ssh
def test_a_byte_order_mark_is_told_with_a_command_that_takes_it_off(
    book: AddressBook, config: Path, tmp_path: Path
) -> None:
    target = tmp_path / "my dotfiles" / "ssh config"
    target.parent.mkdir()
    target.write_bytes(BYTE_ORDER_MARK + PLAIN)
    target.chmod(0o644)
    config.symlink_to(target)
    mark, add = start(book)
    assert target.read_bytes() == BYTE_ORDER_MARK + PLAIN
    assert f"{config} begins with a byte order mark, so OpenSSH refuses all of it." in mark
    assert our_line(book).decode() in add
    subprocess.run(["sh", "-c", mark.partition(" Take it off: ")[2]], check=True)
    assert target.read_bytes() == PLAIN
    assert config.is_symlink() and target.stat().st_mode & 0o777 == 0o644
    assert start(book) == ()


@needs_ssh
@pytest.mark.parametrize("option", [b"HostName", b"Colour blue", b"KexAlgorithms nonsense"])
def test_a_config_that_ssh_refuses_is_left_alone_and_told_in_its_own_words(
    book: AddressBook, config: Path, option: bytes
) -> None:
    wrong = b"Host other\n    " + option + b"\n"
    before = PLAIN + wrong + b"Host fast-ai\n  HostName 52.1.2.3\n"
    config.write_bytes(before)
    refusal, add, *_ = start(book)
    assert config.read_bytes() == before
    complaints = read_by_ssh(config, "fast-ai")[2].decode().splitlines()
    [words] = [line for line in complaints if re.match(rf"{re.escape(str(config))}:? line 5: ", line)]
    assert words in refusal
    assert our_line(book).decode() in add
    config.write_bytes(before.replace(wrong, b""))
    assert start(book) == ()


@needs_ssh
@pytest.mark.parametrize(
    ("above", "keyword"),
    [
        (b"Host work\n", "hostname"),
        (b"Host fast*\n  Port 22\nMatch all\n", "port"),
        (b"Host *\n  User me\nMatch all\n", "user"),
        (b"UserKnownHostsFile ~/.ssh/mine\n", "userknownhostsfile"),
    ],
)
def test_where_the_include_line_has_been_moved_and_leads_elsewhere_its_place_is_told(
    book: AddressBook, config: Path, above: bytes, keyword: str
) -> None:
    theirs = above + our_line(book) + b"\n"
    config.write_bytes(theirs)
    [told] = start(book)
    assert config.read_bytes() == theirs
    assert f"has the {keyword} " in told
    assert told.endswith(f"Move this line to its top: {our_line(book).decode()}")
    assert book.access(machine()).config == book.path
    config.write_bytes(our_line(book) + b"\n" + above)
    assert start(book) == ()
    assert address_book(config).access(machine()).config == config


@needs_ssh
def test_a_read_only_config_that_brings_our_file_in_by_words_of_its_own_is_good_enough(
    book: AddressBook, config: Path
) -> None:
    config.write_bytes(f"Include {config.parent}/*.config\n".encode() + PLAIN)
    config.chmod(0o444)
    assert start(book) == ()
    assert book.access(machine()).config == config


def test_a_config_that_others_may_write_to_is_told(book: AddressBook, config: Path) -> None:
    config.write_bytes(PLAIN)
    config.chmod(0o660)
    [told] = start(book)
    assert told.endswith(f"chmod go-w {config}")
    assert config.stat().st_mode & 0o777 == 0o660
    subprocess.run(shlex.split(told.rpartition(": ")[2]), check=True)
    assert start(book) == ()


@needs_ssh
def test_a_config_that_is_never_read_to_its_end_is_left_alone_and_what_it_ran_is_ended(
    config: Path, tmp_path: Path
) -> None:
    os.mkfifo(fifo := tmp_path / "fifo")
    held = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    before = f'Match exec "exec sleep 1000 >{fifo}"\n'.encode() + PLAIN
    config.write_bytes(before)
    book = address_book(config, wait_s=0.2)
    refusal, add = start(book)
    assert config.read_bytes() == before
    assert f"OpenSSH took over 0.2 s to read {config}" in refusal
    assert our_line(book).decode() in add
    until(lambda: _has_ended(held), "nobody has the other end of the pipe any more")
    os.close(held)


def _has_ended(pipe: int) -> bool:
    try:
        return os.read(pipe, 1) == b""
    except BlockingIOError:
        return False
