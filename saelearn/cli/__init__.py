"""The commands: `saelearn lab`, `train`, `student`, `doctor`, `data`."""

from saelearn.cli.commands import main

__all__ = ["main"]
