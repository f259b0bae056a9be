"""Makes a service of this software: user, folders, settings, unit. Each step says what it did, and may be repeated.

Carries out; the texts are made elsewhere. Knows no certificate: those are brought by a person.
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_agent.operation.install_texts import (
    DRIVERS_TEXT,
    IDENTITY_FOLDER,
    SERVICE,
    STATE_FOLDER,
    USERS_TEXT,
    check_reachable,
    folders_text,
    service_text,
    settings_text,
)
from edge_agent.settings import AgentSettings, load_settings, parse_settings
from edge_agent.source_settings import FolderSettings
from edge_agent.storage.durable import disk_error, replace_file
from fieldpost.errors import BrokenStateError, InvalidRequestError, RejectedError

ACCOUNT = "fieldpost"
USERS_FILE = Path("/etc/sysusers.d/fieldpost.conf")
DRIVERS_FILE = Path("/etc/modules-load.d/fieldpost.conf")
UNIT_FILE = Path("/etc/systemd/system") / SERVICE
FOLDERS_FILE = Path("/etc/systemd/system") / f"{SERVICE}.d" / "10-folders.conf"
COMMAND_LINK = Path("/usr/local/bin/fieldpost-agent")
SYSTEM = Path("/")

_WOULD_BE = {"made": "would make", "replaced": "would replace", "ran": "would run"}

Say = Callable[[str, str], None]
"""(what was done, to what): called at each step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallRequest:
    """What is to be installed.

    Attributes:
        station: Name of the station; empty to take the settings file that is there.
        broker_urls: Its brokers.
        instrument_folders: Drop folder by instrument.
        config_file: The settings file.
        program: The executable fieldpost-agent, as the service will see it.
        root: "/", or the folder of an image: then no user is made, nothing is owned and nothing is started.
        is_started: Whether to start the service, too.
        is_dry_run: Whether to say only what would be done.
    """

    station: str
    broker_urls: Sequence[str]
    instrument_folders: Mapping[str, Path]
    config_file: Path
    program: Path
    root: Path = SYSTEM
    is_started: bool = True
    is_dry_run: bool = False


def install(request: InstallRequest, say: Say) -> None:
    """Installs.

    Raises:
        InvalidRequestError: The request makes no sense, or does not fit the settings that are there.
        RejectedError: Not root.
        BrokenStateError: The system refused a step.
    """
    check_reachable({"the program": request.program, "--config": request.config_file})
    settings, new_text = _settings(request)
    check_reachable({"buffer_folder": settings.buffer_folder, **_files(settings), **_drops(settings)})
    if request.root == SYSTEM and not request.is_dry_run and os.geteuid() != 0:
        raise RejectedError("expected to be root, but got another user", hint="sudo fieldpost-agent install ...")
    try:
        _take_steps(request, settings, new_text, _Hand(request.root, request.is_dry_run, say))
    except OSError as error:
        raise disk_error(error, Path(error.filename or request.root)) from error


def _take_steps(request: InstallRequest, settings: AgentSettings, new_text: str, hand: _Hand) -> None:
    is_system = request.root == SYSTEM
    hand.write(USERS_FILE, USERS_TEXT)
    if is_system:
        hand.run("systemd-sysusers", str(USERS_FILE))
    hand.make_folder(request.config_file.parent, 0o755)
    if new_text:
        hand.write(request.config_file, new_text)
    else:
        hand.say("kept", f"{hand.at(request.config_file)}: an existing settings file is never changed")
    hand.make_folder(STATE_FOLDER, 0o750, ACCOUNT)
    hand.make_folder(IDENTITY_FOLDER, 0o700, ACCOUNT)
    hand.make_folder(settings.buffer_folder, 0o750, ACCOUNT)
    for folder in _drops(settings).values():
        hand.make_folder(folder, 0o2770, ACCOUNT)
    hand.write(DRIVERS_FILE, DRIVERS_TEXT)
    hand.write(UNIT_FILE, service_text(request.program, request.config_file))
    hand.write(FOLDERS_FILE, folders_text(settings))
    hand.link(COMMAND_LINK, request.program)
    if is_system:
        # A kernel without these drivers has no such ports either.
        hand.run("systemctl", "restart", "systemd-modules-load.service", may_fail=True)
        hand.run("systemctl", "daemon-reload")
        hand.run("systemctl", "enable", SERVICE)
        if request.is_started:
            hand.run("systemctl", "restart", SERVICE)
    else:
        hand.say("left to do", f"systemd-sysusers --root={request.root}")
        hand.say("left to do", f"systemctl --root={request.root} enable {SERVICE}")


