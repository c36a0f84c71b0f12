"""Loaded first by every Python process that the tests start: they put this folder on its PYTHONPATH."""

import os

import suite_guard

suite_guard.install()

if "GPUOPS_TEST_POINTS" in os.environ:
    import points

    points.install()
