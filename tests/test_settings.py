"""Settings: flags win over the environment, that over gpuops.toml, that over the defaults."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuops.errors import BadName, BadSetting
from gpuops.settings import resolve


def test_flags_win_over_the_environment_and_that_over_the_file_and_that_over_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "gpuops.toml").write_text('name = "file"\nregion = "eu-west-1"\ndisk_gb = 200\ntypes = ["g5.xlarge"]\n')
    environ = {"GPUOPS_NAME": "environment", "GPUOPS_REGION": "us-east-1"}
    settings = resolve({"name": "flag", "region": None}, environ=environ, folder=tmp_path)
    assert (settings.name, settings.region, settings.disk_gb) == ("flag", "us-east-1", 200)
    assert settings.types == ("g5.xlarge",)
    assert settings.wish().max_hours == 12
    assert settings.provider == "aws"


@pytest.mark.parametrize(
    ("environ", "region"),
    [
        ({"AWS_DEFAULT_REGION": "eu-west-1"}, "eu-west-1"),
        ({"AWS_DEFAULT_REGION": "eu-west-1", "AWS_REGION": "eu-west-2"}, "eu-west-2"),
        ({"AWS_REGION": "eu-west-2", "GPUOPS_REGION": "eu-west-3"}, "eu-west-3"),
        ({}, "us-west-2"),
    ],
)
def test_the_region_falls_back_to_that_of_the_aws_tools(environ: dict[str, str], region: str, tmp_path: Path) -> None:
    assert resolve({}, environ=environ, folder=tmp_path).region == region


def test_types_in_the_environment_are_separated_by_commas(tmp_path: Path) -> None:
    environ = {"GPUOPS_TYPES": "g5.xlarge, g4dn.xlarge"}
    assert resolve({}, environ=environ, folder=tmp_path).types == ("g5.xlarge", "g4dn.xlarge")


@pytest.mark.parametrize("name", ["fast-ai", "a", "x" * 63, "0", "a-b-c"])
def test_a_host_name_label_is_a_name(name: str, tmp_path: Path) -> None:
    assert resolve({"name": name}, environ={}, folder=tmp_path).wish().name == name


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a_b", "a.b", "a b", "x" * 64, "a\n", "büro", "*"])
def test_anything_else_is_none(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadName):
        resolve({"name": name}, environ={}, folder=tmp_path)


@pytest.mark.parametrize(
    "flags",
    [
        {"max_hours": "nan"},
        {"max_hours": "inf"},
        {"max_hours": -1},
        {"max_hours": 721},
        {"disk_gb": "1.5"},
        {"disk_gb": 16385},
        {"ssh_port": 0},
        {"ssh_port": 65536},
        {"types": 3},
    ],
    ids=str,
)
def test_a_value_out_of_bounds_or_of_another_kind_is_refused(flags: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(BadSetting):
        resolve(flags, environ={}, folder=tmp_path)
