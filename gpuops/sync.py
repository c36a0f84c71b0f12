"""Which files go to a machine and come back, and how: rsync over ssh where both ends have it, else a tar stream."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from gpuops import transports
from gpuops.errors import BadData, DiskFull, MachineUnreachable, RemoteCommandFailed
from gpuops.transports import Transport

if TYPE_CHECKING:
    import pathspec

# rsync(1), exit values: an error in the protocol's stream, a time-out; and ssh's own, when it could not connect.
_RSYNC_LOST_ITS_LINE = {12, 30, 255}


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSet:
    """Files below `root`, by their relative paths, sorted; links stand for what they point to."""

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
    files = _file_set(root, [folder / name for folder, _, names in _walk(root) for name in names])
    if not files.paths:
        raise BadData(f"The data folder {root} is empty.", left_behind="Nothing was started.")
    return files


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How files travel to one machine: by rsync through `ssh -F config host`, or by tar through the open line."""

    line: Transport
    host: str
    rsync_config: Path | None

    @classmethod
    def find(cls, line: Transport, *, host: str, ssh_config: Path) -> Route:
        """rsync where this computer has rsync and ssh, and the machine has rsync."""
        here = shutil.which("rsync") and shutil.which("ssh")
        there = here and line.run(["sh", "-c", "command -v rsync"], check=False).exit_code == 0
        return cls(line=line, host=host, rsync_config=ssh_config if there else None)

    def push(self, files: FileSet, remote_dir: str) -> None:
        """Make `remote_dir` (relative to the home folder) hold these files. Raises `DiskFull`, `MachineUnreachable`."""
        doing = f"sending {len(files.paths):,} files"
        self.line.run(["mkdir", "-p", remote_dir])
        names = b"\0".join(os.fsencode(path) for path in files.paths)
        if self.rsync_config:
            # -L: a link's target goes, as links seldom point to the same place there.
            options = ["-rtL", "--partial", "--from0", "--files-from=-"]
            self._rsync([*options, f"{files.root.absolute()}/", f"{self.host}:{remote_dir}/"], names, doing)
            return
        packing = ["tar", "-C", str(files.root), "--null", "-T", "-", "-chf", "-"]
        with subprocess.Popen(packing, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as tar:
            assert tar.stdin and tar.stdout  # both were asked for
            _feed(tar, names)
            unpacking = self.line.pipe(
                ["tar", "-C", remote_dir, "-xof", "-"], source=cast(BinaryIO, tar.stdout), check=False
            )
        if tar.returncode != 0 or unpacking.exit_code != 0:
            self._raise(unpacking.stderr or "the files could not be packed", doing)

    def pull(self, remote_dir: str, local_dir: Path) -> None:
        """Bring `remote_dir` home; what is here already and whole is not sent again by rsync."""
        doing = f"fetching {remote_dir}"
        local_dir.mkdir(parents=True, exist_ok=True)
        if self.rsync_config:
            # -c: a file of the right size and time that is here may be damaged all the same.
            self._rsync(["-rtc", "--partial", f"{self.host}:{remote_dir}/", f"{local_dir.absolute()}/"], b"", doing)
            return
        with subprocess.Popen(["tar", "-C", str(local_dir), "-xof", "-"], stdin=subprocess.PIPE) as tar:
            assert tar.stdin  # it was asked for
            packing = self.line.pipe(
                ["tar", "-C", remote_dir, "-cf", "-", "."], sink=cast(BinaryIO, tar.stdin), check=False
            )
            tar.stdin.close()
        if tar.returncode != 0 or packing.exit_code != 0:
            self._raise(packing.stderr or "the files could not be unpacked here", doing)

    def _rsync(self, arguments: list[str], stdin: bytes, doing: str) -> None:
        shell = transports.quote(["ssh", "-F", str(self.rsync_config), "-o", "BatchMode=yes"])
        done = subprocess.run(["rsync", "-e", shell, *arguments], input=stdin, capture_output=True, check=False)
        if done.returncode != 0:
            broke = done.returncode in _RSYNC_LOST_ITS_LINE
            self._raise(done.stderr.decode("utf-8", "replace"), doing, broke=broke)

    def _raise(self, stderr: str, doing: str, *, broke: bool = False) -> None:
        tail = "\n".join(stderr.strip().splitlines()[-5:])
        if "No space left on device" in stderr or "Disk quota exceeded" in stderr:
            raise DiskFull(
                f"A disk is full: {tail}", next_step=f"See what fills the machine's: gpuops ssh {self.host} df -h"
            )
        if broke or not self.line.alive():
            raise MachineUnreachable(f"The line to {self.host} broke while {doing}: {tail}", next_step="gpuops status")
        raise RemoteCommandFailed(f"{doing} failed: {tail}", next_step="Try again: what arrived is kept.")


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
