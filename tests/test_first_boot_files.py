"""What the first boot writes to a machine: as cloud-init and systemd themselves see it, and cut off anywhere."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from gpuops import host_keys
from gpuops.render import render

_DEADLINE_S = 7200
_STUB = '#!/bin/sh\nprintf "%s %s\\n" "${0##*/}" "$*" >>"$DESTDIR/calls"\n'
# Kills the script and all that it started, at the call whose number is in the file `die`: before it's done, or after.
_DEADLY = """#!/bin/sh
count=$(($(cat "$DESTDIR/count" 2>/dev/null || echo 0) + 1))
echo $count >"$DESTDIR/count"
[ "$count before" != "$(cat "$DESTDIR/die")" ] || kill -9 0
case ${0##*/} in
systemctl) echo "$*" >>"$DESTDIR/calls" ;;
*) PATH=$REAL_PATH "${0##*/}" "$@" ;;
esac
code=$?
[ "$count after" != "$(cat "$DESTDIR/die")" ] || kill -9 0
exit $code
"""

needs_keygen = pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="there is no ssh-keygen here")


class Disk:
    """A machine's root folder, on which the first boot's commands run with a `systemctl` that only takes notes."""

    def __init__(self, root: Path, *, deadline_s: float = _DEADLINE_S, systemctl: str = _STUB) -> None:
        self.root = root / "disk"
        self.bin = root / "bin"
        self.bin.mkdir(parents=True)
        self.host_key = host_keys.generate()
        self.user_data = render(
            "first-boot.yaml.j2",
            name="fast-ai",
            format=1,
            deadline_s=deadline_s,
            poweroff="systemctl poweroff",
            host_private_key=self.host_key.private_text,
            host_public_key=self.host_key.public_line,
            authorized_keys=[
                host_keys.generate().public_line,
                f"{host_keys.generate().public_line} me: 'here' # \"x\"",
            ],
        )
        (self.root / "proc/sys/kernel/random").mkdir(parents=True)
        (self.root / "proc/sys/kernel/random/boot_id").write_text("0-1\n")
        (self.root / "proc/uptime").write_text("5.50 3.00\n")
        self.stub("systemctl", systemctl)

    @property
    def units(self) -> Path:
        return self.root / "run/systemd/system"

    @property
    def key(self) -> Path:
        return self.root / "etc/ssh/ssh_host_ed25519_key"

    @property
    def calls(self) -> list[str]:
        path = self.root / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def stub(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def boot(self) -> Disk:
        for argv in yaml.safe_load(self.user_data)["bootcmd"]:
            self.run(*argv)
        return self

    def machine(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run("sh", str(self.root / "run/gpuops/machine"), *words)

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join((str(self.bin), os.environ["PATH"]))
        environment = {"PATH": path, "REAL_PATH": os.environ["PATH"], "DESTDIR": str(self.root)}
        return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=30, start_new_session=True)

    def has_host_key(self) -> Disk:
        """As cloud-init has written it."""
        self.key.parent.mkdir(parents=True)
        self.key.touch(mode=0o600)
        self.key.write_text(self.host_key.private_text)
        self.key.with_name(f"{self.key.name}.pub").write_text(f"{self.host_key.public_line}\n")
        return self

    def dies(self, call: int, moment: str, *words: str) -> bool:
        """Whether the script was killed at that call of a program. From then on nothing is."""
        (self.root / "count").unlink(missing_ok=True)
        (self.root / "die").write_text(f"{call} {moment}\n")
        code = self.machine(*words).returncode
        (self.root / "die").write_text("0 never\n")
        return code == -9


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def test_cloud_inits_own_schema_accepts_the_cloud_config(disk: Disk, tmp_path: Path) -> None:
    if not shutil.which("cloud-init"):
        pytest.skip("cloud-init is not installed")
    path = tmp_path / "user-data"
    for text, is_valid in ((disk.user_data, True), (disk.user_data.replace("bootcmd:", "bootcmd: 5\nnotcmd:"), False)):
        path.write_text(text)
        checked = subprocess.run(["cloud-init", "schema", "--config-file", path], capture_output=True, text=True)
        assert (checked.returncode == 0) == is_valid, checked


def test_systemd_itself_accepts_the_units(disk: Disk) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    units = sorted(disk.boot().units.iterdir())
    assert [unit.name for unit in units] == [
        "gpuops-deadline.service",
        "gpuops-deadline.timer",
        "gpuops-uptime.service",
    ]
    assert _verified(*units) == ""
    for unit, damage in zip(units, ("ExecStart=/bin/no-such", "OnBootSec=soon", "ExecStop=/bin/no-such"), strict=True):
        directive = damage.partition("=")[0] + "="
        lines = [damage if line.startswith(directive) else line for line in unit.read_text().splitlines()]
        unit.write_text("\n".join(lines))
        assert _verified(unit), f"{damage} was accepted"


def _verified(*units: Path) -> str:
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True)
    return done.stderr + done.stdout + (f"exit code {done.returncode}" if done.returncode else "")


def test_the_user_data_is_well_below_what_ec2_takes(disk: Disk) -> None:
    assert len(disk.user_data.encode()) < 12 * 1024


def test_every_key_is_handed_on_as_it_is(disk: Disk) -> None:
    keys = yaml.safe_load(disk.user_data)["ssh_authorized_keys"]
    assert len(keys) == 2
    assert keys[1].endswith(" me: 'here' # \"x\"")


@pytest.mark.parametrize(("deadline_s", "armed_s"), [(43200, "43200"), (0.7, "1"), (3600.2, "3601")])
def test_the_timer_is_written_started_without_waiting_for_it_and_nothing_is_switched_off(
    tmp_path: Path, deadline_s: float, armed_s: str
) -> None:
    disk = Disk(tmp_path, deadline_s=deadline_s).boot()
    assert f"\nOnBootSec={armed_s}\n" in (disk.units / "gpuops-deadline.timer").read_text()
    assert "DefaultDependencies=no" in (disk.units / "gpuops-deadline.timer").read_text()
    assert disk.calls == [
        "systemctl daemon-reload",
        "systemctl --no-block start gpuops-deadline.timer",
        "systemctl --no-block start gpuops-uptime.service",
    ]


@pytest.mark.parametrize("refused", ["daemon-reload", "start gpuops-deadline.timer"])
def test_a_machine_whose_deadline_cannot_be_armed_is_switched_off(tmp_path: Path, refused: str) -> None:
    disk = Disk(tmp_path, systemctl=f'{_STUB}case "$*" in *"{refused}") exit 1 ;; esac\n').boot()
    assert disk.calls[-1] == "systemctl poweroff"


def test_a_machine_whose_memory_disk_is_full_is_switched_off(disk: Disk) -> None:
    (disk.root / "run").touch()  # where a folder can't be made
    assert disk.boot().calls == ["systemctl poweroff"]


def test_a_machine_that_can_keep_no_log_is_armed_all_the_same(disk: Disk) -> None:
    (disk.root / "var").touch()
    assert "systemctl --no-block start gpuops-deadline.timer" in disk.boot().calls
    assert "systemctl poweroff" not in disk.calls


@pytest.mark.parametrize(
    "words",
    [
        ("arm",),
        ("arm", "-1"),
        ("arm", "1.5"),
        ("arm", "010"),
        ("arm", "1000000000"),
        ("arm", "5; reboot"),
        ("budget", ""),
        ("budget", "a[$(reboot)]"),
        ("every-boot", "-"),
        ("no-such-verb",),
        (),
    ],
)
def test_what_is_no_time_changes_nothing(disk: Disk, words: tuple[str, ...]) -> None:
    before = disk.boot().calls
    assert disk.machine("left").stdout == f"{_DEADLINE_S - 5} -\n"
    answer = disk.machine(*words)
    assert (answer.returncode, answer.stdout) == (64, "")
    assert "not understood" in answer.stderr
    assert disk.calls == before
    assert disk.machine("left").stdout == f"{_DEADLINE_S - 5} -\n"


def test_a_boot_script_that_runs_a_second_time_counts_nothing_twice(disk: Disk) -> None:
    disk.boot().machine("budget", "5000")
    assert disk.machine("left").stdout == "5000 5000\n"
    (disk.root / "var/lib/gpuops/total").write_text("65\n")  # as the uptime service keeps it
    disk.boot()
    assert disk.machine("left").stdout == "5000 5000\n"


@needs_keygen
def test_a_change_of_the_host_key_that_is_cut_off_anywhere_is_completed_by_the_next_try(tmp_path: Path) -> None:
    deaths = 0
    for verb in ("next-host-key", "switch-host-key"):
        for moment in ("before", "after"):
            call = 0
            while True:
                call += 1
                disk = Disk(tmp_path / f"{verb}-{moment}-{call}").boot().has_host_key()
                for program in ("ssh-keygen", "sync", "ln", "rm", "mv", "cut", "systemctl"):
                    disk.stub(program, _DEADLY)
                (disk.root / "die").write_text("0 never\n")
                promised = disk.machine("next-host-key").stdout.strip() if verb == "switch-host-key" else ""
                died = disk.dies(call, moment, verb)
                _assert_whole(disk, promised)
                following = disk.machine("next-host-key").stdout.strip()
                assert following == promised or not promised
                assert disk.machine("switch-host-key").returncode == 0
                assert disk.machine("next-host-key").stdout.strip() == following
                assert host_keys.public_key_line(disk.key) == following != disk.host_key.public_line
                assert disk.key.with_name(f"{disk.key.name}.pub").read_text().strip() == following
                assert disk.calls[-1] == "reload ssh"
                if not died:
                    break
                deaths += 1
    assert deaths > 12


def _assert_whole(disk: Disk, promised: str) -> None:
    """Whatever sshd reads now, it finds a key that clients accept, and no public file of another key."""
    shown = host_keys.public_key_line(disk.key)
    assert shown in {disk.host_key.public_line, promised}
    public = disk.key.with_name(f"{disk.key.name}.pub")
    assert not public.exists() or public.read_text().strip() == shown
