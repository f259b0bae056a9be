"""What is known of bags beyond their making, days that stay though they are old, and what stations no longer have."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:

    for name in ("payload_bytes", "bag_bytes", "check_unix_nanos", "copy_unix_nanos"):
        op.add_column("bag", sa.Column(name, sa.BigInteger(), nullable=True))
    op.add_column("bag", sa.Column("damage", sa.Text(), nullable=False, server_default=""))
    op.add_column("epoch", sa.Column("lost_ranges", sa.LargeBinary(), nullable=True))
    op.create_table(
        "hold",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("instrument_id", BIG_ID, nullable=False),
        sa.Column("day", sa.String(length=10), nullable=False),
        sa.Column("until_unix_nanos", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["instrument_id"], ["instrument.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("instrument_id", "day"),
    )
