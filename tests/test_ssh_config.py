"""The address book: our own file, with a block for each machine, and the host keys that they are known by."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock
import pytest

from gpuops import host_keys, workflow
from gpuops.errors import SshConfigError
from gpuops.machine import Address, Inventory, State, Unanswered
from gpuops.ssh_config import AddressBook
from tests.computers import Cloud, Computer
from tests.ssh_configs import HERE, KEY, PLAIN, machine, needs_ssh, resolved, start

not_root = pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "home" / ".ssh" / "config"


@pytest.fixture
def book(config: Path, tmp_path: Path) -> AddressBook:
    return AddressBook(user_config=config, keys=tmp_path / "gpuops" / "keys")


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
@pytest.mark.parametrize("odd", ["with a space", "50%h off", "ümläut", "quote'd", "[a-z]*?", "back\\slash"])
def test_odd_characters_in_a_folders_name_reach_ssh_unharmed(tmp_path: Path, odd: str) -> None:
    book = AddressBook(user_config=tmp_path / odd / "config", keys=tmp_path / odd / "keys")
    start(book)
    assert book.left_to_do(machine()) == ()
    assert resolved(tmp_path / odd / "config", "fast-ai")["hostname"] == HERE
    # ssh shows these two as they stand in the file, with % doubled, and undoubles them when it opens the file.
    shown = str(tmp_path / odd / "keys").replace("%", "%%")
    assert resolved(book.path, "fast-ai")["identityfile"] == f"{shown}/id_ed25519"


@pytest.mark.parametrize("odd", ['a "quoted" folder', "two\nlines", "a\rreturn", "${HOME}", os.fsdecode(b"b\xfcro")])
def test_a_folder_that_no_ssh_config_can_name_is_refused_at_the_start(tmp_path: Path, odd: str) -> None:
    with pytest.raises(SshConfigError):
        AddressBook(user_config=tmp_path / odd / "config", keys=tmp_path / "keys").check()
    with pytest.raises(SshConfigError):
        AddressBook(user_config=tmp_path / "config", keys=tmp_path / odd / "keys").check()


@pytest.mark.parametrize("host", ["", "-oProxyCommand=x", "203.0.113.7 #", "203.0.113.7\n  ProxyCommand x", '"x"'])
def test_an_address_that_means_more_than_a_host_is_written_nowhere(book: AddressBook, config: Path, host: str) -> None:
    config.parent.mkdir(parents=True)
    config.write_bytes(b"Host fast-ai\n  HostName\n")
    for change in (lambda machine: book.update([machine]), book.bring_in):
        with pytest.raises(SshConfigError, match="no address"):
            change(machine(ssh=Address(host=host, user="ubuntu")))
    assert [path.name for path in config.parent.iterdir()] == ["config"]
    assert config.read_bytes() == b"Host fast-ai\n  HostName\n"


@needs_ssh
def test_a_machine_behind_another_is_reached_through_it(book: AddressBook) -> None:
    book.update([machine(ssh=Address(host=HERE, user="ubuntu", jump="ops@bastion.example.com:2200"))])
    assert resolved(book.path, "fast-ai")["proxyjump"] == "ops@bastion.example.com:2200"


def test_our_file_alone_changes_when_the_machines_are_only_looked_at(book: AddressBook, config: Path) -> None:
    config.parent.mkdir(parents=True)
    config.write_bytes(PLAIN)
    book.update([machine()])
    book.regenerate(Inventory(machines=(machine(),)), provider="aws")
    assert config.read_bytes() == PLAIN
    assert book.path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_cannot_be_read_is_named_before_anything_is_launched(the_cloud: Cloud, computer: Computer) -> None:
    computer.ssh_config.mkdir(parents=True)  # not even root can read a folder as a file
    before = len(the_cloud.calls("RunInstances"))
    with pytest.raises(SshConfigError, match="can't be read"):
        computer.up()
    assert len(the_cloud.calls("RunInstances")) == before


@not_root
def test_a_folder_for_our_file_that_is_read_only_is_named_before_anything_is_launched(
    the_cloud: Cloud, computer: Computer
) -> None:
    folder = computer.ssh_config.parent
    folder.mkdir(parents=True)
    folder.chmod(0o555)
    before = len(the_cloud.calls("RunInstances"))
    try:
        with pytest.raises(SshConfigError) as raised:
            computer.up()
    finally:
        folder.chmod(0o700)
    assert raised.value.next_step == f"Make it writable: chmod u+rwx {folder}"
    assert len(the_cloud.calls("RunInstances")) == before


@pytest.mark.parametrize("flags", [{}, {"no_ssh_config": True}], ids=["read-only", "not to be edited"])
def test_up_works_with_a_config_that_is_read_only_or_not_to_be_edited(
    computer: Computer, flags: dict[str, object]
) -> None:
    computer.ssh_config.parent.mkdir(parents=True)
    before = PLAIN + f"Host {computer.name}\n  HostName\n".encode()
    computer.ssh_config.write_bytes(before)
    computer.ssh_config.chmod(0o644 if flags else 0o444)
    up = computer.up(types="g4dn.xlarge", **flags)
    assert computer.ssh_config.read_bytes() == before
    assert computer.ssh("true").exit_code == 0
    told = "\n".join(workflow.address_book(computer.settings(**flags)).left_to_do(up))
    assert (f'Include "{computer.address_book}"' in told) is not bool(flags)


@needs_ssh
def test_up_brings_the_machine_into_the_config_that_the_environment_names(computer: Computer) -> None:
    computer.ssh_config.parent.mkdir(parents=True)
    theirs = b"Host other\n  HostName 192.0.2.2\nHost %b\n\tHostName 192.0.2.1 # stale\n"
    computer.ssh_config.write_bytes(theirs % computer.name.encode())
    machine = computer.has_machine(types="g4dn.xlarge")
    assert machine.ssh
    computer.gpuops_here("up", "-y", GPUOPS_SSH_CONFIG=str(computer.ssh_config)).succeeded()
    line, rest = computer.ssh_config.read_bytes().split(b"\n", 1)
    assert line == f'Include "{computer.address_book}"'.encode()
    assert rest == (theirs % computer.name.encode()).replace(b"192.0.2.1", machine.ssh.host.encode())
    assert resolved(computer.ssh_config, computer.name)["hostkeyalias"] == machine.id


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


def test_nothing_is_written_when_nothing_has_changed(book: AddressBook) -> None:
    book.update([machine()])
    before = book.path.stat()
    book.update([machine()])
    book.regenerate(Inventory(machines=(machine(),)), provider="aws")
    assert (book.path.stat().st_mtime_ns, book.path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


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


def test_where_gpuops_never_was_nothing_is_made_by_removing(book: AddressBook, config: Path, tmp_path: Path) -> None:
    book.remove_everything()
    assert not config.parent.exists()
    assert not (tmp_path / "gpuops" / "keys").exists()


def test_commands_at_work_on_different_machines_lose_nothing_of_each_others(config: Path, tmp_path: Path) -> None:
    """Law 5. An address book each, as in processes of their own."""
    keys = tmp_path / "keys"

    def at_work(command: int) -> None:
        book = AddressBook(user_config=config, keys=keys)
        for number in range(50):
            mine = machine(id=f"i-{command}-{number}", name=f"m-{command}-{number}")
            if command:
                book.update([mine])
                book.bring_in(mine)
            else:
                book.regenerate(Inventory(machines=(mine,), unanswered=(_EVERYTHING_ELSE,)), provider="aws")

    with ThreadPoolExecutor(3) as commands:
        list(commands.map(at_work, range(3)))
    everything = [f"{command}-{number}" for command in range(3) for number in range(50)]
    text = (config.parent / "gpuops.config").read_text()
    assert [one for one in everything if f"Host m-{one}\n" not in text] == []
    known = (keys / "known_hosts").read_text()
    assert [one for one in everything if f"i-{one} " not in known] == []
    assert config.read_bytes().count(b"Include") == 1


_EVERYTHING_ELSE = Unanswered(place="aws/us-west-2", reason="it is far")


@pytest.mark.parametrize("change", ["update", "regenerate", "bring_in", "remove_everything"])
def test_a_book_that_another_command_keeps_to_itself_is_told_and_left_alone(
    book: AddressBook, config: Path, tmp_path: Path, change: str
) -> None:
    start(book)
    before = config.read_bytes(), book.path.read_bytes()
    patient = AddressBook(user_config=config, keys=tmp_path / "gpuops" / "keys", wait_s=0.1)
    gone = machine(state=State.TERMINATED, ssh=None)
    with filelock.FileLock(tmp_path / "gpuops" / "keys" / "ssh-config.lock"), pytest.raises(SshConfigError) as raised:
        if change == "update":
            patient.update([gone])
        elif change == "regenerate":
            patient.regenerate(Inventory(machines=()), provider="aws")
        elif change == "bring_in":
            patient.bring_in(machine())
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
