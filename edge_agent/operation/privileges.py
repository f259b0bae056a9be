"""Whoever works on a buffer as root becomes its owner first, so that no file in it is root's. Knows nothing of buffers.

A lock or a ledger that root made would keep the service out, which is another user.
"""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_PROBE = """
import json, os, sys
asked = json.load(sys.stdin)
os.setgroups(asked["groups"])
os.setgid(asked["group"])
os.setuid(asked["user"])
print(json.dumps([os.access(path, mode) for path, mode in asked["questions"]]))
"""


def become_owner_of(folder: Path) -> None:
    """Gives root's rights away for good, for those of the folder's owner; does nothing for other users."""
    if os.geteuid() != 0 or not folder.exists():
        return
    user_id = folder.stat().st_uid
    if user_id == 0:
        return
    try:
        account = pwd.getpwuid(user_id)
    except KeyError:
        os.setgroups([])
        os.setgid(folder.stat().st_gid)
    else:
        os.initgroups(account.pw_name, account.pw_gid)
        os.setgid(account.pw_gid)
    os.setuid(user_id)


def may_use(questions: Sequence[tuple[Path, int]], account: str = "") -> list[bool]:
    """Whether an account may use these paths.

    Args:
        questions: Path and mode, as os.access takes it.
        account: Whose rights; empty for one's own. Another one's can be told by root only.
    """
    if account and os.geteuid() == 0 and account in {entry.pw_name for entry in pwd.getpwall()}:
        entry = pwd.getpwnam(account)
        asked = {
            "user": entry.pw_uid,
            "group": entry.pw_gid,
            "groups": os.getgrouplist(account, entry.pw_gid),
            "questions": [(str(path), mode) for path, mode in questions],
        }
        # It begins as root, who can always start this interpreter, and then becomes the other one.
        command = [sys.executable, "-c", _PROBE]
        done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=True)
        answers: list[bool] = json.loads(done.stdout)
        return answers
    return [os.access(path, mode) for path, mode in questions]
