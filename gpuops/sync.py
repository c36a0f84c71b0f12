"""Which files go to a machine and come back, and how: rsync over ssh where both ends have it, else a tar stream."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NoReturn, cast

from gpuops import openssh, transports
from gpuops.errors import BadData, DiskFull, GpuopsError, MachineUnreachable, RemoteCommandFailed
from gpuops.openssh import Access
from gpuops.transports import Transport

if TYPE_CHECKING:
    import pathspec

# rsync(1), exit values: errors of the socket and of the stream, a time-out; and ssh's own.
_RSYNC_LOST_ITS_LINE = {10, 12, 30, 255}
# The system's words for it, and GNU tar's when a part of the data still found room.
_DISK_FULL = ("No space left on device", "Disk quota exceeded", "Wrote only")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSet:
    """Files below `root`, by their relative paths, sorted; links stand for what they point to.

    A path that ends in "/" is a folder without anything in it: it may mean something, such as a class with no images.
    """

    root: Path
    paths: tuple[str, ...]
    bytes: int

    def digest(self) -> str:
        """SHA-256 over every path and its content: what was shipped, and nothing else."""
        whole = hashlib.sha256()
        for path in self.paths:
            content = (self.root / path).read_bytes()
            whole.update(os.fsencode(f"{path}\0{len(content)}\0") + content)
        return whole.hexdigest()

    def listing_digest(self) -> str:
        """SHA-256 over every path, size and modification time: as good for a data folder, without reading it all."""
        whole = hashlib.sha256()
        for path in self.paths:
            status = (self.root / path).stat()
            whole.update(os.fsencode(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0"))
        return whole.hexdigest()


def code(root: Path) -> FileSet:
    """A folder of code: what its .gitignore files leave out stays here, and so does .git. Raises `BadData`."""
    rules: dict[Path, pathspec.GitIgnoreSpec] = {}
    chosen = []
    for folder, folders, names in _walk(root):
        rules[folder] = _rules(folder)
        # An ignored folder is not looked into: as with git, nothing in it can be let in again.
        folders[:] = [name for name in folders if not _is_ignored(folder / name, "/", root, rules)]
        chosen += [folder / name for name in names if not _is_ignored(folder / name, "", root, rules)]
    return _file_set(root, chosen)


def data(root: Path) -> FileSet:
    """A folder of data: everything in it. Raises `BadData` where it is missing, empty or can't be read."""
    if not root.is_dir():
        raise BadData(f"There is no data folder {root}.", left_behind="Nothing was started.")
    found, empty = [], []
    for folder, folders, names in _walk(root):
        found += [folder / name for name in names]
        if not folders and not names:
            empty.append(f"{folder.relative_to(root).as_posix()}/")
    files = _file_set(root, found)
    files = replace(files, paths=tuple(sorted((*files.paths, *empty))))
    if not found:
        raise BadData(f"The data folder {root} is empty.", left_behind="Nothing was started.")
    return files


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How files travel to one machine: by rsync through OpenSSH's `ssh host`, or by tar through the open line."""

    line: Transport
    host: str
    rsync_access: Access | None

    @classmethod
    def find(cls, line: Transport, *, host: str, access: Access) -> Route:
        """rsync where this computer has rsync and ssh, and the machine has rsync."""
        here = openssh.is_there("rsync") and openssh.is_there()
        there = here and line.run(["sh", "-c", "command -v rsync"], check=False).exit_code == 0
        return cls(line=line, host=host, rsync_access=access if there else None)

    def push(self, files: FileSet, remote_dir: str) -> None:
        """Make `remote_dir` (relative to the home folder) hold these files. Raises `DiskFull`, `MachineUnreachable`."""
        doing = f"Sending {len(files.paths):,} files"
        self.line.run(["mkdir", "-p", remote_dir])
        # "./": else rsync passes over a name that begins with # or ;, although names end with a zero byte here.
        names = b"\0".join(os.fsencode(f"./{path}") for path in files.paths)
        if self.rsync_access:
            # -L: a link's target goes, as links seldom point to the same place there.
            options = ["-rtL", "--partial", "--from0", "--files-from=-"]
            self._rsync([*options, f"{files.root.absolute()}/", f"{self.host}:{remote_dir}/"], names, doing, remote_dir)
            return
        packing = ["tar", "-C", str(files.root.absolute()), "--no-recursion", "--null", "-T", "-", "-chf", "-"]
        with tempfile.TemporaryFile() as said:
            with subprocess.Popen(packing, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said) as tar:
                assert tar.stdin and tar.stdout  # both were asked for
                _feed(tar, names)
                unpacking = self.line.pipe(
                    ["tar", "-C", remote_dir, "-xof", "-"], source=cast(BinaryIO, tar.stdout), check=False
                )
            if tar.returncode != 0 or unpacking.exit_code != 0:
                self._raise(unpacking.stderr + _text(said), doing, remote_dir)

    def pull(self, remote_dir: str, local_dir: Path) -> None:
        """Bring `remote_dir` home; what is here already and whole is not sent again by rsync."""
        doing = f"Fetching {remote_dir}"
        local_dir.mkdir(parents=True, exist_ok=True)
        if self.rsync_access:
            # -c: a file of the right size and time that is here may be damaged all the same.
            self._rsync(["-rtc", "--partial", f"{self.host}:{remote_dir}/", f"{local_dir.absolute()}/"], b"", doing)
            return
        unpacking = ["tar", "-C", str(local_dir.absolute()), "-xof", "-"]
        packing = None
        with tempfile.TemporaryFile() as said:
            # Where tar here gives up, the pipe to it breaks, and it says why.
            with (
                contextlib.suppress(BrokenPipeError),
                subprocess.Popen(unpacking, stdin=subprocess.PIPE, stderr=said) as tar,
            ):
                assert tar.stdin  # it was asked for
                sink = cast(BinaryIO, tar.stdin)
                packing = self.line.pipe(["tar", "-C", remote_dir, "-cf", "-", "."], sink=sink, check=False)
            if tar.returncode != 0 or packing is None or packing.exit_code != 0:
                self._raise((packing.stderr if packing else "") + _text(said), doing)

    def _rsync(self, arguments: list[str], stdin: bytes, doing: str, remote_dir: str = "") -> None:
        assert self.rsync_access  # only then it is rsync that goes
        shell = transports.quote(["ssh", *self.rsync_access.words, *openssh.UNATTENDED])
        done = subprocess.run(["rsync", "-e", shell, *arguments], input=stdin, capture_output=True, check=False)
        if done.returncode != 0:
            said = done.stderr.decode("utf-8", "replace") or f"rsync exited with {done.returncode}"
            self._raise(said, doing, remote_dir, broke=done.returncode in _RSYNC_LOST_ITS_LINE)

    def _raise(self, said: str, doing: str, remote_dir: str = "", *, broke: bool = False) -> NoReturn:
        """`remote_dir` is the folder on the machine that was written to, if it was there."""
        tail = "\n".join(said.strip().splitlines()[-5:])
        disk, look = (
            (f"The disk of {self.host}", f"gpuops ssh {self.host} df -h") if remote_dir else ("The disk", "df -h")
        )
        if any(words in said for words in _DISK_FULL) or (remote_dir and self._is_full(remote_dir)):
            raise DiskFull(
                f"{disk} is full. {doing} ended with: {tail}",
                left_behind="What arrived is kept.",
                next_step=f"See what fills it: {look}",
            )
        if broke or not self.line.alive():
            raise MachineUnreachable(f"{doing}: the line to {self.host} broke: {tail}", next_step="gpuops status")
        raise RemoteCommandFailed(f"{doing} failed: {tail}", next_step="Try again: what arrived is kept.")

    def _is_full(self, remote_dir: str) -> bool:
        """rsync's receiver can't always say so before it ends."""
        try:
            rows = self.line.run(["df", "-Pk", remote_dir], check=False, timeout_s=10).stdout.splitlines()
            return int(rows[1].split()[-3]) == 0
        except (GpuopsError, LookupError, ValueError):
            return False


