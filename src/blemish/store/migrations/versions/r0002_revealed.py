"""Whether a label was given with the detector's opinion in sight; what figures need of places."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("labels", sa.Column("revealed", sa.Boolean(), nullable=True))
    columns = ["undone", "id", "picture", "reviewer", "verdict", "revealed"]
    op.create_index(f"ix_labels_{'_'.join(columns)}", "labels", columns)
    for name in ("size", "arrived"):
        op.add_column("draws", sa.Column(name, sa.Double(), nullable=True))
        if op.get_bind().dialect.name == "sqlite":
            value = f"json_extract(record, '$.{name}')"
        else:
            value = f"(record::json->>'{name}')::double precision"
        op.execute(f"UPDATE draws SET {name} = {value}")
