"""The person's own ssh config: our line, the address in their block of the machine, and every other byte as it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpuops.errors import SshConfigError
from gpuops.machine import State
from gpuops.ssh_config import AddressBook
from tests.ssh_configs import (
    ELSEWHERE,
    HERE,
    ODD,
    PLAIN,
    REAL,
    address_book,
    machine,
    needs_ssh,
    our_line,
    read_by_ssh,
    resolved,
    start,
)

only_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / ".ssh" / "config"
    path.parent.mkdir(mode=0o700)
    return path


@pytest.fixture
def book(config: Path) -> AddressBook:
    return address_book(config)


@pytest.mark.parametrize("before", ODD.values(), ids=ODD.keys())
def test_every_byte_of_theirs_stays_and_one_line_is_put_before_it(
    book: AddressBook, config: Path, before: bytes
) -> None:
    """Law 5."""
    config.write_bytes(before)
    assert start(book) == ()
    newline = b"\r\n" if before.split(b"\n")[0].endswith(b"\r") else b"\n"
    assert config.read_bytes() == our_line(book) + newline + before
    book.update([machine(state=State.STOPPED, ssh=None)])
    assert start(book, ELSEWHERE) == ()
    book.bring_in(machine(state=State.STOPPED, ssh=None))
    book.update([machine(state=State.TERMINATED, ssh=None)])
    assert config.read_bytes() == our_line(book) + newline + before


@needs_ssh
@pytest.mark.parametrize("before", REAL.values(), ids=REAL.keys())
def test_ssh_finds_the_machine_through_configs_as_people_have_them_and_all_else_as_before(
    book: AddressBook, config: Path, before: bytes
) -> None:
    config.write_bytes(before)
    others = ("work", "github.com", "switch", "x.internal.example.com", "i-1", "gpu", "tunnel", "paperspace")
    seen = [read_by_ssh(config, name)[:2] for name in others]
    start(book)
    found = resolved(config, "fast-ai")
    assert (found["hostname"], found["port"], found["user"]) == (HERE, "2222", "ubuntu")
    if b"HostName\n" not in before:  # with that, OpenSSH refused it
        assert [read_by_ssh(config, name)[:2] for name in others] == seen
    once = config.read_bytes()
    start(book, ELSEWHERE)
    assert resolved(config, "fast-ai")["hostname"] == ELSEWHERE
    assert config.read_bytes() == once.replace(HERE.encode(), ELSEWHERE.encode())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"HostName\n", b"HostName HERE\n"),
        (b"  HostName  \t\n", b"  HostName HERE  \t\n"),
        (b"\thostname\r\n", b"\thostname HERE\r\n"),
        (b"HostName # 52.1.2.3\n", b"HostName HERE # 52.1.2.3\n"),
        (b'HostName ""\n', b'HostName "HERE"\n'),
        (b"HostName", b"HostName HERE"),
        (b"HostName 52.1.2.3\n", b"HostName HERE\n"),
        (b"\t hOSTnAME\t52.1.2.3\r\n", b"\t hOSTnAME\tHERE\r\n"),
        (b"HostName ec2-52-1-2-3.compute.amazonaws.com # stale #\n", b"HostName HERE # stale #\n"),
        (b'HostName "52.1.2.3"\t# x\n', b'HostName "HERE"\t# x\n'),
        (b"HostName 2001:db8::1 \f\n", b"HostName HERE \f\n"),
        (b"HostName b\xfcro\n", b"HostName HERE\n"),
        (b"HostName 52.1.2.3\0 x\n", b"HostName HERE\0 x\n"),
        (b"HostName 52.1.2.3", b"HostName HERE"),
    ],
)
def test_the_address_in_their_block_is_renewed_at_every_start_and_nothing_else(
    book: AddressBook, config: Path, before: bytes, after: bytes
) -> None:
    """Law 5."""
    head, tail = PLAIN + b"\nHost fast-ai # the course\n  LocalForward 8888 localhost:8888\n", b""
    if before.endswith(b"\n"):
        tail = b"\n  User ubuntu\n# Host fast-ai\nHost fast-ai-2\n  HostName 192.0.2.2\n"
    config.write_bytes(head + before + tail)
    for host in (HERE, ELSEWHERE, HERE):
        assert start(book, host) == ()
        expected = head + after.replace(b"HERE", host.encode()) + tail
        assert config.read_bytes() == our_line(book) + b"\n" + expected


def test_a_missing_ssh_folder_is_made_for_its_owner_only(tmp_path: Path) -> None:
    config = tmp_path / "fresh" / ".ssh" / "config"
    book = address_book(config)
    assert start(book) == ()
    assert config.parent.stat().st_mode & 0o777 == 0o700
    assert config.stat().st_mode & 0o777 == 0o600
    assert book.path.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in config.parent.iterdir()) == ["config", "gpuops.config"]


def test_a_symlink_to_dotfiles_stays_one_and_its_target_keeps_its_mode(
    book: AddressBook, config: Path, tmp_path: Path
) -> None:
    dotfiles = tmp_path / "dotfiles" / "ssh_config"
    dotfiles.parent.mkdir()
    dotfiles.write_bytes(PLAIN)
    dotfiles.chmod(0o640)
    config.symlink_to(Path("../dotfiles/ssh_config"))
    assert start(book) == ()
    assert config.readlink() == Path("../dotfiles/ssh_config")
    assert dotfiles.read_bytes() == our_line(book) + b"\n" + PLAIN
    assert dotfiles.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in dotfiles.parent.iterdir()] == ["ssh_config"]


@only_root
def test_another_users_config_stays_theirs_and_is_not_broken_by_a_file_of_ours_that_they_cannot_read(
    book: AddressBook, config: Path
) -> None:
    """As with sudo. An Include of a file that they can't read would end every ssh of theirs."""
    config.write_bytes(PLAIN)
    config.chmod(0o600)
    for path in (config.parent, config):
        os.chown(path, 4321, 1234)
    assert start(book) == ()
    assert config.read_bytes() == our_line(book) + b"\n" + PLAIN
    theirs = {path.name for path in config.parent.iterdir() if path.stat().st_uid == 4321}
    assert theirs == {"config", ".config.before-gpuops"}
    assert config.stat().st_gid == 1234
    assert config.stat().st_mode & 0o777 == 0o600
    assert book.path.stat().st_mode & 0o777 == 0o644