def own_program() -> Path:
    """The fieldpost-agent beside the interpreter that runs this."""
    return Path(sys.executable).with_name("fieldpost-agent")


def _drops(settings: AgentSettings) -> dict[str, Path]:
    return {f"the folder of {i.name}": i.folder for i in settings.instruments if isinstance(i, FolderSettings)}


def _files(settings: AgentSettings) -> dict[str, Path]:
    """Those that the service reads or writes, by the name of the setting."""
    names = ("ca_file", "certificate_file", "key_file", "model_key_file", "metrics_file")
    return {name: path for name in names if (path := getattr(settings, name)) is not None}


def _settings(request: InstallRequest) -> tuple[AgentSettings, str]:
    """The settings of the station, and the text of their file where there is none yet."""
    path = _at(request.root, request.config_file)
    if path.exists():
        settings = load_settings(path, {})
        if request.station and request.station != settings.station:
            raise InvalidRequestError(
                f"expected station {settings.station} as in {path}, but got --station {request.station}",
                hint="an existing settings file is never changed: edit it, or move it away",
            )
        drops = {i.name: i.folder for i in settings.instruments if isinstance(i, FolderSettings)}
        brokers_fit = set(request.broker_urls) <= set(settings.broker_urls)
        if not (brokers_fit and request.instrument_folders.items() <= drops.items()):
            raise InvalidRequestError(
                f"expected brokers and instruments as in {path}, but got others",
                hint="an existing settings file is never changed: edit it, then call install without these options",
            )
        return settings, ""
    if not request.station or not request.broker_urls:
        raise InvalidRequestError(
            f"expected --station and --broker, or a settings file at {path}, but got neither",
            hint="fieldpost-agent install --station NAME --broker mqtts://HOST:8883",
        )
    text = settings_text(request.station, request.broker_urls, request.instrument_folders)
    return parse_settings(tomllib.loads(text), {}), text


class _Hand:
    """Does one step at a time below a root, or only says so."""

    def __init__(self, root: Path, is_dry_run: bool, say: Say) -> None:
        self._root = root
        self._is_dry_run = is_dry_run
        self.say: Say = say if not is_dry_run else lambda done, what: say(_WOULD_BE.get(done, done), what)

    def at(self, path: Path) -> Path:
        return _at(self._root, path)

    def write(self, path: Path, text: str) -> None:
        place = self.at(path)
        content = text.encode()
        if place.exists() and place.read_bytes() == content:
            self.say("kept", str(place))
            return
        self.say("replaced" if place.exists() else "made", str(place))
        if not self._is_dry_run:
            place.parent.mkdir(parents=True, exist_ok=True)
            replace_file(place, content)
            place.chmod(0o644)

    def make_folder(self, path: Path, mode: int, owner: str = "") -> None:
        """Makes a folder that is not there; the owner and the mode of one that is there are somebody's choice."""
        place = self.at(path)
        if place.is_dir():
            self.say("kept", str(place))
            return
        self.say("made", f"{place} ({mode:o}{f', {owner}' if owner else ''})")
        if self._is_dry_run:
            return
        place.mkdir(parents=True)
        if owner and self._root == SYSTEM:
            os.chown(place, pwd.getpwnam(owner).pw_uid, grp.getgrnam(owner).gr_gid)
        place.chmod(mode)

    def link(self, path: Path, target: Path) -> None:
        place = self.at(path)
        if place.is_symlink() and place.readlink() == target:
            self.say("kept", str(place))
        elif path == target:
            return
        elif place.exists() and not place.is_symlink():
            self.say("kept", f"{place}: it is not ours")
        else:
            self.say("made", f"{place} -> {target}")
            if not self._is_dry_run:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.unlink(missing_ok=True)
                place.symlink_to(target)

    def run(self, *command: str, may_fail: bool = False) -> None:
        line = " ".join(command)
        if self._is_dry_run:
            self.say("ran", line)
            return
        if shutil.which(command[0]) is None:
            raise BrokenStateError(f"expected the program {command[0]}, but there is none", hint="is this Pi OS?")
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode == 0:
            self.say("ran", line)
        elif may_fail:
            self.say("went on", f"{line} failed: {done.stderr.strip()}")
        else:
            raise BrokenStateError(
                f"expected {line!r} to succeed, but got status {done.returncode}: {done.stderr.strip()}",
                hint="sudo fieldpost-agent check; journalctl -u fieldpost-agent -n 50",
            )


def _at(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")
