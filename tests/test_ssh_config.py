"""The address book: one file of ours, one line in the person's config, and every other byte of theirs unchanged."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock
import pytest

from gpuops import host_keys
from gpuops.errors import SshConfigError
from gpuops.machine import Address, Inventory, Machine, State, Unanswered
from gpuops.ssh_config import AddressBook
from tests.computers import Cloud, Computer

needs_ssh = pytest.mark.skipif(not shutil.which("ssh"), reason="there is no ssh program here")
not_root = pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")

PLAIN = b"Host work\n    HostName work.example.com\n    User me\n"
NASTY = {
    "nothing": b"",
    "no final newline": PLAIN[:-1],
    "CRLF": PLAIN.replace(b"\n", b"\r\n"),
    "mixed line ends": b"Host a\r\n\tHostName b\nHost c\n",
    "Latin-1": "# Zugänge für den Rechner im Büro\nHost büro\n".encode("latin-1"),
    "tabs and an equals sign": b"Host=work\n\tHostName\t=\twork.example.com  # the office\n",
    "a Match block": PLAIN + b'Match host work exec "true"\n  Port 2200\n',
    "a block named like the machine": b"Host fast-ai\n  HostName 52.1.2.3\n",
    "an Include of its own": b"Include other.config\n\n" + PLAIN,
    "a NUL and a BOM": b"\xef\xbb\xbfHost x\n# \x00\n",
    "blank lines": b"\n\n\n   \n",
    "a very long line": b"# " + b"x" * 100_000 + b"\n",
}
KEY = host_keys.generate().public_line


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "home" / ".ssh" / "config"


@pytest.fixture
def book(config: Path, tmp_path: Path) -> AddressBook:
    return AddressBook(user_config=config, keys=tmp_path / "gpuops" / "keys")


def machine(**changes: object) -> Machine:
    values: dict[str, object] = {
        "id": "i-0123456789abcdef0",
        "name": "fast-ai",
        "provider": "aws",
        "region": "us-west-2",
        "zone": "us-west-2a",
        "type": "g4dn.xlarge",
        "state": State.RUNNING,
        "ssh": Address(host="203.0.113.7", user="ubuntu", port=2222),
        "host_key": KEY,
    }
    return Machine(**{**values, **changes})  # type: ignore[arg-type]


def resolved(config: Path, name: str) -> dict[str, str]:
    """What OpenSSH itself makes of the config for this name."""
    text = subprocess.run(["ssh", "-G", "-F", config, name], capture_output=True, text=True, check=True).stdout
    return dict(line.split(" ", 1) for line in text.splitlines() if " " in line)


@pytest.mark.parametrize("before", NASTY.values(), ids=NASTY.keys())
def test_every_byte_of_the_persons_config_stays_and_one_line_is_put_before_it(
    book: AddressBook, config: Path, before: bytes
) -> None:
    """Law 5."""
    config.parent.mkdir(parents=True)
    config.write_bytes(before)
    book.check()
    book.update([machine()])
    after = config.read_bytes()
    line, rest = after[: len(after) - len(before)], after[len(after) - len(before) :]
    assert rest == before
    assert line.startswith(b"Include ")
    assert line.count(b"\n") == 1
    first_line_ends = b"\r\n" if before.split(b"\n")[0].endswith(b"\r") else b"\n"
    assert line.endswith(first_line_ends)
    book.update([machine(state=State.STOPPED, ssh=None)])
    book.update([machine(state=State.TERMINATED, ssh=None)])
    assert config.read_bytes() == after


@needs_ssh
@pytest.mark.parametrize("before", [PLAIN, NASTY["CRLF"], NASTY["tabs and an equals sign"], b"Host *\n  User nobody\n"])
def test_ssh_finds_the_machine_through_the_persons_config(book: AddressBook, config: Path, before: bytes) -> None:
    config.parent.mkdir(parents=True)
    config.write_bytes(before)
    config.chmod(0o600)
    book.update([machine()])
    found = resolved(config, "fast-ai")
    assert (found["hostname"], found["port"], found["user"]) == ("203.0.113.7", "2222", "ubuntu")


@needs_ssh
def test_ssh_reads_our_file_as_it_is_meant(book: AddressBook, tmp_path: Path) -> None:
    book.update([machine()])
    keys = tmp_path / "gpuops" / "keys"
    found = resolved(book.path, "fast-ai")
    assert found["hostkeyalias"] == "i-0123456789abcdef0"
    assert found["stricthostkeychecking"] == "true"
    assert found["checkhostip"] == "no"
    assert found["identitiesonly"] == "yes"
    assert found["identityfile"] == str(keys / "id_ed25519")
    assert found["userknownhostsfile"] == str(keys / "known_hosts")
    assert (keys / "known_hosts").read_text() == f"i-0123456789abcdef0 {KEY}\n"
    assert "localforward" not in found
    assert resolved(book.path, "fast-ai-jupyter")["localforward"] == "8888 [127.0.0.1]:8888"


@needs_ssh
@pytest.mark.parametrize("odd", ["with a space", "50%h off", "ümläut", "quote'd"])
def test_odd_characters_in_a_folders_name_reach_ssh_unharmed(tmp_path: Path, odd: str) -> None:
    book = AddressBook(user_config=tmp_path / odd / "config", keys=tmp_path / odd / "keys")
    book.check()
    book.update([machine()])
    assert resolved(tmp_path / odd / "config", "fast-ai")["hostname"] == "203.0.113.7"
    # ssh shows these two as they stand in the file, with % doubled, and undoubles them when it opens the file.
    shown = str(tmp_path / odd / "keys").replace("%", "%%")
    assert resolved(book.path, "fast-ai")["identityfile"] == f"{shown}/id_ed25519"


@pytest.mark.parametrize("odd", ['a "quoted" folder', "two\nlines"])
def test_a_folder_that_no_ssh_config_can_name_is_refused_at_the_start(tmp_path: Path, odd: str) -> None:
    with pytest.raises(SshConfigError):
        AddressBook(user_config=tmp_path / odd / "config", keys=tmp_path / "keys").check()


def test_a_missing_ssh_folder_is_made_for_its_owner_only(book: AddressBook, config: Path) -> None:
    book.check()
    book.update([machine()])
    assert config.parent.stat().st_mode & 0o777 == 0o700
    assert config.stat().st_mode & 0o777 == 0o600
    assert book.path.stat().st_mode & 0o777 == 0o600


def test_a_symlink_to_dotfiles_stays_one_and_its_target_keeps_its_mode(
    book: AddressBook, config: Path, tmp_path: Path
) -> None:
    dotfiles = tmp_path / "dotfiles" / "ssh_config"
    dotfiles.parent.mkdir()
    dotfiles.write_bytes(PLAIN)
    dotfiles.chmod(0o640)
    config.parent.mkdir(parents=True)
    config.symlink_to(Path("../../dotfiles/ssh_config"))
    book.update([machine()])
    assert config.is_symlink()
    assert dotfiles.read_bytes().endswith(PLAIN)
    assert dotfiles.read_bytes() != PLAIN
    assert dotfiles.stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_a_config_that_belongs_to_another_user_goes_on_belonging_to_them(book: AddressBook, config: Path) -> None:
    config.parent.mkdir(parents=True)
    config.write_bytes(PLAIN)
    os.chown(config, 4321, 1234)
    book.update([machine()])
    assert (config.stat().st_uid, config.stat().st_gid) == (4321, 1234)


def test_an_include_line_that_is_there_already_is_not_written_twice(book: AddressBook, config: Path) -> None:
    config.parent.mkdir(parents=True)
    theirs = PLAIN + f'Include "{book.path}"\n'.encode() + PLAIN
    config.write_bytes(theirs)
    book.update([machine()])
    assert config.read_bytes() == theirs


def test_a_file_that_cannot_be_read_is_named_before_anything_is_launched(the_cloud: Cloud, computer: Computer) -> None:
    computer.ssh_config.mkdir(parents=True)  # not even root can read a folder as a file
    before = len(the_cloud.calls("RunInstances"))
    with pytest.raises(SshConfigError, match="can't be read"):
        computer.up()
    assert len(the_cloud.calls("RunInstances")) == before


@not_root
@pytest.mark.parametrize("readonly", ["the file", "its folder"])
def test_a_read_only_config_is_refused_with_the_line_to_add_before_anything_is_launched(
    the_cloud: Cloud, computer: Computer, readonly: str
) -> None:
    computer.ssh_config.parent.mkdir(parents=True)
    computer.ssh_config.write_bytes(PLAIN)
    locked = computer.ssh_config if readonly == "the file" else computer.ssh_config.parent
    locked.chmod(locked.stat().st_mode & 0o555)
    before = len(the_cloud.calls("RunInstances"))
    try:
        with pytest.raises(SshConfigError) as raised:
            computer.up()
    finally:
        locked.chmod(0o700)
    assert f'Include "{computer.address_book}"' in raised.value.next_step
    assert computer.ssh_config.read_bytes() == PLAIN
    assert len(the_cloud.calls("RunInstances")) == before


@not_root
def test_a_read_only_config_that_has_the_line_is_good_enough(book: AddressBook, config: Path) -> None:
    config.parent.mkdir(parents=True)
    config.write_bytes(f'Include "{book.path}"\n'.encode() + PLAIN)
    config.chmod(0o400)
    book.check()
    book.update([machine()])
    assert "Host fast-ai\n" in book.path.read_text()


def test_a_stopped_machine_stays_marked_and_its_name_leads_nowhere(book: AddressBook) -> None:
    book.update([machine()])
    book.update([machine(state=State.STOPPED, ssh=None)])
    text = book.path.read_text()
    assert "i-0123456789abcdef0: stopped" in text
    assert "203.0.113.7" not in text
    assert "HostName run-gpuops-up-fast-ai.invalid" in text


def test_a_terminated_machines_block_and_key_go_and_all_others_stay(book: AddressBook, tmp_path: Path) -> None:
    other = machine(id="i-0000000000000000f", name="other", ssh=Address(host="203.0.113.8", user="ubuntu"))
    book.update([machine(), other])
    book.update([machine(state=State.TERMINATED, ssh=None)])
    text = book.path.read_text()
    assert "fast-ai" not in text
    assert "HostName 203.0.113.8" in text
    assert (tmp_path / "gpuops" / "keys" / "known_hosts").read_text() == f"i-0000000000000000f {KEY}\n"


def test_what_the_provider_no_longer_lists_goes(book: AddressBook) -> None:
    book.update([machine(), machine(id="i-1", name="gone")])
    book.regenerate(Inventory(machines=(machine(),)), provider="aws")
    assert "gone" not in book.path.read_text()
    assert "Host fast-ai\n" in book.path.read_text()


def test_the_last_machine_goes_too_when_the_provider_lists_none(the_cloud: Cloud, computer: Computer) -> None:
    up = computer.has_machine()
    computer.status()
    assert f"Host {computer.name}\n" in computer.address_book.read_text()
    the_cloud.client().terminate_instances(InstanceIds=[up.id])
    assert computer.status().machines == ()
    assert f"Host {computer.name}\n" not in computer.address_book.read_text()


def test_the_blocks_of_a_region_that_does_not_answer_stay(book: AddressBook) -> None:
    far = machine(id="i-1", name="far", region="eu-west-1")
    book.update([machine(), far])
    silent = Unanswered(place="aws/eu-west-1", reason="it is far")
    book.regenerate(Inventory(machines=(machine(),), unanswered=(silent,)), provider="aws")
    assert "Host far\n" in book.path.read_text()
    book.regenerate(Inventory(machines=(machine(),)), provider="aws")
    assert "Host far\n" not in book.path.read_text()


def test_neither_of_two_machines_of_one_name_gets_a_block(book: AddressBook) -> None:
    book.regenerate(Inventory(machines=(machine(), machine(id="i-1"))), provider="aws")
    assert "Host fast-ai\n" not in book.path.read_text()


def test_an_old_block_of_a_name_that_has_become_ambiguous_goes(book: AddressBook) -> None:
    book.update([machine()])
    book.regenerate(Inventory(machines=(machine(), machine(id="i-1"))), provider="aws")
    assert "Host fast-ai\n" not in book.path.read_text()


def test_another_providers_machines_stay(book: AddressBook) -> None:
    book.update([machine(), machine(id="p-1", name="paper", provider="paperspace", region="ny")])
    book.regenerate(Inventory(machines=()), provider="aws")
    assert "Host paper\n" in book.path.read_text()
    assert "Host fast-ai\n" not in book.path.read_text()


def test_nothing_is_written_when_nothing_has_changed(book: AddressBook, config: Path) -> None:
    book.update([machine()])
    before = [path.stat().st_mtime_ns for path in (config, book.path)]
    book.update([machine()])
    assert [path.stat().st_mtime_ns for path in (config, book.path)] == before


def test_while_a_host_key_is_replaced_both_are_known_and_then_only_the_new_one(
    book: AddressBook, tmp_path: Path
) -> None:
    known_hosts = tmp_path / "gpuops" / "keys" / "known_hosts"
    following = host_keys.generate().public_line
    other = machine(id="i-2", name="other")
    for write in (book.update, lambda machines: book.regenerate(Inventory(machines=tuple(machines)), provider="aws")):
        write([machine(next_host_key=following), other])
        both = f"{machine().id} {KEY}\n{machine().id} {following}\ni-2 {KEY}\n"
        assert known_hosts.read_text() == both
        book.update([other])
        assert known_hosts.read_text() == both
        write([machine(host_key=following), other])
        assert known_hosts.read_text() == f"{machine().id} {following}\ni-2 {KEY}\n"


@needs_ssh
def test_another_key_than_ours_stands_in_the_blocks(config: Path, tmp_path: Path) -> None:
    identity_file = tmp_path / "my keys" / "100%"
    book = AddressBook(user_config=config, keys=tmp_path / "keys", identity_file=identity_file)
    book.update([machine()])
    assert resolved(book.path, "fast-ai")["identityfile"] == str(identity_file).replace("%", "%%")


@pytest.mark.parametrize("before", NASTY.values(), ids=NASTY.keys())
def test_afterwards_the_persons_config_is_as_it_was_and_nothing_of_ours_is_left(
    book: AddressBook, config: Path, tmp_path: Path, before: bytes
) -> None:
    """Law 5. The line is found wherever the person has moved it."""
    target = tmp_path / "dotfiles" / "config"
    target.parent.mkdir()
    target.write_bytes(before)
    target.chmod(0o640)
    config.parent.mkdir(parents=True)
    config.symlink_to(target)
    book.update([machine()])
    target.write_bytes(b"# moved\n" + target.read_bytes())
    book.remove_everything()
    assert target.read_bytes() == b"# moved\n" + before
    assert config.is_symlink()
    assert target.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in config.parent.iterdir()] == ["config"]
    assert not (tmp_path / "gpuops" / "keys").exists()
    book.remove_everything()
    assert target.read_bytes() == b"# moved\n" + before


def test_where_gpuops_never_was_nothing_is_made_by_removing(book: AddressBook, config: Path, tmp_path: Path) -> None:
    book.remove_everything()
    assert not config.parent.exists()
    assert not (tmp_path / "gpuops" / "keys").exists()


def test_commands_at_work_on_different_machines_lose_nothing_of_each_others(config: Path, tmp_path: Path) -> None:
    """Law 5. An address book each, as in processes of their own."""
    keys = tmp_path / "keys"

    def write(command: int) -> None:
        book = AddressBook(user_config=config, keys=keys)
        for number in range(50):
            mine = machine(id=f"i-{command}-{number}", name=f"m-{command}-{number}")
            if command:
                book.update([mine])
            else:
                book.regenerate(Inventory(machines=(mine,), unanswered=(_EVERYTHING_ELSE,)), provider="aws")

    with ThreadPoolExecutor(3) as commands:
        list(commands.map(write, range(3)))
    everything = [f"{command}-{number}" for command in range(3) for number in range(50)]
    text = (config.parent / "gpuops.config").read_text()
    assert [one for one in everything if f"Host m-{one}\n" not in text] == []
    known = (keys / "known_hosts").read_text()
    assert [one for one in everything if f"i-{one} " not in known] == []
    assert config.read_bytes().count(b"Include") == 1


_EVERYTHING_ELSE = Unanswered(place="aws/us-west-2", reason="it is far")


@pytest.mark.parametrize("change", ["update", "regenerate", "remove_everything"])
def test_a_book_that_another_command_keeps_to_itself_is_told_and_left_alone(
    book: AddressBook, config: Path, tmp_path: Path, change: str
) -> None:
    book.update([machine()])
    before = config.read_bytes(), book.path.read_bytes()
    patient = AddressBook(user_config=config, keys=tmp_path / "gpuops" / "keys", wait_s=0.1)
    gone = machine(state=State.TERMINATED, ssh=None)
    with filelock.FileLock(tmp_path / "gpuops" / "keys" / "ssh-config.lock"), pytest.raises(SshConfigError) as raised:
        if change == "update":
            patient.update([gone])
        elif change == "regenerate":
            patient.regenerate(Inventory(machines=()), provider="aws")
        else:
            patient.remove_everything()
    assert raised.value.what == "Another gpuops command has been writing the ssh config for 0.1 s."
    assert raised.value.next_step
    assert (config.read_bytes(), book.path.read_bytes()) == before


@pytest.mark.parametrize("change", ["update", "remove_everything"])
def test_a_folder_in_which_nothing_can_be_written_is_told(config: Path, tmp_path: Path, change: str) -> None:
    (tmp_path / "keys").write_text("no folder")
    book = AddressBook(user_config=config, keys=tmp_path / "keys")
    with pytest.raises(SshConfigError, match="keys"):
        book.update([machine()]) if change == "update" else book.remove_everything()