def test_an_include_line_that_is_there_already_is_not_written_twice(book: AddressBook, config: Path) -> None:
    theirs = b"# first\nUser me\n" + our_line(book) + b"\r\n" + PLAIN
    config.write_bytes(theirs)
    start(book)
    assert config.read_bytes() == theirs


@needs_ssh
def test_what_an_editor_saves_while_the_result_is_checked_is_kept(config: Path, tmp_path: Path) -> None:
    """An editor knows no lock of ours; here it saves from within the reading of the config itself."""
    saved, newer = tmp_path / "saved", b"# saved meanwhile\n" + PLAIN
    saved.write_bytes(newer)
    config.write_bytes(f'Match exec "mv {saved} {config}"\n'.encode() + PLAIN)
    book = address_book(config)
    assert start(book) == ()
    assert config.read_bytes() == our_line(book) + b"\n" + newer


def test_one_backup_has_what_was_before_the_last_change(book: AddressBook, config: Path) -> None:
    before = PLAIN + b"Host fast-ai\n  HostName\n"
    config.write_bytes(before)
    config.chmod(0o644)
    start(book)
    [backup] = [path for path in config.parent.iterdir() if path.name not in {"config", "gpuops.config"}]
    assert backup.read_bytes() == before
    assert backup.stat().st_mode & 0o777 == 0o600
    once = config.read_bytes()
    start(book)
    assert backup.read_bytes() == before
    start(book, ELSEWHERE)
    assert backup.read_bytes() == once
    twice = config.read_bytes()
    config.write_bytes(twice + b"Host other\n  HostName\n")
    start(book, HERE)  # which OpenSSH refuses
    assert backup.read_bytes() == once
    assert len(list(config.parent.iterdir())) == 3


