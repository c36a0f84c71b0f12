"""`gpuops --sandbox` and `gpuops sandbox …`: one folder, and nothing outside of it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.computers import command


def test_the_sandbox_option_works_in_one_folder_that_reset_deletes(tmp_path: Path) -> None:
    folder, home = tmp_path / "sandbox", tmp_path / "home"
    home.mkdir()
    environment = {**os.environ, "HOME": str(home), "GPUOPS_SANDBOX": str(folder)}

    def gpuops(*words: str) -> str:
        done = subprocess.run(
            command(*words), env=environment, cwd=home, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done
        return done.stdout

    try:
        assert "does not run" in gpuops("sandbox", "status")
        assert gpuops("--sandbox", "status") == "No machines, in any region.\n"
        assert "runs: http://127.0.0.1:" in gpuops("sandbox", "status")
        gpuops("--sandbox", "up", "-y")
        assert "running" in gpuops("--sandbox", "status")
        assert "stopped" in gpuops("sandbox", "stop")
    finally:
        gpuops("sandbox", "reset")
    assert not folder.exists()
    assert list(home.rglob("*")) == []


def test_without_the_option_nothing_is_a_sandbox(tmp_path: Path) -> None:
    """Not even where one runs: what a command works on is said on its command line or in the environment."""
    environment = {**os.environ, "HOME": str(tmp_path), "GPUOPS_SANDBOX": str(tmp_path / "sandbox")}
    done = subprocess.run(
        command("status"), env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 65
    assert not (tmp_path / "sandbox").exists()
