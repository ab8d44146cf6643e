"""The reports of tests that run side by side: they travel from process to process."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """A report, with what a test has printed and logged: as UTF-8, which not all of that is."""
    return _as_utf_8((yield))


def _as_utf_8(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {_as_utf_8(key): _as_utf_8(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_as_utf_8, value))
    return value
