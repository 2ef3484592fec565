"""The exit statuses of the commands."""

from __future__ import annotations

WELL, BROKEN_PICTURES, ERROR, BY_SIGNAL, CLOSED_PIPE = 0, 1, 2, 128, 141
EXIT_STATUS = (
    "Exit status: 0 all well; 1 done, but some pictures or masks could not be read or are at "
    "fault; 2 error or wrong usage; 130 interrupted; 143 or 129 asked to end by SIGTERM or SIGHUP."
)
