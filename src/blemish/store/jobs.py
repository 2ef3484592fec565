"""Work in the background: what was asked for, how far it is, what came out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sql
from sqlalchemy import Connection, RowMapping

from blemish.errors import ConfigError
from blemish.store.filters import check_id
from blemish.store.part import Part
from blemish.store.records import NAME, STATES, TEXT, Job, check_choice, document, now, storable
from blemish.store.schema import JOBS, stamp, time_of

_PLAIN = ("model", "kind", "who", "state", "progress", "service")
_OPEN = ("waiting", "running")


class Jobs(Part):
    """The part of a store that holds jobs."""

    def add_job(self, job: Job) -> int:
        """Write a job down. Returns: its id."""
        with self._database.writing() as connection:
            return self._add_job(connection, job)

    def add_only_job(self, job: Job) -> int | None:
        """Write a job down, unless another of its model and kind waits or runs, whichever of the
        services that share the store began it. Returns: its id; None where there is another."""
        same = (JOBS.c.model == job.model, JOBS.c.kind == job.kind, JOBS.c.state.in_(_OPEN))
        with self._database.writing() as connection:
            if not self._database.is_sqlite:
                connection.execute(sql.text("LOCK TABLE jobs IN SHARE ROW EXCLUSIVE MODE"))
            if connection.scalar(sql.select(JOBS.c.id).where(*same).limit(1)) is not None:
                return None
            return self._add_job(connection, job)

    def _add_job(self, connection: Connection, job: Job) -> int:
        values = {name: getattr(job, name) for name in _PLAIN} | {
            "message": storable(job.message, TEXT),
            "settings": document("settings", job.settings),
            "result": document("result", job.result),
            "made": stamp(job.made),
            "changed": stamp(job.changed),
        }
        adding = sql.insert(JOBS).values(values).returning(JOBS.c.id)
        return int(connection.scalars(adding).one())

    def update_job(
        self,
        id: int,
        *,
        state: str | None = None,
        progress: float | None = None,
        message: str | None = None,
        result: Mapping[str, Any] | None = None,
        service: str | None = None,
    ) -> bool:
        """Change what is given of a job.

        Args: service: change it only while it is of this instance and has not ended.
        Returns: whether it was changed. Raises: ConfigError where there is none of that id.
        """
        values: dict[str, Any] = {"changed": stamp(now())}
        if state is not None:
            values["state"] = check_choice("state", state, STATES)
        if progress is not None:
            values["progress"] = min(max(float(progress), 0.0), 1.0)
        if message is not None:
            values["message"] = storable(message, TEXT)
        if result is not None:
            values["result"] = document("result", result)
        with self._database.writing() as connection:
            where = [JOBS.c.id == check_id("job", id)]
            if service is not None:
                where += [JOBS.c.service == service, JOBS.c.state.in_(_OPEN)]
            changed = connection.execute(sql.update(JOBS).where(*where).values(values)).rowcount
            if not changed and service is None:
                raise ConfigError(f"job {id}: there is none")
        return bool(changed)

    def job(self, id: int) -> Job | None:
        """One job; None where there is none of that id."""
        with self._database.reading() as connection:
            one = sql.select(JOBS).where(JOBS.c.id == check_id("job", id))
            found = connection.execute(one).mappings().first()
        return None if found is None else _job_of(found)

    def jobs(self, model: str | None = None, *, limit: int = 100) -> list[Job]:
        """The jobs of a model, or of all, the newest first."""
        where = [] if model is None else [JOBS.c.model == storable(model, NAME)]
        page = sql.select(JOBS).where(*where).order_by(JOBS.c.id.desc()).limit(limit)
        with self._database.reading() as connection:
            return [_job_of(found) for found in connection.execute(page).mappings()]


def _job_of(found: RowMapping) -> Job:
    return Job(
        id=found["id"],
        message=found["message"],
        settings=json.loads(found["settings"]),
        result=json.loads(found["result"]),
        made=time_of(found["made"]),
        changed=time_of(found["changed"]),
        **{name: found[name] for name in _PLAIN},
    )
