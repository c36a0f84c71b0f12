"""Which files go and how: against git's own opinion, real rsync and tar, and a real ssh server."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpuops import sync
from gpuops.errors import BadData, DiskFull, MachineUnreachable, RemoteCommandFailed
from gpuops.openssh import Access
from gpuops.sync import Route
from gpuops.transports.ssh import SshTransport
from tests.computers import until
from tests.transports.servers import Server, Wire, serving, why_not

needs_git = pytest.mark.skipif(not shutil.which("git"), reason="there is no git here")
needs_rsync = pytest.mark.skipif(
    not shutil.which("rsync") or not shutil.which("ssh"), reason="there is no rsync, or no ssh, here"
)

# What shells, argument parsers, rsync's lists and tar's lists each read as something else.
_WEIRD_NAMES = (
    "-rf",
    "--delete",
    "-C",
    " blank ",
    "new\nline",
    "quote'quote\"",
    "back\\slash\\n",
    "$HOME `id` $(id)",
    "*",
    "[a]?",
    "#comment",
    ";comment",
    "a:b",
    "été 日本 🙂",
    ".hidden",
    ".gitignore",
    "~",
    "@file",
)


# Code


def _git_tree(rng: random.Random, folder: Path, *, depth: int = 0) -> None:
    names = ["a", "b", "build", "dist", "x.py", "x.pyc", "é", "#c", "!d", "sp ace"]
    for name in rng.sample(names, rng.randint(2, 4)):
        if depth < 3 and "." not in name and rng.random() < 0.55:
            (folder / name).mkdir()
            _git_tree(rng, folder / name, depth=depth + 1)
        else:
            (folder / name).write_text(name)
    if rng.random() < (0.9 if depth == 0 else 0.3):
        anywhere = [
            "a",
            "a/",
            "*",
            "**",
            "*/",
            "*.pyc",
            "[ab]",
            "d?st",
            "build/",
            "é",
            "\\#c",
            "\\!d",
            "sp ace",
            "x.*  ",
        ]
        anchored = ["/a", "/a/", "a/b", "b/*", "b/**", "**/b", "a/**/b", "/build/*", "dist/*.py"]
        back_in = ["!a", "!*/", "!*.pyc", "!x.py", "!build/", "!a/b", "!/a/b/", "!b/a", "!/build/x.py"]
        rules = rng.choices([*anywhere, *anchored, *back_in, "", "# comment"], k=rng.randint(1, 5))
        (folder / ".gitignore").write_text("\n".join(rules) + "\n")


@needs_git
@pytest.mark.parametrize("seed", range(40))
def test_code_leaves_out_what_git_leaves_out(tmp_path: Path, seed: int) -> None:
    _git_tree(random.Random(seed), tmp_path)
    no_settings = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    subprocess.run(["git", "init", "-q", tmp_path], check=True, env=no_settings)
    listing = ["git", "-C", tmp_path, "ls-files", "-z", "--others", "--exclude-standard"]
    by_git = subprocess.run(listing, check=True, capture_output=True, env=no_settings).stdout.decode().split("\0")
    assert list(sync.code(tmp_path).paths) == sorted(filter(None, by_git))


def test_code_knows_nothing_of_gits_own_folder(tmp_path: Path) -> None:
    _write(tmp_path, {".git/HEAD": b"", "sub/.git": b"gitdir: elsewhere", "sub/x.py": b""})
    assert sync.code(tmp_path).paths == ("sub/x.py",)


def test_an_ignored_folder_is_not_looked_into(tmp_path: Path) -> None:
    _write(tmp_path, {".gitignore": b"/cache/\n", "x.py": b""})
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "up").symlink_to("..", target_is_directory=True)  # elsewhere it would be refused
    assert sync.code(tmp_path).paths == (".gitignore", "x.py")


# Data


def test_data_ignores_nothing(tmp_path: Path) -> None:
    files = {f"deep/{name}": name.encode() for name in _WEIRD_NAMES}
    files |= {".gitignore": b"*\n", ".git/HEAD": b"", "__pycache__/x.pyc": b"", "a~": b""}
    _write(tmp_path, files)
    chosen = sync.data(tmp_path)
    assert chosen.paths == tuple(sorted(files))
    assert chosen.bytes == sum(map(len, files.values()))


def test_links_stand_for_what_they_point_to(tmp_path: Path) -> None:
    _write(tmp_path, {"real/cats/1.jpg": b"cat", "data/own.txt": b"own"})
    (tmp_path / "data" / "cats").symlink_to("../real/cats", target_is_directory=True)
    (tmp_path / "data" / "one.jpg").symlink_to("../real/cats/1.jpg")
    chosen = sync.data(tmp_path / "data")
    assert chosen.paths == ("cats/1.jpg", "one.jpg", "own.txt")
    assert chosen.bytes == 9


def _missing(folder: Path) -> None:
    folder.rmdir()


def _a_file(folder: Path) -> None:
    folder.rmdir()
    folder.write_text("")


def _broken_link(folder: Path) -> None:
    (folder / "gone.jpg").symlink_to("nowhere")


def _endless(folder: Path) -> None:
    _write(folder, {"a/b/file": b""})
    (folder / "a" / "b" / "up").symlink_to("../..", target_is_directory=True)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_missing, "There is no data folder .*here"),
        (_a_file, "There is no data folder .*here"),
        (lambda folder: None, "here is empty"),
        (lambda folder: (folder / "only").mkdir(), "here is empty"),
        (_broken_link, "gone.jpg can't be read: No such file"),
        (_endless, "a/b/up can't be read: it is a link to a folder that it lies in"),
    ],
    ids=["missing", "a file", "empty", "only folders", "a broken link", "a link upwards"],
)
def test_a_data_folder_that_will_not_do_is_refused_by_name(
    tmp_path: Path, spoil: Callable[[Path], object], says: str
) -> None:
    (tmp_path / "here").mkdir()
    spoil(tmp_path / "here")
    with pytest.raises(BadData, match=says) as refused:
        sync.data(tmp_path / "here")
    assert refused.value.left_behind == "Nothing was started."


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["closed", "closed/file"])
def test_data_that_may_not_be_read_is_refused_by_name(tmp_path: Path, name: str) -> None:
    _write(tmp_path, {"closed/file": b""})
    (tmp_path / name).chmod(0)
    try:
        with pytest.raises(BadData, match=f"{name} can't be read: [Pp]ermission denied"):
            sync.data(tmp_path)
    finally:
        (tmp_path / name).chmod(0o700)


def test_a_digest_changes_with_every_name_and_every_byte(tmp_path: Path) -> None:
    trees: list[dict[str, bytes]] = [{"a": b"x"}, {"b": b"x"}, {"a": b"y"}, {"a": b"x", "b": b""}, {"a": b"", "x": b""}]
    digests = set()
    for number, files in enumerate(trees):
        _write(tmp_path / str(number), files)
        digests.add(sync.data(tmp_path / str(number)).digest())
    assert len(digests) == len(trees)
    _write(tmp_path / "again", trees[0])
    assert sync.data(tmp_path / "again").digest() in digests


def test_a_listing_digest_needs_no_reading_and_changes_with_a_files_size_and_time(tmp_path: Path) -> None:
    _write(tmp_path, {"a": b"x", "b": b"x"})
    first = sync.data(tmp_path).listing_digest()
    assert sync.data(tmp_path).listing_digest() == first
    os.utime(tmp_path / "a", (1, 1))
    second = sync.data(tmp_path).listing_digest()
    (tmp_path / "b").write_bytes(b"xy")
    assert len({first, second, sync.data(tmp_path).listing_digest()}) == 3


# Over a real line


@pytest.fixture(scope="module", params=["asyncssh", "openssh"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if reason := why_not(request.param):
        pytest.skip(reason)
    with serving(request.param, tmp_path_factory.mktemp(request.param)) as server:
        yield server


@pytest.fixture(scope="module")
def line(server: Server) -> Iterator[SshTransport]:
    with SshTransport.connect(server.machine(), identity_file=server.client_key, connect_timeout_s=10) as line:
        yield line


def _ssh_config(folder: Path, server: Server, *, port: int | None = None) -> Path:
    """An entry `fastai`, as gpuops writes it."""
    host = server.address.host if port is None else "127.0.0.1"
    known_hosts, config = folder / "known_hosts", folder / "ssh_config"
    known_hosts.write_text(f"fastai {server.public_keys['ssh-ed25519']}\n")
    config.write_text(
        f"Host fastai\n HostName {host}\n Port {port or server.address.port}\n User {server.address.user}\n"
        f' IdentityFile "{server.client_key}"\n IdentitiesOnly yes\n IdentityAgent none\n HostKeyAlias fastai\n'
        f' UserKnownHostsFile "{known_hosts}"\n StrictHostKeyChecking yes\n'
    )
    return config


@pytest.fixture(params=["rsync", "tar"])
def route(request: pytest.FixtureRequest, server: Server, line: SshTransport, tmp_path: Path) -> Route:
    if request.param == "tar":
        return Route(line=line, host="fastai", rsync_access=None)
    if not shutil.which("rsync") or not shutil.which("ssh"):
        pytest.skip("there is no rsync, or no ssh, here")
    return Route(line=line, host="fastai", rsync_access=Access(config=_ssh_config(tmp_path, server)))


@pytest.fixture
def remote_dir(server: Server, tmp_path: Path) -> str:
    """A folder of the machine's, relative to its home, that isn't there yet."""
    return f"gpuops/data/{tmp_path.name}"


def test_what_is_pushed_and_pulled_again_is_the_same_tree(
    server: Server, route: Route, tmp_path: Path, remote_dir: str
) -> None:
    files = {name: random.Random(name).randbytes(999) for name in _WEIRD_NAMES}
    files |= {f"deep/{name}/{name}": name.encode() for name in _WEIRD_NAMES}
    files |= {"empty": b"", "big": random.Random(1).randbytes(3_000_000)}
    _write(tmp_path / "here", files)
    (tmp_path / "here" / "link").symlink_to("big")
    (tmp_path / "here" / "deep" / "class without images").mkdir()
    route.push(sync.data(tmp_path / "here"), remote_dir)
    assert _tree(server.home / remote_dir) == files | {"link": files["big"]}
    assert not (server.home / remote_dir / "link").is_symlink()
    assert (server.home / remote_dir / "deep" / "class without images").is_dir()
    route.pull(remote_dir, tmp_path / "back")
    assert _tree(tmp_path / "back") == files | {"link": files["big"]}


def test_only_the_chosen_files_go(server: Server, route: Route, tmp_path: Path, remote_dir: str) -> None:
    _write(tmp_path / "here", {".gitignore": b"*.log\n", "deep/x.py": b"x", "deep/x.log": b"", "y.log": b""})
    route.push(sync.code(tmp_path / "here"), remote_dir)
    assert _tree(server.home / remote_dir) == {".gitignore": b"*.log\n", "deep/x.py": b"x"}


def test_pushing_again_completes_what_an_earlier_push_left_half_done(
    server: Server, route: Route, tmp_path: Path, remote_dir: str
) -> None:
    files = {"a": b"a" * 200_000, "b": b"b" * 1000, "c": b"c"}
    _write(tmp_path / "here", files)
    _write(server.home / remote_dir, {"a": b"a" * 70_001, "b": b""})
    route.push(sync.data(tmp_path / "here"), remote_dir)
    assert _tree(server.home / remote_dir) == files


def test_pulling_again_mends_what_is_here_in_part_or_damaged_under_its_old_time(
    server: Server, route: Route, tmp_path: Path, remote_dir: str
) -> None:
    files = {"log.txt": b"0123456789" * 1000, "weights": b"w" * 5000}
    _write(server.home / remote_dir, files)
    route.pull(remote_dir, tmp_path / "home")
    (tmp_path / "home" / "log.txt").write_bytes(files["log.txt"][:77])
    before = (tmp_path / "home" / "weights").stat()
    (tmp_path / "home" / "weights").write_bytes(b"W" + files["weights"][1:])
    os.utime(tmp_path / "home" / "weights", ns=(before.st_atime_ns, before.st_mtime_ns))
    route.pull(remote_dir, tmp_path / "home")
    assert _tree(tmp_path / "home") == files


@needs_rsync
def test_rsync_is_taken_where_both_ends_have_it(server: Server, line: SshTransport, tmp_path: Path) -> None:
    config = _ssh_config(tmp_path, server)
    assert Route.find(line, host="fastai", access=Access(config=config)).rsync_access == Access(config=config)


def test_tar_is_taken_where_this_computer_has_no_rsync(
    server: Server, line: SshTransport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remote_dir: str
) -> None:
    monkeypatch.setenv("PATH", str(_programs_but_rsync(tmp_path)))
    route = Route.find(line, host="fastai", access=Access(config=tmp_path / "not needed"))
    assert route.rsync_access is None
    _write(tmp_path / "here", {"a": b"a"})
    route.push(sync.data(tmp_path / "here"), remote_dir)
    assert _tree(server.home / remote_dir) == {"a": b"a"}


def test_tar_is_taken_where_the_machine_has_no_rsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as machine:
        machine.setenv("PATH", str(_programs_but_rsync(tmp_path)))
        serves = serving("asyncssh", tmp_path / "machine")
        server = serves.__enter__()
    try:
        with SshTransport.connect(server.machine(), identity_file=server.client_key, connect_timeout_s=10) as line:
            route = Route.find(line, host="fastai", access=Access(config=_ssh_config(tmp_path, server)))
            assert route.rsync_access is None
            _write(tmp_path / "here", {"a": b"a"})
            route.push(sync.data(tmp_path / "here"), "there")
            assert _tree(server.home / "there") == {"a": b"a"}
    finally:
        serves.__exit__(None, None, None)


def test_a_full_disk_on_the_machine_is_told_as_such(
    server: Server, route: Route, tmp_path: Path, remote_dir: str
) -> None:
    _write(tmp_path / "here", {"big": bytes(3_000_000)})
    with (
        _small_disk(server.home / "gpuops" / "data"),
        pytest.raises(DiskFull, match="The disk of fastai is full") as told,
    ):
        route.push(sync.data(tmp_path / "here"), remote_dir)
    assert told.value.next_step == "See what fills it: gpuops ssh fastai df -h"


def test_a_full_disk_here_is_told_as_such(server: Server, route: Route, tmp_path: Path, remote_dir: str) -> None:
    _write(server.home / remote_dir, {"big": bytes(3_000_000)})
    with _small_disk(tmp_path / "disk"), pytest.raises(DiskFull, match=r"^The disk is full") as told:
        route.pull(remote_dir, tmp_path / "disk" / "home")
    assert told.value.next_step == "See what fills it: df -h"


def test_a_line_that_breaks_in_the_middle_is_told_and_the_next_push_completes_it(
    server: Server, tmp_path: Path, remote_dir: str
) -> None:
    _write(tmp_path / "here", {"big": bytes(200_000_000)})
    wire = Wire(server.address)
    with SshTransport.connect(
        server.machine(ssh=wire.address), identity_file=server.client_key, connect_timeout_s=10
    ) as line:
        cutting = _cut_when_some_has_arrived(wire, server.home / remote_dir)
        with pytest.raises((MachineUnreachable, RemoteCommandFailed)):
            Route(line=line, host="fastai", rsync_access=None).push(sync.data(tmp_path / "here"), remote_dir)
        cutting.join()
    assert (server.home / remote_dir / "big").stat().st_size < 200_000_000


@needs_rsync
def test_a_broken_line_of_rsyncs_own_counts_as_the_machine_being_out_of_reach(
    server: Server, line: SshTransport, tmp_path: Path, remote_dir: str
) -> None:
    """Ours is still up then, or not yet known to be down: `train` shall try again, not give up."""
    _write(tmp_path / "here", {"big": random.Random(1).randbytes(1_000_000) * 200})
    wire = Wire(server.address)
    route = Route(
        line=line, host="fastai", rsync_access=Access(config=_ssh_config(tmp_path, server, port=wire.address.port))
    )
    cutting = _cut_when_some_has_arrived(wire, server.home / remote_dir)
    with pytest.raises(MachineUnreachable, match="Sending 1 files: the line to fastai broke"):
        route.push(sync.data(tmp_path / "here"), remote_dir)
    cutting.join()
    whole = Route(line=line, host="fastai", rsync_access=Access(config=_ssh_config(tmp_path, server)))
    whole.push(sync.data(tmp_path / "here"), remote_dir)
    assert (server.home / remote_dir / "big").stat().st_size == 200_000_000


@needs_rsync
def test_a_machine_that_rsync_does_not_reach_is_told_as_out_of_reach(
    server: Server, line: SshTransport, tmp_path: Path
) -> None:
    _write(tmp_path / "here", {"a": b"a"})
    config = _ssh_config(tmp_path, server)
    config.write_text(config.read_text().replace(f"Port {server.address.port}", "Port 1"))
    with pytest.raises(MachineUnreachable, match="Connection refused"):
        Route(line=line, host="fastai", rsync_access=Access(config=config)).push(sync.data(tmp_path / "here"), "there")


def test_a_file_that_vanishes_while_it_is_sent_is_told(route: Route, tmp_path: Path, remote_dir: str) -> None:
    _write(tmp_path / "here", {"a": b"a", "b": b"b"})
    files = sync.data(tmp_path / "here")
    (tmp_path / "here" / "a").unlink()
    with pytest.raises(RemoteCommandFailed, match=r"Sending 2 files failed: .*a"):
        route.push(files, remote_dir)


def _write(root: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def _tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def _programs_but_rsync(folder: Path) -> Path:
    """A folder for the PATH with what a small system has."""
    programs = folder / "programs"
    programs.mkdir()
    for name in ("bash", "sh", "cat", "mkdir", "tar", "test", "touch", "tail", "pwd", "ssh"):
        if found := shutil.which(name):
            (programs / name).symlink_to(found)
    return programs


class _small_disk:
    """A file system of 1 MB at this folder; skips the test where none can be mounted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=777", "tmpfs", str(self._folder)]
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
            pytest.skip("no file system can be mounted here")

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "--lazy", str(self._folder)], check=True)


def _cut_when_some_has_arrived(wire: Wire, folder: Path) -> threading.Thread:
    def some_has_arrived() -> bool:
        return any(path.stat().st_size > 0 for path in folder.glob("*") if path.is_file())

    def cut() -> None:
        until(some_has_arrived, "some of it has arrived")
        wire.cut()

    cutting = threading.Thread(target=cut)
    cutting.start()
    return cutting
