"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    _add_predictions()
    _index_predictions()
    _add_tallies()
    _add_reviews()
    _add_labels()
    _add_models()


def _add_predictions() -> None:
    op.create_table(
        "predictions",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("key", sa.String(length=32), nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.Column("picture", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=100), nullable=False),
        sa.Column("version", sa.String(length=100), nullable=False),
        sa.Column("source", sa.String(length=1024), nullable=False),
        sa.Column("name", sa.String(length=1024), nullable=False),
        sa.Column("category", sa.String(length=200), nullable=False),
        sa.Column("category_assigned", sa.Boolean(), nullable=False),
        sa.Column("score", sa.Double(), nullable=False),
        sa.Column("threshold", sa.Double(), nullable=True),
        sa.Column("label", sa.SmallInteger(), nullable=True),
        sa.Column("p_value", sa.Double(), nullable=True),
        sa.Column("region_threshold", sa.Double(), nullable=True),
        sa.Column("votes", sa.Double(), nullable=True),
        sa.Column("adapted", sa.Boolean(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("notes", sa.Text(), nullable=False),
        sa.Column("regions", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_predictions"),
        sa.UniqueConstraint("key", name="uq_predictions_key"),
        sqlite_autoincrement=True,
    )


def _index_predictions() -> None:
    op.create_index(
        "ix_predictions_category_id_label", "predictions", ["category", "id", "label"], unique=False
    )
    op.create_index("ix_predictions_label_id", "predictions", ["label", "id"], unique=False)
    op.create_index(
        "ix_predictions_model_id_label", "predictions", ["model", "id", "label"], unique=False
    )
    op.create_index(
        "ix_predictions_model_score_id_version",
        "predictions",
        ["model", "score", "id", "version"],
        unique=False,
    )
    op.create_index(
        "ix_predictions_model_time_version_label_score",
        "predictions",
        ["model", "time", "version", "label", "score"],
        unique=False,
    )
    op.create_index(
        "ix_predictions_model_version_id_label",
        "predictions",
        ["model", "version", "id", "label"],
        unique=False,
    )
    op.create_index(
        "ix_predictions_picture_model_id", "predictions", ["picture", "model", "id"], unique=False
    )
    op.create_index(
        "ix_predictions_source_id_label_model_version",
        "predictions",
        ["source", "id", "label", "model", "version"],
        unique=False,
    )
    op.create_index(
        "ix_predictions_time_id_label", "predictions", ["time", "id", "label"], unique=False
    )


def _add_tallies() -> None:
    op.create_table(
        "tallies",
        sa.Column("model", sa.String(length=100), nullable=False),
        sa.Column("version", sa.String(length=100), nullable=False),
        sa.Column("category", sa.String(length=200), nullable=False),
        sa.Column("hour", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("label", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("model", "version", "category", "hour", "label", name="pk_tallies"),
    )


def _add_reviews() -> None:
    op.create_table(
        "consensus",
        sa.Column("picture", sa.String(length=64), nullable=False),
        sa.Column("verdict", sa.String(length=9), nullable=False),
        sa.Column("defect", sa.String(length=100), nullable=False),
        sa.Column("masked", sa.Boolean(), nullable=False),
        sa.Column("reviewers", sa.Integer(), nullable=False),
        sa.Column("first", sa.BigInteger(), nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("picture", name="pk_consensus"),
    )
    op.create_index(
        "ix_consensus_verdict_picture", "consensus", ["verdict", "picture"], unique=False
    )
    op.create_table(
        "draws",
        sa.Column("picture", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=100), nullable=False),
        sa.Column("version", sa.String(length=100), nullable=False),
        sa.Column("stratum", sa.String(length=100), nullable=False),
        sa.Column("probability", sa.Double(), nullable=False),
        sa.Column("priority", sa.Double(), nullable=False),
        sa.Column("record", sa.Text(), nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("picture", "model", name="pk_draws"),
    )
    op.create_index("ix_draws_model_priority", "draws", ["model", "priority"], unique=False)
    op.create_table(
        "scores",
        sa.Column("picture", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=100), nullable=False),
        sa.Column("version", sa.String(length=100), nullable=False),
        sa.Column("score", sa.Double(), nullable=False),
        sa.Column("threshold", sa.Double(), nullable=True),
        sa.Column("label", sa.SmallInteger(), nullable=True),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("picture", "model", "version", name="pk_scores"),
    )


def _add_labels() -> None:
    op.create_table(
        "labels",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("picture", sa.String(length=64), nullable=False),
        sa.Column("verdict", sa.String(length=8), nullable=False),
        sa.Column("defect", sa.String(length=100), nullable=False),
        sa.Column("reviewer", sa.String(length=100), nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.Column("prediction", _ID, nullable=True),
        sa.Column("undone", sa.BigInteger(), nullable=True),
        sa.Column("masked", sa.Boolean(), nullable=False),
        sa.Column("mask", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(
            ["prediction"], ["predictions.id"], name="fk_labels_prediction", ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_labels"),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_labels_picture_reviewer_id", "labels", ["picture", "reviewer", "id"], unique=False
    )
    op.create_index("ix_labels_prediction", "labels", ["prediction"], unique=False)
    op.create_index("ix_labels_reviewer_id", "labels", ["reviewer", "id"], unique=False)


def _add_models() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("model", sa.String(length=100), nullable=False),
        sa.Column("kind", sa.String(length=100), nullable=False),
        sa.Column("state", sa.String(length=9), nullable=False),
        sa.Column("progress", sa.Double(), nullable=False),
        sa.Column("message", sa.String(length=4000), nullable=False),
        sa.Column("who", sa.String(length=100), nullable=False),
        sa.Column("made", sa.BigInteger(), nullable=False),
        sa.Column("changed", sa.BigInteger(), nullable=False),
        sa.Column("settings", sa.Text(), nullable=False),
        sa.Column("result", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_jobs_model_id", "jobs", ["model", "id"], unique=False)
    op.create_table(
        "notes",
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_notes"),
    )
    op.create_table(
        "promotions",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("model", sa.String(length=100), nullable=False),
        sa.Column("version", sa.String(length=100), nullable=False),
        sa.Column("kind", sa.String(length=9), nullable=False),
        sa.Column("who", sa.String(length=100), nullable=False),
        sa.Column("reason", sa.String(length=4000), nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_promotions"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_promotions_model_id", "promotions", ["model", "id"], unique=False)
    op.create_table(
        "versions",
        sa.Column("model", sa.String(length=100), nullable=False),
        sa.Column("version", sa.String(length=100), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("method", sa.String(length=100), nullable=False),
        sa.Column("threshold", sa.Double(), nullable=True),
        sa.Column("rate", sa.Double(), nullable=True),
        sa.Column("made", sa.BigInteger(), nullable=False),
        sa.Column("base", sa.String(length=100), nullable=False),
        sa.Column("learned_from", sa.Text(), nullable=False),
        sa.Column("figures", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("model", "version", name="pk_versions"),
    )
