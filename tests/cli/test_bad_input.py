"""Everything a person can get wrong is answered by one clear sentence, its exit code, and no traceback."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gpuops.errors import (
    BadInput,
    BadName,
    BadSetting,
    GpuopsError,
    NoCredentials,
    SshConfigError,
    UnknownProvider,
    UnknownRegion,
    UnknownType,
    VendorUnreachable,
)
from tests.computers import Cloud, Computer, command

# boto3 looks for credentials in all these places.
NO_CREDENTIALS = dict.fromkeys(
    (
        *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
        *("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_CONFIG_FILE"),
    )
)
PART_1 = {"up", "status", "ssh", "down", "sandbox"}


@pytest.mark.parametrize(
    ("words", "error", "named"),
    [
        (["staus"], BadInput, "There is no command 'staus'. Did you mean 'status'?"),
        (["up", "--tpye", "x"], BadInput, "--type"),
        (["up", "--disk-gb", "big", "-y"], BadInput, "'big' is not a valid integer"),
        (["sandbox", "strat"], BadInput, "strat"),
        (["up", "--region", "us-wset-2", "-y"], UnknownRegion, "Did you mean 'us-west-2'?"),
        (["status", "--region", "oregon"], UnknownRegion, "There is no region 'oregon'."),
        (["up", "--provider", "asw", "-y"], UnknownProvider, "Did you mean 'aws'?"),
        (["up", "--type", "g4nd.xlarge", "-y"], UnknownType, "Did you mean 'g4dn.xlarge'?"),
        (["up", "Fast_AI"], BadName, "lower-case letters, digits and hyphens"),
        (["up", "-y", "fast;reboot"], BadName, "can't be a machine's name"),
        (["down", "x" * 64], BadName, "63 at most"),
        (["up", "--max-hours", "0", "-y"], BadSetting, "max_hours is 0"),
        (["up", "--disk-gb", "0", "-y"], BadSetting, "disk_gb is 0"),
        (["up", "--admit", "0.0.0.0/0", "-y"], BadSetting, "whole world"),
        (["up", "--admit", "my office", "-y"], BadSetting, "not an address block"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_word_is_answered_with_the_right_one(
    the_cloud: Cloud, computer: Computer, words: list[str], error: type[GpuopsError], named: str
) -> None:
    before = len(the_cloud.calls("RunInstances"))
    assert named in computer.gpuops_here(*words).failed(error)
    assert len(the_cloud.calls("RunInstances")) == before


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('regoin = "us-east-1"\n', "unknown key 'regoin'. Did you mean 'region'?"),
        ("max_hours = [1]\n", "gpuops.toml is [1], which is not a value for max_hours"),
        ("name = \n", "gpuops.toml can't be read"),
        ("name = 'b\xfcro'\n", "gpuops.toml can't be read"),
    ],
)
def test_a_bad_setting_in_the_file_is_named(computer: Computer, text: str, named: str) -> None:
    (computer.folder / "work").mkdir(parents=True)
    (computer.folder / "work" / "gpuops.toml").write_bytes(text.encode("latin-1"))
    assert named in computer.gpuops_here("status").failed(BadSetting)


def test_a_bad_setting_in_the_environment_is_named(computer: Computer) -> None:
    said = computer.gpuops_here("status", GPUOPS_MAX_HOURS="long").failed(BadSetting)
    assert "GPUOPS_MAX_HOURS is 'long', which is not a value for max_hours" in said


@pytest.mark.parametrize("words", [["status"], ["up", "-y"], ["down"]], ids=str)
def test_without_credentials_every_way_to_give_them_is_named(
    computer: Computer, tmp_path: Path, words: list[str]
) -> None:
    (tmp_path / "empty").touch()
    files = {"AWS_CONFIG_FILE": str(tmp_path / "empty"), "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "empty")}
    said = computer.gpuops_here(*words, **{**NO_CREDENTIALS, **files}).failed(NoCredentials)
    for way in ("aws configure", "AWS_PROFILE", "aws sso login", "AWS_ACCESS_KEY_ID", "--sandbox"):
        assert way in said


def test_a_profile_that_there_is_not_is_named(computer: Computer) -> None:
    assert "nobodys" in computer.gpuops_here("status", **{**NO_CREDENTIALS, "AWS_PROFILE": "nobodys"}).failed(
        NoCredentials
    )


def test_half_of_the_credentials_are_none(computer: Computer) -> None:
    changes = {**NO_CREDENTIALS, "AWS_ACCESS_KEY_ID": "testing"}
    computer.gpuops_here("status", **changes).failed(NoCredentials)


def test_an_endpoint_that_refuses_is_said_not_to_answer(computer: Computer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}"
    endpoints = {f"AWS_ENDPOINT_URL{suffix}": nobody for suffix in ("", "_EC2", "_STS", "_SSM")}
    for words in (["status"], ["up", "-y"]):
        ran = computer.gpuops_here(*words, **endpoints)
        said = ran.failed(VendorUnreachable)
        assert nobody in said
        assert "No machines" not in ran.output
        assert "gpuops status" in said


def test_an_endpoint_that_is_none_is_said_to_be_none(computer: Computer) -> None:
    endpoints = {f"AWS_ENDPOINT_URL{suffix}": "not a url" for suffix in ("", "_EC2", "_STS", "_SSM")}
    said = computer.gpuops_here("status", **endpoints).failed(BadSetting)
    assert "AWS_ENDPOINT_URL" in said
    assert "not a url" in said


def test_an_ssh_config_that_is_a_folder_is_named_before_anything_is_launched(
    the_cloud: Cloud, computer: Computer
) -> None:
    computer.ssh_config.mkdir(parents=True)
    before = len(the_cloud.calls("RunInstances"))
    assert str(computer.ssh_config) in computer.gpuops_here("up", "-y").failed(SshConfigError)
    assert len(the_cloud.calls("RunInstances")) == before


def test_an_error_as_json_has_its_id_and_its_exit_code(computer: Computer) -> None:
    ran = computer.gpuops_here("status", "--json", "--region", "us-wset-2")
    assert ran.exit_code == 64
    error = json.loads(ran.stdout)["error"]
    assert (error["id"], error["exit_code"]) == ("unknown-region", 64)
    assert error["what"].startswith("There is no region 'us-wset-2'.")
    assert error["next_step"]


def test_a_traceback_is_shown_only_where_it_is_asked_for(computer: Computer) -> None:
    ran = computer.gpuops("--debug", "status", "--region", "us-wset-2")
    assert "Traceback" in ran.stderr
    assert "UnknownRegion" in ran.stderr


def test_help_names_the_commands_and_needs_no_environment() -> None:
    done = subprocess.run(command("--help"), capture_output=True, text=True, env={"PATH": os.defpath}, check=True)
    listed = re.findall(r"^  ([a-z-]+)  +\S", done.stdout.partition("Commands:")[2], re.M)
    assert set(listed) >= PART_1
    assert len(listed) == len(set(listed))
    assert "--sandbox" in done.stdout


def test_every_command_explains_itself() -> None:
    from gpuops.cli import cli

    for name, one in cli.commands.items():
        assert one.help, name
        assert one.get_short_help_str(200).endswith("."), name


@pytest.mark.parametrize("words", [["--help"], ["status"], ["status", "--json", "--region", "no"]], ids=str)
def test_a_reader_that_has_seen_enough_hears_nothing_more(
    the_cloud: Cloud, computer: Computer, words: list[str]
) -> None:
    """As in `gpuops status | head -1`."""
    with computer.process(*words) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        stderr = process.stderr.read()
    assert (process.returncode, stderr) == (1, "")


def test_the_module_and_the_program_are_the_same() -> None:
    program = Path(sys.executable).with_name("gpuops")
    if not program.exists():
        pytest.skip("gpuops is not installed as a program here")
    for argv in ([str(program), "--version"], command("--version")):
        assert subprocess.check_output(argv, text=True).startswith("gpuops, version ")
