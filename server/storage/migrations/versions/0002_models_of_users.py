"""Model versions that users submit, with states; observations that came fresh; what was pruned is still promised."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:

    # No batch mode, neither here nor below: it copies the table and drops the old one, which SQLite refuses as soon as
    # there are predictions of a version, and which takes long where there are many millions of rows.
    more_columns = (
        sa.Column("state", sa.String(length=16), nullable=False, server_default="retired"),
        sa.Column("kind", sa.String(length=16), nullable=False, server_default="built-in"),
        sa.Column("sha256", sa.String(length=64), nullable=False, server_default=""),
        sa.Column("content_bytes", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("manifest", sa.Text(), nullable=False, server_default=""),
        sa.Column("provenance", sa.Text(), nullable=False, server_default=""),
        sa.Column("submitter", sa.String(length=255), nullable=False, server_default=""),
        sa.Column("submit_unix_nanos", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("sample", sa.LargeBinary(), nullable=True),
        sa.Column("trial", sa.Text(), nullable=False, server_default=""),
        sa.Column("restriction", sa.Text(), nullable=False, server_default=""),
        sa.Column("first_active_unix_nanos", sa.BigInteger(), nullable=True),
    )
    for column in more_columns:
        op.add_column("modelversion", column)
    op.execute("UPDATE modelversion SET state = 'active', first_active_unix_nanos = 0 WHERE is_active")
    op.drop_column("modelversion", "is_active")
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
