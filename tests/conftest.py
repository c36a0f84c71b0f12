"""What every test stands on: a guard around the person's own files and the network, a cloud, and computers using it."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

_STARTUP = Path(__file__).resolve().parent / "startup"
sys.path.insert(0, str(_STARTUP))

import suite_guard  # noqa: E402


def _protect() -> Path:
    """A home folder of the suite's own, and none of the person's settings; before anything is imported."""
    os.environ.setdefault(suite_guard.FOLDERS, os.pathsep.join(suite_guard.private_folders(dict(os.environ))))
    for name in list(os.environ):
        if name.startswith(("AWS_", "GPUOPS_", "XDG_")):
            del os.environ[name]
    home = Path(tempfile.mkdtemp(prefix="gpuops-tests-home."))
    report = home / "touched"
    os.environ |= {
        "HOME": str(home),
        "AWS_EC2_METADATA_DISABLED": "true",
        "PYTHONPATH": str(_STARTUP),
        "HYPOTHESIS_STORAGE_DIRECTORY": str(home / "hypothesis"),
        suite_guard.REPORT: str(report),
    }
    suite_guard.install()
    return home


_HOME = _protect()
_FOLDERS = os.environ[suite_guard.FOLDERS].split(os.pathsep)


_SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large)
settings.register_profile(
    "suite", max_examples=200, derandomize=True, deadline=None, database=None, suppress_health_check=_SLOW
)
settings.register_profile(
    "soak", max_examples=10_000, deadline=None, database=None, print_blob=True, suppress_health_check=_SLOW
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))


def pytest_unconfigure() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(autouse=True)
def _guard() -> Iterator[None]:
    """Fails the test that touches the person's files or an address that is not this computer's."""
    before = suite_guard.listing(_FOLDERS)
    yield
    report = _HOME / "touched"
    touched = report.read_text() if report.exists() else ""
    report.unlink(missing_ok=True)
    assert not touched, f"This test reached for what it must not touch:\n{touched}"
    assert suite_guard.listing(_FOLDERS) == before, "This test changed files of the person who runs it."


from tests.computers import BOOT_S, Cloud, Computer  # noqa: E402  # only now: it imports gpuops

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def _cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    from gpuops import sandbox

    folder = tmp_path_factory.mktemp("cloud")
    cloud = Cloud(sandbox.start(folder, boot_seconds=BOOT_S))
    yield cloud
    cloud.close()
    sandbox.stop(folder)


@pytest.fixture
def the_cloud(_cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """This worker's cloud, empty, with no faults; boto3 in this process talks to it."""
    for name, value in _cloud.aws_environment.items():
        monkeypatch.setenv(name, value)
    yield _cloud
    _cloud.clean()


@pytest.fixture
def new_computer(the_cloud: Cloud, tmp_path: Path) -> Callable[[], Computer]:
    """Another computer of the same person: same account, same machine name, a home folder of its own."""
    name = f"box-{next(_numbers)}"
    count = itertools.count(1)
    return lambda: Computer(the_cloud, tmp_path / f"computer-{next(count)}", name)


@pytest.fixture
def computer(new_computer: Callable[[], Computer]) -> Computer:
    return new_computer()
