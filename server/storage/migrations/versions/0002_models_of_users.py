"""Model versions that users submit, with states; observations that came fresh; what was pruned is still promised."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:

    with op.batch_alter_table("modelversion") as table:
        table.add_column(sa.Column("state", sa.String(length=16), nullable=False, server_default="retired"))
        table.add_column(sa.Column("kind", sa.String(length=16), nullable=False, server_default="built-in"))
        table.add_column(sa.Column("sha256", sa.String(length=64), nullable=False, server_default=""))
        table.add_column(sa.Column("content_bytes", sa.BigInteger(), nullable=False, server_default="0"))
        table.add_column(sa.Column("manifest", sa.Text(), nullable=False, server_default=""))
        table.add_column(sa.Column("provenance", sa.Text(), nullable=False, server_default=""))
        table.add_column(sa.Column("submitter", sa.String(length=255), nullable=False, server_default=""))
        table.add_column(sa.Column("submit_unix_nanos", sa.BigInteger(), nullable=False, server_default="0"))
        table.add_column(sa.Column("sample", sa.LargeBinary(), nullable=True))
        table.add_column(sa.Column("trial", sa.Text(), nullable=False, server_default=""))
        table.add_column(sa.Column("restriction", sa.Text(), nullable=False, server_default=""))
        table.add_column(sa.Column("first_active_unix_nanos", sa.BigInteger(), nullable=True))
    op.execute("UPDATE modelversion SET state = 'active', first_active_unix_nanos = 0 WHERE is_active")
    with op.batch_alter_table("modelversion") as table:
        table.drop_column("is_active")
    op.create_table(
        "modelevent",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("model_version_id", BIG_ID, nullable=False),
        sa.Column("event_unix_nanos", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("actor", sa.String(length=255), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["model_version_id"], ["modelversion.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    # No batch mode, which would copy the table: observations may be many millions.
    op.add_column("observation", sa.Column("is_live", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("epoch", sa.Column("pruned_ranges", sa.LargeBinary(), nullable=True))
    for table_name, more in (("observation", []), ("prediction", ["model_version_id"])):
        columns = ["instrument_id", "measure_unix_nanos", "id", *more]
        op.drop_index(f"ix_{table_name}_instrument_time", table_name)
        op.create_index(f"ix_{table_name}_instrument_time", table_name, columns)
    op.create_index("ix_prediction_observation", "prediction", ["observation_id"])
    where = sa.text("is_failure")
    op.create_index(
        "ix_prediction_failure", "prediction", ["model_version_id"], sqlite_where=where, postgresql_where=where
    )
    op.create_index("ix_observation_segment", "observation", ["segment_id"])
