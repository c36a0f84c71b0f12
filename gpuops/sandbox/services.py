"""How the services are asked that we answer ourselves, without moto: a function for each, JSON in and JSON out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Service = Callable[[str, Mapping[str, Any], str], Mapping[str, Any]]
"""Called with action, request and region. Raises `ServiceRefusal`, and NotImplementedError for an action it lacks."""


class ServiceRefusal(Exception):
    """The service's error: its code and its words."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
