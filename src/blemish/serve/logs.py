"""The log of a service: one line of JSON for each request and whatever else happens.

Everything in a line is escaped as JSON escapes it, to ASCII: no name of a picture can steer a
terminal or pretend to be a line. Tokens, cookies and queries are in none.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

NAME = "blemish.serve"


class _Formatter(logging.Formatter):
    """A record as one line: JSON, or words."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """As of `logging.Formatter`."""
        fields: Mapping[str, Any] = getattr(record, "fields", {})
        row: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **{name: value for name, value in fields.items() if value is not None},
        }
        if record.exc_info and record.exc_info[1] is not None:
            row["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
        if self._as_json:
            return json.dumps(row, default=str)
        told = " ".join(
            f"{name}={json.dumps(value, default=str)}" for name, value in fields.items()
        )
        return f"{row['time']} {row['level']:7} {json.dumps(row['event'])[1:-1]} {told}".rstrip()


class Log:
    """Where a service says what happens. Args: log_format: "json" or "text"."""

    def __init__(self, log_format: str = "json", stream: TextIO | None = None) -> None:
        handler = logging.StreamHandler(stream or sys.stderr)
        handler.setFormatter(_Formatter(as_json=log_format == "json"))
        self._logger = logging.Logger(NAME, logging.INFO)
        self._logger.addHandler(handler)
        self.handler = handler

    def note(self, event: str, **fields: Any) -> None:
        """Something that happened."""
        self._logger.info(event, extra={"fields": fields})

    def warn(self, event: str, **fields: Any) -> None:
        """Something that somebody should look at."""
        self._logger.warning(event, extra={"fields": fields})

    def fail(self, event: str, problem: BaseException, **fields: Any) -> None:
        """A fault of ours, with where it comes from."""
        self._logger.error(event, exc_info=problem, extra={"fields": fields})
