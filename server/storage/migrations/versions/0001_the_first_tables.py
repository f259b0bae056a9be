"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

# As it was at this revision: migrations do not follow later changes of server.tables.
BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:

    op.create_table(
        "modelversion",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("analysis", sa.String(length=63), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("is_active", sa.Boolean(), nullable=False),
        sa.Column("settled_observation_id", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("analysis", "version"),
    )
    op.create_table(
        "segment",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "station",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("status", sa.LargeBinary(), nullable=True),
        sa.Column("status_unix_nanos", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "epoch",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("station_id", BIG_ID, nullable=False),
        sa.Column("epoch", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(
            ["station_id"],
            ["station.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("station_id", "epoch"),
    )
    op.create_table(
        "instrument",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("station_id", BIG_ID, nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("instrument_model", sa.String(length=63), nullable=False),
        sa.Column("latitude_deg", sa.Float(), nullable=True),
        sa.Column("longitude_deg", sa.Float(), nullable=True),
        sa.Column("altitude_m", sa.Float(), nullable=True),
        sa.Column("calibration", sa.Float(), nullable=True),
        sa.Column("observation_count", sa.BigInteger(), nullable=False),
        sa.Column("last_measure_unix_nanos", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["station_id"],
            ["station.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("station_id", "name"),
    )
    op.create_table(
        "bag",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("instrument_id", BIG_ID, nullable=False),
        sa.Column("day", sa.String(length=10), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("manifest_sha256", sa.String(length=64), nullable=False),
        sa.Column("observation_count", sa.Integer(), nullable=False),
        sa.Column("prediction_count", sa.Integer(), nullable=False),
        sa.Column("archive_unix_nanos", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["instrument_id"],
            ["instrument.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("instrument_id", "day", "version"),
    )
    op.create_table(
        "observation",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("epoch_id", BIG_ID, nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("instrument_id", BIG_ID, nullable=False),
        sa.Column("measure_unix_nanos", sa.BigInteger(), nullable=False),
        sa.Column("capture_unix_nanos", sa.BigInteger(), nullable=False),
        sa.Column("payload_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("segment_id", BIG_ID, nullable=False),
        sa.Column("segment_offset", sa.BigInteger(), nullable=False),
        sa.Column("stored_bytes", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["epoch_id"],
            ["epoch.id"],
        ),
        sa.ForeignKeyConstraint(
            ["instrument_id"],
            ["instrument.id"],
        ),
        sa.ForeignKeyConstraint(
            ["segment_id"],
            ["segment.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("epoch_id", "sequence"),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("observation", schema=None) as batch_op:
        batch_op.create_index("ix_observation_instrument_time", ["instrument_id", "measure_unix_nanos"], unique=False)

    op.create_table(
        "prediction",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("observation_id", BIG_ID, nullable=False),
        sa.Column("model_version_id", BIG_ID, nullable=False),
        sa.Column("instrument_id", BIG_ID, nullable=False),
        sa.Column("measure_unix_nanos", sa.BigInteger(), nullable=False),
        sa.Column("predict_unix_nanos", sa.BigInteger(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("is_failure", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["instrument_id"],
            ["instrument.id"],
        ),
        sa.ForeignKeyConstraint(
            ["model_version_id"],
            ["modelversion.id"],
        ),
        sa.ForeignKeyConstraint(
            ["observation_id"],
            ["observation.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("model_version_id", "observation_id"),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("prediction", schema=None) as batch_op:
        batch_op.create_index("ix_prediction_instrument_time", ["instrument_id", "measure_unix_nanos"], unique=False)


def downgrade() -> None:

    with op.batch_alter_table("prediction", schema=None) as batch_op:
        batch_op.drop_index("ix_prediction_instrument_time")

    op.drop_table("prediction")
    with op.batch_alter_table("observation", schema=None) as batch_op:
        batch_op.drop_index("ix_observation_instrument_time")

    op.drop_table("observation")
    op.drop_table("bag")
    op.drop_table("instrument")
    op.drop_table("epoch")
    op.drop_table("station")
    op.drop_table("segment")
    op.drop_table("modelversion")
