"""Versions repeat what lists show, and say when their files were collected; the store's URL may be recorded."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    for column in (
        sa.Column("method", sa.String(64), nullable=True),
        sa.Column("parent", sa.String(71), nullable=True),
        sa.Column("classes", sa.Text, nullable=True),
        sa.Column("size_bytes", sa.BigInteger, nullable=True),
        sa.Column("gate", sa.String(32), nullable=True),
        sa.Column("collected_at", sa.String(40), nullable=True),
    ):
        op.add_column("versions", column)
    with op.batch_alter_table("meta") as table:
        table.alter_column("value", existing_type=sa.String(64), type_=sa.Text, existing_nullable=False)
    # Versions of cilseg without migrations read the key "schema" and stop at a value they do not know.
    meta = sa.table("meta", sa.column("key", sa.String), sa.column("value", sa.Text))
    op.execute(meta.delete().where(meta.c.key == "schema"))
    op.bulk_insert(meta, [{"key": "schema", "value": revision}])
