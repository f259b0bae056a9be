"""What becomes of a deployment when an upgrade and an operator both changed it: each keeps what only they changed.

A three-way merge of plain JSON values, as version control does it: `base` is what the code said when the deployment was
last registered, `live` what stands at the Prefect server, `code` what the code says now. Knows no Prefect.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final, Literal, TypeAlias


class _Absent(Enum):
    ABSENT = "absent"


Absent: TypeAlias = Literal[_Absent.ABSENT]
ABSENT: Final = _Absent.ABSENT
"""What is not there: never written, or deleted."""


def merge(base: object | Absent, live: object | Absent, code: object | Absent) -> object | Absent:
    """The value that is to stand.

    A value that live has as base had it follows the code; any other stays as it is live, deleted ones included.
    Mappings are merged key by key; lists and all else are changed as a whole.

    Args:
        base: ABSENT where it was never registered, so that nothing is known to be untouched.
        live: ABSENT where an operator has deleted it, or it was never there.
        code: ABSENT where the code no longer has it.
    """
    if live == base:
        return code
    if isinstance(live, Mapping) and isinstance(code, Mapping):
        return merge_mappings(base, live, code)
    return live


def merge_mappings(base: object | Absent, live: Mapping[str, object], code: Mapping[str, object]) -> dict[str, object]:
    """The same for two mappings, key by key."""
    of_base: Mapping[str, object] = base if isinstance(base, Mapping) else {}
    names = [*code, *(name for name in live if name not in code)]
    merged = {name: merge(of_base.get(name, ABSENT), live.get(name, ABSENT), code.get(name, ABSENT)) for name in names}
    return {name: value for name, value in merged.items() if value is not ABSENT}


def list_changes(code: Mapping[str, object], merged: Mapping[str, object], place: str = "") -> list[str]:
    """Which values are the operator's: their places, such as `schedules.nightly.rule`.

    Args:
        code: What the code says.
        merged: What is to stand.
        place: Of both.
    """
    changes: list[str] = []
    for name in sorted({*code, *merged}):
        ours, theirs = code.get(name, ABSENT), merged.get(name, ABSENT)
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            changes += list_changes(ours, theirs, f"{place}{name}.")
        elif ours != theirs:
            changes.append(f"{place}{name}")
    return changes
