"""What the database holds: names, headers and predictions. Payloads lie in segments, outside the rows.

Instants are whole nanoseconds since 1970-01-01T00:00Z in 64-bit columns: they sort, they compare, and no driver
rounds them.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Text,
    UniqueConstraint,
    false,
    text,
)
from sqlmodel import Field, SQLModel

# SQLite counts its row ids in the type INTEGER alone; there it has 64 bits anyway.
BigId = BigInteger().with_variant(Integer(), "sqlite")


def _id_column() -> Column[int]:
    return Column(BigId, primary_key=True, autoincrement=True)


def _foreign_id(target: str) -> Column[int]:
    return Column(BigId, ForeignKey(target), nullable=False)


class Station(SQLModel, table=True):
    """A station that is registered, with the last status that it sent."""

    id: int | None = Field(default=None, sa_column=_id_column())
    name: str = Field(unique=True, max_length=63)
    status: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    """A serialized fieldpost.v1.StationStatus."""
    status_unix_nanos: int | None = Field(default=None, sa_column=Column(BigInteger))


class Instrument(SQLModel, table=True):
    """A registered instrument: what only an operator can know of it."""

    __table_args__ = (UniqueConstraint("station_id", "name"),)

    id: int | None = Field(default=None, sa_column=_id_column())
    station_id: int = Field(sa_column=_foreign_id("station.id"))
    name: str = Field(max_length=63)
    instrument_model: str = Field(max_length=63)
    latitude_deg: float | None = Field(default=None, sa_column=Column(Float))
    longitude_deg: float | None = Field(default=None, sa_column=Column(Float))
    altitude_m: float | None = Field(default=None, sa_column=Column(Float))
    calibration: float | None = Field(default=None, sa_column=Column(Float))
    observation_count: int = Field(default=0, sa_column=Column(BigInteger, nullable=False, default=0))
    """Observations held: counted in the transaction that stores them, since counting rows would take for ever."""
    last_measure_unix_nanos: int | None = Field(default=None, sa_column=Column(BigInteger))


class Epoch(SQLModel, table=True):
    """The life of one station buffer."""

    __table_args__ = (UniqueConstraint("station_id", "epoch"),)

    id: int | None = Field(default=None, sa_column=_id_column())
    station_id: int = Field(sa_column=_foreign_id("station.id"))
    epoch: str = Field(max_length=32)
    pruned_ranges: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    """A serialized fieldpost.v1.Receipt that has only held_ranges: what was held, archived, and let go here."""
    lost_ranges: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    """A serialized fieldpost.v1.Receipt that has only held_ranges: what the station said that it no longer has."""


class Segment(SQLModel, table=True):
    """An append-only file of serialized fieldpost.v1.Observation messages."""

    id: int | None = Field(default=None, sa_column=_id_column())
    name: str = Field(unique=True, max_length=255)


class Observation(SQLModel, table=True):
    """An observation that the server holds. (epoch_id, sequence) is its identity."""

    __table_args__ = (
        UniqueConstraint("epoch_id", "sequence"),
        Index("ix_observation_instrument_time", "instrument_id", "measure_unix_nanos", "id"),
        Index("ix_observation_segment", "segment_id"),
        {"sqlite_autoincrement": True},  # an id is never used again, not even that of a pruned row
    )

    id: int | None = Field(default=None, sa_column=_id_column())
    epoch_id: int = Field(sa_column=_foreign_id("epoch.id"))
    sequence: int = Field(sa_column=Column(BigInteger, nullable=False))
    instrument_id: int = Field(sa_column=_foreign_id("instrument.id"))
    measure_unix_nanos: int = Field(sa_column=Column(BigInteger, nullable=False))
    capture_unix_nanos: int = Field(sa_column=Column(BigInteger, nullable=False))
    payload_bytes: int = Field(sa_column=Column(BigInteger, nullable=False))
    sha256: bytes = Field(sa_column=Column(LargeBinary(32), nullable=False))
    segment_id: int = Field(sa_column=_foreign_id("segment.id"))
    segment_offset: int = Field(sa_column=Column(BigInteger, nullable=False))
    stored_bytes: int = Field(sa_column=Column(BigInteger, nullable=False))
    is_live: bool = False
    """Whether it was fresh when it was stored: predicted ahead of any backlog."""


class ModelVersion(SQLModel, table=True):
    """One trained answer to an analysis."""

    __table_args__ = (UniqueConstraint("analysis", "version"),)

    id: int | None = Field(default=None, sa_column=_id_column())
    analysis: str = Field(max_length=63)
    version: int
    state: str = Field(max_length=16)
    """A server.models.card.ModelState."""
    kind: str = Field(max_length=16)
    """A server.models.card.ModelKind."""
    sha256: str = Field(default="", max_length=64)
    """Of the ONNX file; empty where it is built in."""
    content_bytes: int = Field(default=0, sa_column=Column(BigInteger, nullable=False, default=0))
    manifest: str = Field(default="", sa_column=Column(Text, nullable=False, default=""))
    """TOML, as it was submitted."""
    provenance: str = Field(default="", sa_column=Column(Text, nullable=False, default=""))
    submitter: str = Field(default="", max_length=255)
    submit_unix_nanos: int = Field(default=0, sa_column=Column(BigInteger, nullable=False, default=0))
    sample: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    """A serialized fieldpost.v1.PredictItem on which it was tried."""
    trial: str = Field(default="", sa_column=Column(Text, nullable=False, default=""))
    """What the trial measured: a server.models.card.Trial as JSON; empty where it is built in."""
    restriction: str = Field(default="", sa_column=Column(Text, nullable=False, default=""))
    """A server.models.card.Restriction as JSON; empty for none."""
    first_active_unix_nanos: int | None = Field(default=None, sa_column=Column(BigInteger))
    """None while it never was active: then its predictions are not served."""
    settled_observation_id: int = Field(default=0, sa_column=Column(BigInteger, nullable=False, default=0))
    """No observation up to this one waits for this version: a hint that spares the query the past."""


class ModelEvent(SQLModel, table=True):
    """Something that happened to a model version."""

    id: int | None = Field(default=None, sa_column=_id_column())
    model_version_id: int = Field(sa_column=_foreign_id("modelversion.id"))
    event_unix_nanos: int = Field(sa_column=Column(BigInteger, nullable=False))
    state: str = Field(max_length=16)
    actor: str = Field(max_length=255)
    reason: str = Field(sa_column=Column(Text, nullable=False))


class Prediction(SQLModel, table=True):
    """What a model version says about an observation, or why it cannot say anything."""

    __table_args__ = (
        UniqueConstraint("model_version_id", "observation_id"),
        # The version at its end: a day of one version is found without reading the others' rows.
        Index("ix_prediction_instrument_time", "instrument_id", "measure_unix_nanos", "id", "model_version_id"),
        # Without it, to delete an observation reads all predictions.
        Index("ix_prediction_observation", "observation_id"),
        # Few: those that are to be tried again are found among all.
        Index(
            "ix_prediction_failure",
            "model_version_id",
            sqlite_where=text("is_failure"),
            postgresql_where=text("is_failure"),
        ),
        # Few, too: they are counted for whoever asks how far behind the versions that remember are.
        Index(
            "ix_prediction_provisional",
            "model_version_id",
            sqlite_where=text("is_provisional"),
            postgresql_where=text("is_provisional"),
        ),
        {"sqlite_autoincrement": True},  # ids are the resume tokens of watchers: never used again
    )

    id: int | None = Field(default=None, sa_column=_id_column())
    observation_id: int = Field(sa_column=_foreign_id("observation.id"))
    model_version_id: int = Field(sa_column=_foreign_id("modelversion.id"))
    instrument_id: int = Field(sa_column=_foreign_id("instrument.id"))
    measure_unix_nanos: int = Field(sa_column=Column(BigInteger, nullable=False))
    predict_unix_nanos: int = Field(sa_column=Column(BigInteger, nullable=False))
    content: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    """A serialized fieldpost.v1.Prediction that has only samples, variables and failure."""
    is_failure: bool
    is_provisional: bool = Field(
        default=False, sa_column=Column(Boolean, nullable=False, default=False, server_default=false())
    )
    """Whether it is to be made again: history of its course was still to come when it was made, or came since."""


class FollowState(SQLModel, table=True):
    """What a model version that remembers knows of an instrument's newest course: a cache, made again where it lacks.

    Written in the transaction of the predictions that it comes after. The last observation followed is told by its
    place in the course: measure time, then sequence, then SHA-256.
    """

    __table_args__ = (UniqueConstraint("model_version_id", "instrument_id"),)

    id: int | None = Field(default=None, sa_column=_id_column())
    model_version_id: int = Field(sa_column=_foreign_id("modelversion.id"))
    instrument_id: int = Field(sa_column=_foreign_id("instrument.id"))
    course_start_unix_nanos: int = Field(sa_column=Column(BigInteger, nullable=False))
    through_unix_nanos: int = Field(sa_column=Column(BigInteger, nullable=False))
    through_sequence: int = Field(sa_column=Column(BigInteger, nullable=False))
    through_sha256: bytes = Field(sa_column=Column(LargeBinary(32), nullable=False))
    is_complete: bool
    """Whether no prediction of the course up to there is provisional."""
    state: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    """As the analysis gave it."""


class Bag(SQLModel, table=True):
    """A day of an instrument in the archive, read back and verified."""

    __table_args__ = (UniqueConstraint("instrument_id", "day", "version"),)

    id: int | None = Field(default=None, sa_column=_id_column())
    instrument_id: int = Field(sa_column=_foreign_id("instrument.id"))
    day: str = Field(max_length=10)
    """The UTC day, YYYY-MM-DD."""
    version: int
    """1, 2, 3 …: late observations of an archived day make a new version, never an edit."""
    path: str
    manifest_sha256: str = Field(max_length=64)
    observation_count: int
    prediction_count: int
    archive_unix_nanos: int = Field(sa_column=Column(BigInteger, nullable=False))
    payload_bytes: int | None = Field(default=None, sa_column=Column(BigInteger))
    """Of the instrument, all observations together; None in a bag of an older version of this software."""
    bag_bytes: int | None = Field(default=None, sa_column=Column(BigInteger))
    """Of all its files; likewise."""
    check_unix_nanos: int | None = Field(default=None, sa_column=Column(BigInteger))
    """When it was last read from its first to its last byte and found whole."""
    copy_unix_nanos: int | None = Field(default=None, sa_column=Column(BigInteger))
    """When its copy in the second place was last read so; None where there is none."""
    damage: str = Field(default="", sa_column=Column(Text, nullable=False, server_default=""))
    """What the last look found wrong and could not repair; empty where it is whole."""


class Hold(SQLModel, table=True):
    """An old day that stays in the hot store for a while: it was brought back from the archive."""

    __table_args__ = (UniqueConstraint("instrument_id", "day"),)

    id: int | None = Field(default=None, sa_column=_id_column())
    instrument_id: int = Field(sa_column=_foreign_id("instrument.id"))
    day: str = Field(max_length=10)
    """The UTC day, YYYY-MM-DD."""
    until_unix_nanos: int = Field(sa_column=Column(BigInteger, nullable=False))


# The same tables for SQLAlchemy Core, which the store's queries are written in.
_tables = SQLModel.metadata.tables
stations = _tables["station"]
instruments = _tables["instrument"]
epochs = _tables["epoch"]
segments = _tables["segment"]
observations = _tables["observation"]
model_versions = _tables["modelversion"]
model_events = _tables["modelevent"]
predictions = _tables["prediction"]
follow_states = _tables["followstate"]
bags = _tables["bag"]
holds = _tables["hold"]
