"""Runs Alembic's migrations on the connection that the store, or `alembic` itself, hands over."""

from alembic import context
from sqlmodel import SQLModel

import server.storage.tables  # noqa: F401  (fills the metadata)

connection = context.config.attributes["connection"]
# SQLite cannot alter most things in place: batch mode copies the table.
context.configure(connection=connection, target_metadata=SQLModel.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