def _text(said: BinaryIO) -> str:
    said.seek(0)
    return said.read().decode("utf-8", "replace")


def _walk(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """As os.walk, through links too: each folder, and in it the folders (take out what to pass over) and the files.

    Raises `BadData`.
    """

    def refuse(error: OSError) -> None:
        raise _unreadable(error.filename, error.strerror)

    for name, folders, names in os.walk(root, onerror=refuse, followlinks=True):
        folder = Path(name)
        for link in filter(Path.is_symlink, (folder / child for child in folders)):
            if folder.resolve().is_relative_to(link.resolve()):
                raise _unreadable(link, "it is a link to a folder that it lies in")
        yield folder, folders, names


def _file_set(root: Path, files: list[Path]) -> FileSet:
    total = 0
    for file in files:
        try:
            total += file.stat().st_size
        except OSError as error:
            raise _unreadable(file, error.strerror) from error
        if not os.access(file, os.R_OK):
            raise _unreadable(file, "permission denied")
    return FileSet(root=root, paths=tuple(sorted(file.relative_to(root).as_posix() for file in files)), bytes=total)


def _unreadable(path: object, reason: str | None) -> BadData:
    return BadData(f"{path} can't be read: {reason}.", left_behind="Nothing was started.")


def _rules(folder: Path) -> pathspec.GitIgnoreSpec:
    import pathspec

    file = folder / ".gitignore"
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    return pathspec.GitIgnoreSpec.from_lines(lines)


def _is_ignored(path: Path, mark: str, root: Path, rules: dict[Path, pathspec.GitIgnoreSpec]) -> bool:
    """Whether a .gitignore from its folder up to `root` leaves it out: the last rule of the nearest that has one.

    `mark` is "/" for a folder, as some rules are for folders only.
    """
    if path.name == ".git":
        return True
    for folder in path.parents:
        for rule in reversed(rules[folder].patterns):
            if rule.include is not None and _is_about(rule, path.relative_to(folder), mark):
                return rule.include
        if folder == root:
            break
    return False


def _is_about(rule: pathspec.Pattern, path: Path, mark: str) -> bool:
    """Whether the rule is about this very file or folder, and not about one above it: those have been judged."""
    if not rule.match_file(f"{path.as_posix()}{mark}"):
        return False
    by_its_folder = len(path.parts) > 1 and rule.match_file(f"{path.parent.as_posix()}/")
    return not by_its_folder or bool(rule.match_file(f"{path.name}{mark}"))


def _feed(tar: subprocess.Popen[bytes], names: bytes) -> None:
    def write() -> None:
        assert tar.stdin
        with contextlib.suppress(BrokenPipeError):  # tar has ended; its exit code says why
            tar.stdin.write(names)
            tar.stdin.close()

    threading.Thread(target=write, daemon=True).start()
