"""The tables, as they are now; `migrations` says how they came to be so.

Times are whole microseconds since 1970, UTC, so that both databases compare and group them alike.
The indices of predictions hold all that a page's order and its counts need, so that neither reads
the rows themselves: the newest of a camera come at once, however many predictions there are.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
)

from blemish.store.records import CATEGORY, LEASE, NAME, SOURCE, TEXT

METADATA = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

DIGEST = String(64)
_ID = BigInteger().with_variant(Integer, "sqlite")  # the only kind that SQLite counts up by itself
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


def stamp(time: datetime) -> int:
    """A time as it is stored: microseconds since 1970, UTC."""
    return (time - _EPOCH) // MICROSECOND


def time_of(microseconds: int) -> datetime:
    """The time of a stamp, in UTC."""
    return _EPOCH + timedelta(microseconds=microseconds)


HOUR = 3_600_000_000  # microseconds


def _id() -> Column[int]:
    return Column("id", _ID, primary_key=True, autoincrement=True)


PREDICTIONS = Table(
    "predictions",
    METADATA,
    _id(),
    Column("key", String(32), nullable=False, unique=True),
    Column("time", BigInteger, nullable=False),
    Column("picture", DIGEST, nullable=False),
    Column("model", String(NAME), nullable=False),
    Column("version", String(NAME), nullable=False),
    Column("source", String(SOURCE), nullable=False),
    Column("name", String(SOURCE), nullable=False),
    Column("category", String(CATEGORY), nullable=False),
    Column("category_assigned", Boolean, nullable=False),
    Column("score", Double, nullable=False),
    Column("threshold", Double),
    Column("label", SmallInteger),
    Column("p_value", Double),
    Column("region_threshold", Double),
    Column("votes", Double),
    Column("adapted", Boolean, nullable=False),
    Column("height", Integer, nullable=False),
    Column("width", Integer, nullable=False),
    Column("notes", Text, nullable=False),  # JSON
    Column("regions", LargeBinary),  # JSON, deflated; last, as SQLite reads a row from its start
    Index(None, "picture", "model", "id"),
    # Each page and its counts are read off one of these: what is asked for first, then the order,
    # then what is counted.
    Index(None, "model", "id", "label"),
    Index(None, "model", "version", "id", "label"),
    Index(None, "model", "time", "version", "label", "score"),
    Index(None, "model", "score", "id", "version"),
    Index(None, "source", "id", "label", "model", "version"),
    Index(None, "category", "id", "label"),
    Index(None, "label", "id"),
    Index(None, "time", "id", "label"),
    sqlite_autoincrement=True,  # no number is given twice, also of what was deleted
)

# Where the picture of a prediction lies among others: a table of its own, as no page of predictions
# needs it. It goes with its prediction.
DESCRIPTORS = Table(
    "descriptors",
    METADATA,
    Column(
        "prediction",
        _ID,
        ForeignKey("predictions.id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("space", String(32), nullable=False),
    Column("content", LargeBinary, nullable=False),  # float16
)

# How many predictions there are, by hour, kept by whoever adds or deletes some, in the same
# transaction: to count a million takes longer than a page may.
TALLIES = Table(
    "tallies",
    METADATA,
    Column("model", String(NAME), primary_key=True),
    Column("version", String(NAME), primary_key=True),
    Column("category", String(CATEGORY), primary_key=True),
    Column("hour", BigInteger, primary_key=True, autoincrement=False),  # since 1970
    Column("label", SmallInteger, primary_key=True, autoincrement=False),  # -1: no verdict
    Column("number", BigInteger, nullable=False),
)

LABELS = Table(
    "labels",
    METADATA,
    _id(),
    Column("picture", DIGEST, nullable=False),
    Column("verdict", String(8), nullable=False),
    Column("defect", String(NAME), nullable=False),
    Column("reviewer", String(NAME), nullable=False),
    Column("time", BigInteger, nullable=False),
    Column("prediction", _ID, ForeignKey("predictions.id", ondelete="SET NULL")),
    Column("undone", BigInteger),
    Column("masked", Boolean, nullable=False),
    Column("mask", LargeBinary),
    Column("revealed", Boolean),  # NULL: nobody knows
    # All that figures need of all labels, without their masks.
    Index(None, "undone", "id", "picture", "reviewer", "verdict", "revealed"),
    Index(None, "picture", "reviewer", "id"),
    Index(None, "reviewer", "id"),
    Index(None, "prediction"),
    sqlite_autoincrement=True,
)

# What the labels on a picture come to, kept by whoever adds or undoes one, in the same transaction.
CONSENSUS = Table(
    "consensus",
    METADATA,
    Column("picture", DIGEST, primary_key=True),
    Column("verdict", String(9), nullable=False),  # "" where all labels were undone
    Column("defect", String(NAME), nullable=False),
    Column("masked", Boolean, nullable=False),
    Column("reviewers", Integer, nullable=False),
    Column("first", BigInteger, nullable=False),  # the times of the labels that count
    Column("last", BigInteger, nullable=False),
    Index(None, "verdict", "picture"),
)

# The place of each picture in the review queue of a model.
DRAWS = Table(
    "draws",
    METADATA,
    Column("picture", DIGEST, primary_key=True),
    Column("model", String(NAME), primary_key=True),
    Column("version", String(NAME), nullable=False),
    Column("stratum", String(NAME), nullable=False),
    Column("probability", Double, nullable=False),
    Column("priority", Double, nullable=False),
    Column("record", Text, nullable=False),  # JSON
    Column("time", BigInteger, nullable=False),
    # Of the record, for those who need them of all pictures.
    Column("size", Double),
    Column("arrived", Double),
    Index(None, "model", "priority"),
)

# What other versions say of pictures, beside those that were live.
SCORES = Table(
    "scores",
    METADATA,
    Column("picture", DIGEST, primary_key=True),
    Column("model", String(NAME), primary_key=True),
    Column("version", String(NAME), primary_key=True),
    Column("score", Double, nullable=False),
    Column("threshold", Double),
    Column("label", SmallInteger),
    Column("time", BigInteger, nullable=False),
)

VERSIONS = Table(
    "versions",
    METADATA,
    Column("model", String(NAME), primary_key=True),
    Column("version", String(NAME), primary_key=True),
    Column("sha256", String(64), nullable=False),
    Column("method", String(NAME), nullable=False),
    Column("threshold", Double),
    Column("rate", Double),
    Column("made", BigInteger, nullable=False),
    Column("base", String(NAME), nullable=False),
    Column("learned_from", Text, nullable=False),  # JSON
    Column("figures", Text, nullable=False),  # JSON
)

PROMOTIONS = Table(
    "promotions",
    METADATA,
    _id(),
    Column("model", String(NAME), nullable=False),
    Column("version", String(NAME), nullable=False),
    Column("kind", String(9), nullable=False),
    Column("who", String(NAME), nullable=False),
    Column("reason", String(TEXT), nullable=False),
    Column("time", BigInteger, nullable=False),
    Index(None, "model", "id"),
    sqlite_autoincrement=True,
)

JOBS = Table(
    "jobs",
    METADATA,
    _id(),
    Column("model", String(NAME), nullable=False),
    Column("kind", String(NAME), nullable=False),
    Column("state", String(9), nullable=False),
    Column("progress", Double, nullable=False),
    Column("message", String(TEXT), nullable=False),
    Column("who", String(NAME), nullable=False),
    Column("made", BigInteger, nullable=False),
    Column("changed", BigInteger, nullable=False),
    Column("settings", Text, nullable=False),  # JSON
    Column("result", Text, nullable=False),  # JSON
    Column("service", String(NAME), nullable=False, server_default=""),
    Index(None, "model", "id"),
    sqlite_autoincrement=True,
)

# What belongs to one of several services, or to one reviewer, until a time.
LEASES = Table(
    "leases",
    METADATA,
    Column("name", String(LEASE), primary_key=True),
    Column("holder", String(NAME), nullable=False),
    Column("until", BigInteger, nullable=False),
)

# What others must remember, a JSON document each: the queue, the monitors of drift.
NOTES = Table(
    "notes",
    METADATA,
    Column("name", String(NAME), primary_key=True),
    Column("document", Text, nullable=False),
    Column("time", BigInteger, nullable=False),
)