@needs_ssh
def test_the_backup_is_no_file_that_an_include_of_theirs_would_bring_in(book: AddressBook, config: Path) -> None:
    before = "".join(f"Include {config.parent}/{glob}\n" for glob in ("config.*", "*-gpuops", "c*.d/*")).encode()
    config.write_bytes(before + PLAIN)
    assert start(book) == ()
    assert start(book, ELSEWHERE) == ()
    assert resolved(config, "fast-ai")["hostname"] == ELSEWHERE


@pytest.mark.parametrize("before", [PLAIN, BYTE_ORDER_MARK + PLAIN, PLAIN + b"Host fast-ai\n  HostName\n"])
def test_without_an_ssh_program_the_same_is_done_unchecked(
    book: AddressBook, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bytes
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    config.write_bytes(before)
    told = start(book)
    if before.startswith(BYTE_ORDER_MARK):
        assert config.read_bytes() == before
        assert "byte order mark" in told[0]
    else:
        after = before.replace(b"HostName\n", f"HostName {HERE}\n".encode())
        assert config.read_bytes() == our_line(book) + b"\n" + after
        assert told == ()
    book.remove_everything()


def test_nothing_is_written_when_nothing_has_changed(book: AddressBook, config: Path) -> None:
    config.write_bytes(b"Host fast-ai\n  HostName\n")
    start(book)
    before = [(path, path.stat().st_mtime_ns, path.stat().st_ino) for path in sorted(config.parent.iterdir())]
    start(book)
    assert [(path, path.stat().st_mtime_ns, path.stat().st_ino) for path in sorted(config.parent.iterdir())] == before


@pytest.mark.parametrize("before", [None, PLAIN, BYTE_ORDER_MARK, b"Host fast-ai\n  HostName\n"])
def test_where_their_config_is_not_to_be_edited_it_is_neither_written_nor_read(
    config: Path, tmp_path: Path, before: bytes | None
) -> None:
    book = address_book(config, edits_user_config=False)
    if before is None:
        config.mkdir()  # what can't be read at all
    else:
        config.write_bytes(before)
    assert start(book) == ()
    assert book.access(machine()).config == book.path
    assert sorted(path.name for path in config.parent.iterdir()) == ["config", "gpuops.config"]
    assert config.is_dir() if before is None else config.read_bytes() == before


@pytest.mark.parametrize("before", {**ODD, **REAL}.values(), ids={**ODD, **REAL}.keys())
def test_afterwards_theirs_is_as_it_was_but_for_the_address_and_nothing_of_ours_is_left(
    book: AddressBook, config: Path, tmp_path: Path, before: bytes
) -> None:
    """Law 5. The line is found wherever the person has moved it."""
    target = tmp_path / "dotfiles" / "config"
    target.parent.mkdir()
    target.write_bytes(before)
    target.chmod(0o640)
    config.symlink_to(target)
    start(book)
    line, rest = target.read_bytes().split(b"\n", 1)
    assert line.rstrip() == our_line(book)
    target.write_bytes(b"# moved\n" + line + b"\n" + rest)
    book.remove_everything()
    assert target.read_bytes() == b"# moved\n" + rest
    assert config.is_symlink()
    assert target.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in config.parent.iterdir()] == ["config"]
    assert not (tmp_path / "gpuops" / "keys").exists()
    book.remove_everything()
    assert target.read_bytes() == b"# moved\n" + rest


def test_a_read_only_config_that_our_line_is_in_is_told_when_everything_is_removed(
    book: AddressBook, config: Path
) -> None:
    theirs = our_line(book) + b"\n" + PLAIN
    config.write_bytes(theirs)
    start(book)
    config.chmod(0o444)
    with pytest.raises(SshConfigError) as raised:
        book.remove_everything()
    assert config.read_bytes() == theirs
    assert our_line(book).decode() in raised.value.next_step
    config.chmod(0o644)
    book.remove_everything()
    assert config.read_bytes() == PLAIN
