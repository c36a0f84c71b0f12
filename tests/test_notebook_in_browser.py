"""`gpuops notebook`, as a person has it: a real Jupyter on the machine, and a real browser before it."""

from __future__ import annotations

import contextlib
import signal
from typing import Any

import pytest

from tests.browser import IS_THERE, browser
from tests.computers import Computer, until
from tests.notebooks import Notebook, notebook

_CELL = ".jp-Notebook .jp-CodeCell"
_EMPTY = {
    "type": "notebook",
    "content": {
        "cells": [
            {"cell_type": "code", "metadata": {}, "source": "", "outputs": [], "execution_count": None, "id": "a"}
        ],
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    },
}


@pytest.mark.timeout(300)
@pytest.mark.skipif(not IS_THERE, reason="chromium and chromium-driver are not installed")
def test_a_browser_works_on_through_a_cut_line_and_a_restart_at_another_address(
    computer: Computer,
) -> None:
    before = computer.up(types="g4dn.xlarge")
    assert before.ssh
    with notebook(computer, host=before.ssh.host) as there, browser() as page:
        there.api("contents/lesson1.ipynb", _EMPTY, method="PUT")
        open_notebook(page, there)
        assert run_cell(page, "x = 6; print(x * 7)") == "42"
        there.process.send_signal(signal.SIGUSR1)
        until(lambda: there.said("is back"), "another line is found")
        until(lambda: kernel_is(page, "unknown", "idle"), "the page has noticed")
        assert run_cell(page, "print(x + 1)") == "7"
        computer.down()
        after = computer.up()
        assert after.ssh and after.ssh.host != before.ssh.host
        until(there.answers, "Jupyter answers at the same URL")
        open_notebook(page, there)
        assert run_cell(page, "print('hello again')") == "hello again"
        assert there.interrupt() == 130
    assert there.said(f"gpuops notebook {computer.name} --stop")


def run_cell(page: Any, code: str) -> str:
    """Type it into the notebook's last cell, run that, and give what it says."""
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.common.by import By

    cells = page.find_elements(By.CSS_SELECTOR, _CELL)
    editor = cells[-1].find_element(By.CSS_SELECTOR, ".cm-content")
    typing = ActionChains(page).move_to_element(editor).click().send_keys(code)
    typing.key_down(Keys.SHIFT).send_keys(Keys.ENTER).key_up(Keys.SHIFT).perform()
    outputs: list[str] = []

    def answered() -> bool:
        with contextlib.suppress(Exception):  # the page redraws its cells as it likes
            here = page.find_elements(By.CSS_SELECTOR, _CELL)[len(cells) - 1]
            outputs[:] = [e.text for e in here.find_elements(By.CSS_SELECTOR, ".jp-OutputArea-output") if e.text]
        return bool(outputs)

    until(answered, f"the cell {code!r} says something")
    return outputs[-1].strip()


def kernel_is(page: Any, *states: str) -> bool:
    from selenium.webdriver.common.by import By

    shown = page.find_elements(By.CSS_SELECTOR, ".jp-Notebook-ExecutionIndicator")
    return any(indicator.get_attribute("data-status") in states for indicator in shown)


def open_notebook(page: Any, there: Notebook) -> None:
    from selenium.webdriver.common.by import By

    page.get(there.url.replace("/?", "/notebooks/lesson1.ipynb?").replace("/tree?", "/notebooks/lesson1.ipynb?"))
    until(lambda: page.find_elements(By.CSS_SELECTOR, f"{_CELL} .cm-content"), "the notebook's cell is there")
    # The page says that its kernel is idle before it has one.
    until(lambda: there.kernels() == [("idle", 1)], "it has a kernel")
    until(lambda: kernel_is(page, "idle"), "its kernel is idle")
