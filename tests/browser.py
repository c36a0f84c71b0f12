"""A person's browser: headless Chromium with a profile of its own, where Debian's packages are installed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
IS_THERE = CHROMIUM is not None and DRIVER is not None

_FLAGS = (
    *("--headless=new", "--disable-gpu", "--disable-quic", "--no-first-run", "--window-size=1280,900"),
    # It shows pages of this computer's alone, and as root, or in a container, it has no sandbox.
    "--no-sandbox",
    # Nothing but the page under test is to be asked for.
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """Selenium's driver of it. Its files lie in a folder of a short name: it keeps a socket there."""
    from selenium import webdriver

    with tempfile.TemporaryDirectory(prefix="chromium.", ignore_cleanup_errors=True) as folder:
        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for flag in (*_FLAGS, f"--user-data-dir={folder}/profile"):
            options.add_argument(flag)
        service = webdriver.ChromeService(str(DRIVER), env={**os.environ, "HOME": folder, "TMPDIR": folder})
        driver = webdriver.Chrome(options=options, service=service)
        try:
            yield driver
        finally:
            driver.quit()
