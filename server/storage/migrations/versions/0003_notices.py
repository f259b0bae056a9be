"""PostgreSQL tells everyone who listens when observations, predictions or model versions were written."""

from alembic import op

revision = "0003"
down_revision = "0002"

# Statement triggers, so that whoever writes tells, whatever it writes with; PostgreSQL tells once a transaction.
EVENTS = {
    "observation": "INSERT",
    "prediction": "INSERT",
    "modelversion": "INSERT OR UPDATE OF state, restriction",
}


def upgrade() -> None:

    if op.get_bind().dialect.name != "postgresql":
        return
    op.execute(
        "CREATE FUNCTION fieldpost_tell() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_notify('fieldpost', TG_TABLE_NAME); RETURN NULL; END $$"
    )
    for table, events in EVENTS.items():
        when = f"AFTER {events} ON {table} FOR EACH STATEMENT"
        op.execute(f"CREATE TRIGGER fieldpost_tell {when} EXECUTE FUNCTION fieldpost_tell()")
