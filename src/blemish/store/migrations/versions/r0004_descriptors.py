"""Descriptors of predictions, a table of their own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "descriptors",
        sa.Column("prediction", _ID, autoincrement=False, nullable=False),
        sa.Column("space", sa.String(length=32), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["prediction"],
            ["predictions.id"],
            name="fk_descriptors_prediction",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("prediction", name="pk_descriptors"),
    )
