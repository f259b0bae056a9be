"""Predictions that are to be made again, and what a model version that remembers knows of each instrument."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:

    op.add_column("prediction", sa.Column("is_provisional", sa.Boolean(), nullable=False, server_default=sa.false()))
    where = sa.text("is_provisional")
    op.create_index(
        "ix_prediction_provisional", "prediction", ["model_version_id"], sqlite_where=where, postgresql_where=where
    )
    op.create_table(
        "followstate",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("model_version_id", BIG_ID, nullable=False),
        sa.Column("instrument_id", BIG_ID, nullable=False),
        sa.Column("course_start_unix_nanos", sa.BigInteger(), nullable=False),
        sa.Column("through_unix_nanos", sa.BigInteger(), nullable=False),
        sa.Column("through_sequence", sa.BigInteger(), nullable=False),
        sa.Column("through_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("is_complete", sa.Boolean(), nullable=False),
        sa.Column("state", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["instrument_id"], ["instrument.id"]),
        sa.ForeignKeyConstraint(["model_version_id"], ["modelversion.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("model_version_id", "instrument_id"),
    )
