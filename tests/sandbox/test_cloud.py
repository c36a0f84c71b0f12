"""Starting, finding and ending the cloud, and what its end does to its machines."""

from __future__ import annotations

import ipaddress
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest

from gpuops import sandbox
from gpuops.errors import SandboxError

from .conftest import Rig, processes_of_machines, until


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "sandbox"
    sandbox.stop(tmp_path / "sandbox")


def run_python(code: str, *arguments: str, **environment: str) -> str:
    """What a fresh interpreter prints, with nothing of this one's imports."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(sandbox.__file__).parents[2]), **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.strip()


def leave_announcement(folder: Path) -> None:
    """As after a power cut, when the dead cloud's process id has become that of another process: this one."""
    folder.mkdir()
    (folder / "gpuops-sandbox").touch()
    announced = {"format": 1, "pid": os.getpid(), "url": "http://127.0.0.1:9"}
    (folder / "cloud.json").write_text(json.dumps(announced))


def launch(cloud: sandbox.Cloud) -> dict[str, Any]:
    """A machine that runs, and whose processes do."""
    rig = Rig(cloud)
    instance = rig.running()
    until(lambda: "login:" in rig.console(instance["InstanceId"]), "a boot")
    for client in rig.clients.values():
        client.close()
    return instance


def test_importing_the_sandbox_imports_no_cloud() -> None:
    heavy = run_python(
        "import sys, gpuops.sandbox; print({'boto3', 'botocore', 'moto', 'asyncssh', 'werkzeug'} & {*sys.modules})"
    )
    assert heavy == "set()"


def test_start_finds_the_cloud_that_runs_and_status_names_it(cloud: sandbox.Cloud) -> None:
    assert sandbox.start(cloud.folder) == cloud
    assert sandbox.status(cloud.folder) == cloud
    announced = json.loads((cloud.folder / "cloud.json").read_text())
    assert (announced["format"], announced["pid"], announced["url"]) == (1, cloud.pid, cloud.url)


def test_one_cloud_however_many_commands_start_it_outlives_them_and_is_deleted_with_its_machines(folder: Path) -> None:
    leave_announcement(folder)
    start = "import sys, pathlib; from gpuops import sandbox; print(sandbox.start(pathlib.Path(sys.argv[1])).pid)"
    with ThreadPoolExecutor(2) as pool:
        pids = set(pool.map(lambda _: run_python(start, str(folder)), range(2)))
    cloud = sandbox.status(folder)
    assert cloud is not None
    assert pids == {str(cloud.pid)}
    launch(cloud)
    assert processes_of_machines(folder)
    (folder / "home" / "state.json").write_text("{}")
    (folder / "mine.txt").write_text("mine")

    sandbox.reset(folder)

    assert processes_of_machines(folder) == []
    assert sandbox.status(folder) is None
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]
    (folder / "mine.txt").unlink()
    sandbox.reset(folder)
    assert not folder.exists()
    sandbox.reset(folder)  # gone already is fine


def test_machines_die_with_a_cloud_that_is_killed(folder: Path) -> None:
    killed = sandbox.start(folder, boot_seconds=0.1)
    launch(killed)
    os.kill(killed.pid, signal.SIGKILL)
    until(lambda: processes_of_machines(folder) == [], "the machines' end")
    assert (folder / "cloud.json").exists()
    assert sandbox.status(folder) is None


def test_a_process_that_has_the_old_clouds_id_is_not_taken_for_it(folder: Path) -> None:
    folder.mkdir()
    (folder / "gpuops-sandbox").touch()
    announced = {
        "format": 1,
        "pid": os.getpid(),
        "url": "http://127.0.0.1:9",
        "started_at": "2026-01-01T00:00:00+00:00",
    }
    (folder / "cloud.json").write_text(json.dumps(announced))
    assert sandbox.status(folder) is None
    sandbox.stop(folder)  # would end this very process
    assert not (folder / "cloud.json").exists()


def test_a_cloud_that_cannot_start_says_its_last_words(folder: Path) -> None:
    (folder / "cloud.json").mkdir(parents=True)
    (folder / "gpuops-sandbox").touch()
    with pytest.raises(SandboxError, match="IsADirectoryError") as raised:
        sandbox.start(folder)
    assert raised.value.next_step == f"less {folder}/cloud.log"
    (folder / "cloud.json").rmdir()


def test_a_missing_extra_is_named_with_the_command_that_installs_it(folder: Path) -> None:
    said = run_python(
        "import sys, pathlib; sys.modules['moto'] = None; from gpuops import errors, sandbox\n"
        "try: sandbox.start(pathlib.Path(sys.argv[1]))\n"
        "except errors.SandboxError as error: print(error.what, error.next_step)",
        str(folder),
    )
    assert "not installed: moto." in said
    assert "pip install 'gpuops[sandbox]'" in said


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SandboxError, match="file/sandbox"):
        sandbox.start(tmp_path / "file" / "sandbox")


def test_the_environment_turns_any_sdk_to_the_sandbox_whatever_the_person_has_set(cloud: sandbox.Cloud) -> None:
    answer = run_python(
        "import boto3; print(boto3.client('sts', region_name='eu-west-1').get_caller_identity()['Account'],"
        "len(boto3.client('ec2', region_name='eu-west-1').describe_regions()['Regions']))",
        **{
            "AWS_PROFILE": "work",
            "AWS_DEFAULT_PROFILE": "work",
            "AWS_ENDPOINT_URL_EC2": "http://127.0.0.1:9",
            "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true",
            "HTTP_PROXY": "http://127.0.0.1:9",
            **sandbox.environment(cloud.folder, cloud),
        },
    )
    assert answer == "123456789012 17"


def test_the_environment_keeps_what_gpuops_writes_in_the_folder(cloud: sandbox.Cloud) -> None:
    environment = sandbox.environment(cloud.folder, cloud)
    assert environment["AWS_ENDPOINT_URL"] == cloud.url
    assert environment["GPUOPS_HOME"] == str(cloud.folder / "home")
    assert environment["GPUOPS_SSH_CONFIG"].startswith(environment["GPUOPS_HOME"])
    assert environment["GPUOPS_SSH_PORT"] == "2222"
    assert ipaddress.ip_network(environment["GPUOPS_ADMIT"]).is_loopback


def test_the_first_calls_are_as_quick_as_any(cloud: sandbox.Cloud) -> None:
    client = boto3.client(
        "ec2",
        region_name="eu-north-1",
        endpoint_url=cloud.url,
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
    )
    began = time.monotonic()
    client.describe_instances()
    assert time.monotonic() - began < 0.5
    client.close()


def test_a_cloud_that_was_cut_off_is_known_to_have_been_until_another_one_runs(folder: Path) -> None:
    assert not sandbox.was_cut_off(folder)
    leave_announcement(folder)
    assert sandbox.was_cut_off(folder)
    sandbox.start(folder, boot_seconds=0.1)
    assert not sandbox.was_cut_off(folder)
    sandbox.stop(folder)
    assert not sandbox.was_cut_off(folder)


def test_a_folder_with_somebodys_files_is_neither_used_nor_deleted(tmp_path: Path) -> None:
    for name in ("home", "machines"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.doc").write_text("mine")
    for attempt in (sandbox.start, sandbox.reset):
        with pytest.raises(SandboxError, match="not a sandbox's folder"):
            attempt(tmp_path)
    assert [path.read_text() for path in sorted(tmp_path.rglob("*.doc"))] == ["mine", "mine"]
