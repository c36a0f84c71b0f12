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


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSet:
    """Files below `root`, by their relative paths, sorted; links stand for what they point to."""

    root: Path
    paths: tuple[str, ...]
    bytes: int
    ignored: int = 0

    def digest(self) -> str:
        """SHA-256 over every path and its content: what was shipped, and nothing else."""
        whole = hashlib.sha256()
        for path in self.paths:
            content = (self.root / path).read_bytes()
            whole.update(f"{path}\0{len(content)}\0".encode() + content)
        return whole.hexdigest()

    def listing_digest(self) -> str:
        """SHA-256 over every path, size and modification time: as good for a data folder, without reading it all."""
        whole = hashlib.sha256()
        for path in self.paths:
            status = (self.root / path).stat()
            whole.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
        return whole.hexdigest()


def code(root: Path) -> FileSet:
    """A folder of code: what its .gitignore files leave out stays here, and so does .git."""
    rules: dict[Path, pathspec.GitIgnoreSpec] = {}
    chosen, ignored = [], 0
    for path in _files(root):
        if _is_ignored(root, path, rules):
            ignored += 1
        else:
            chosen.append(path)
    return _file_set(root, chosen, ignored)


def data(root: Path) -> FileSet:
    """A folder of data: everything in it. Raises `BadData` where it is missing, empty or can't be read."""
    if not root.is_dir():
        raise BadData(f"There is no data folder {root}.", left_behind="Nothing was started.")
    files = _file_set(root, list(_files(root)), 0)
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
        self.line.run(["mkdir", "-p", remote_dir])
        names = b"\0".join(path.encode() for path in files.paths)
        if self.rsync_config:
            # -L: a link's target goes, as links seldom point to the same place there.
            options = ["-rtL", "--partial", "--from0", "--files-from=-"]
            self._rsync([*options, f"{files.root}/", f"{self.host}:{remote_dir}/"], names)
            return
        packing = ["tar", "-C", str(files.root), "--null", "-T", "-", "-chf", "-"]
        with subprocess.Popen(packing, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as tar:
            assert tar.stdin and tar.stdout  # both were asked for
            _feed(tar, names)
            unpacking = self.line.pipe(
                ["tar", "-C", remote_dir, "-xf", "-"], source=cast(BinaryIO, tar.stdout), check=False
            )
        if tar.returncode != 0 or unpacking.exit_code != 0:
            self._raise(unpacking.stderr or "the files could not be packed", f"sending {len(files.paths)} files")

    def pull(self, remote_dir: str, local_dir: Path) -> None:
        """Bring `remote_dir` home; what is there already and whole is not sent again by rsync."""
        local_dir.mkdir(parents=True, exist_ok=True)
        if self.rsync_config:
            self._rsync(["-rt", "--partial", f"{self.host}:{remote_dir}/", f"{local_dir}/"], b"")
            return
        with subprocess.Popen(["tar", "-C", str(local_dir), "-xf", "-"], stdin=subprocess.PIPE) as tar:
            assert tar.stdin  # it was asked for
            packing = self.line.pipe(
                ["tar", "-C", remote_dir, "-cf", "-", "."], sink=cast(BinaryIO, tar.stdin), check=False
            )
            tar.stdin.close()
        if tar.returncode != 0 or packing.exit_code != 0:
            self._raise(packing.stderr or "the files could not be unpacked here", f"fetching {remote_dir}")

    def _rsync(self, arguments: list[str], stdin: bytes) -> None:
        shell = transports.quote(["ssh", "-F", str(self.rsync_config), "-o", "BatchMode=yes"])
        done = subprocess.run(["rsync", "-e", shell, *arguments], input=stdin, capture_output=True, check=False)
        if done.returncode != 0:
            self._raise(done.stderr.decode("utf-8", "replace"), "rsync")

    def _raise(self, stderr: str, doing: str) -> None:
        tail = "\n".join(stderr.strip().splitlines()[-5:])
        if "No space left on device" in stderr or "Disk quota exceeded" in stderr:
            raise DiskFull(
                f"A disk is full: {tail}", next_step=f"See what fills the machine's: gpuops ssh {self.host} df -h"
            )
        if not self.line.alive():
            raise MachineUnreachable(f"The line to {self.host} broke while {doing}: {tail}", next_step="gpuops status")
        raise RemoteCommandFailed(f"{doing} failed: {tail}", next_step="Try again: what arrived is kept.")


def _files(root: Path) -> Iterator[str]:
    """Relative paths of all files below `root`, folders behind links included, sorted. Raises `BadData`."""

    def refuse(error: OSError) -> None:
        raise BadData(f"{error.filename} can't be read: {error.strerror}.", left_behind="Nothing was started.")

    found = []
    for folder, folders, names in os.walk(root, onerror=refuse, followlinks=True):
        folders.sort()
        found += [(Path(folder) / name).relative_to(root).as_posix() for name in names]
    yield from sorted(found)


def _file_set(root: Path, paths: list[str], ignored: int) -> FileSet:
    try:
        total = sum((root / path).stat().st_size for path in paths)
    except OSError as error:
        raise BadData(
            f"{error.filename} can't be read: {error.strerror}.", left_behind="Nothing was started."
        ) from error
    return FileSet(root=root, paths=tuple(paths), bytes=total, ignored=ignored)


def _is_ignored(root: Path, path: str, rules: dict[Path, pathspec.GitIgnoreSpec]) -> bool:
    """Whether a .gitignore between `root` and the file leaves it out, the nearest one having the last word."""
    import pathspec

    parts = Path(path).parts
    if ".git" in parts:
        return True
    verdict = False
    for depth in range(len(parts)):
        folder = root.joinpath(*parts[:depth])
        if folder not in rules:
            file = folder / ".gitignore"
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
            rules[folder] = pathspec.GitIgnoreSpec.from_lines(lines)
        result = rules[folder].check_file("/".join(parts[depth:]))
        if result.include is not None:
            verdict = result.include
    return verdict


def _feed(tar: subprocess.Popen[bytes], names: bytes) -> None:
    def write() -> None:
        assert tar.stdin
        with contextlib.suppress(BrokenPipeError):  # tar has ended; its exit code says why
            tar.stdin.write(names)
            tar.stdin.close()

    threading.Thread(target=write, daemon=True).start()
