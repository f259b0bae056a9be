"""What bootstrap remembers between its runs, in variables of the Prefect server: what it said, and what it made.

Only so can it tell what an operator has changed or deleted from what was never there. Knows nothing of either.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import VariableCreate, VariableUpdate

PREFIX = "fieldpost-"
TAGS = ["fieldpost"]


def recall(client: SyncPrefectClient, name: str) -> dict[str, Any] | None:
    """What was remembered under the name; None where nothing was."""
    variable = client.read_variable_by_name(PREFIX + name)
    return variable.value if variable is not None and isinstance(variable.value, dict) else None


def remember(client: SyncPrefectClient, name: str, facts: dict[str, Any]) -> None:
    """Keeps the facts, at most 5000 characters of JSON, in place of earlier ones."""
    if client.read_variable_by_name(PREFIX + name) is None:
        client.create_variable(VariableCreate(name=PREFIX + name, value=facts, tags=TAGS))
    else:
        client.update_variable(VariableUpdate(name=PREFIX + name, value=facts, tags=TAGS))


def digest(facts: object) -> str:
    """Sixteen hexadecimal digits that tell one value of JSON from another."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]
