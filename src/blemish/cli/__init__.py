"""The command line: one module for each group of commands, and the words each prints."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (default: the process's) and give its exit status.

    Never raises, save for SystemExit.
    """
    from blemish.cli import app  # builds every command: not for an import of `blemish.cli`

    return app.main(arguments)
