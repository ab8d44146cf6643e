"""The ``ubpx`` command."""

from ubpx.cli.app import main

__all__ = ["main"]
