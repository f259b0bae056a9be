"""The files that an installation writes: settings, service, user, drivers. Pure: text from values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from edge_agent.settings import AgentSettings
from edge_agent.source_settings import FolderSettings, SerialSettings
from fieldpost.errors import InvalidRequestError

SERVICE = "fieldpost-agent.service"
CONFIG_FILE = Path("/etc/fieldpost/station.toml")
STATE_FOLDER = Path("/var/lib/fieldpost")
IDENTITY_FOLDER = STATE_FOLDER / "identity"
METRICS_FOLDER = Path("/run/fieldpost")

_USUAL_PORTS = ("ttyS0", "ttyS1", "ttyS2", "ttyS3", "ttyAMA", "ttyUSB", "ttyACM")
_HIDDEN_FROM_THE_SERVICE = tuple(map(Path, ("/home", "/root", "/run/user", "/tmp", "/var/tmp")))

USERS_TEXT = f"""\
# The station's user, for systemd-sysusers; dialout is the group of the serial ports.
# Written by fieldpost-agent install.
u fieldpost - "Fieldpost station" {STATE_FOLDER}
m fieldpost dialout
"""

DRIVERS_TEXT = """\
# Loaded at boot, so that the service may open a USB serial port that is plugged in later: systemd allows a service only
# drivers that it knows when the service starts. Written by fieldpost-agent install.
usbserial
cdc_acm
"""


def service_text(program: Path, config_file: Path) -> str:
    """The service's unit file."""
    template = files("edge_agent.operation").joinpath(SERVICE).read_text(encoding="utf-8")
    return template.replace("@PROGRAM@", _quoted(program, dollar="$$")).replace(
        "@CONFIG@", _quoted(config_file, dollar="$$")
    )


def folders_text(settings: AgentSettings) -> str:
    """The drop-in of the service that lets it write into the folders which its settings name."""
    lines = [
        "# The folders that the settings name, beside the station's own. Written by fieldpost-agent install: call it",
        "# again when they change.",
    ]
    if not settings.buffer_folder.is_relative_to(STATE_FOLDER):
        lines += [
            "[Unit]",
            "# On a disk of its own: without it the station would fill the folder below, which is on another disk.",
            f"RequiresMountsFor={_quoted(settings.buffer_folder)}",
        ]
    lines.append("[Service]")
    lines += [write_line(path, optional) for path, optional in writable_folders(settings)]
    lines += [f"DeviceAllow={_quoted(device)} rw" for device in _unusual_devices(settings)]
    return "\n".join(lines) + "\n"


def writable_folders(settings: AgentSettings) -> list[tuple[Path, str]]:
    """The folders outside of its own that the service writes to; with each "-" where it may be absent, else ""."""
    folders = [(settings.buffer_folder, "")]
    if settings.metrics_file is not None:
        folders.append((settings.metrics_file.parent, "-"))
    folders += [(drop.folder, "-") for drop in settings.instruments if isinstance(drop, FolderSettings)]
    own = (STATE_FOLDER, METRICS_FOLDER)
    return [(path, optional) for path, optional in folders if not any(path.is_relative_to(top) for top in own)]


def write_line(path: Path, optional: str) -> str:
    """The line of the drop-in that lets the service write there."""
    return f"ReadWritePaths={_quoted(path, optional)}"


def _unusual_devices(settings: AgentSettings) -> list[Path]:
    """Serial ports whose drivers the service does not name; those must be there when it starts."""
    devices = [port.device for port in settings.instruments if isinstance(port, SerialSettings)]
    return [device for device in devices if not device.name.startswith(_USUAL_PORTS) and "serial" not in device.parts]


def settings_text(station: str, broker_urls: Sequence[str], instrument_folders: Mapping[str, Path]) -> str:
    """A first settings file, with comments for whoever edits it."""
    tls = "" if any(url.startswith("mqtts://") for url in broker_urls) else "# "
    instruments = [
        f'[[instruments]]\nname = {_toml(name)}\nsource = "folder"\nfolder = {_toml(str(folder))}\n'
        for name, folder in instrument_folders.items()
    ]
    return _SETTINGS.format(
        station=_toml(station),
        broker_urls=", ".join(map(_toml, broker_urls)),
        state=STATE_FOLDER,
        identity=IDENTITY_FOLDER,
        metrics=METRICS_FOLDER,
        tls=tls,
        instruments="\n".join(instruments) or _EXAMPLE,
    )


def check_reachable(paths: Mapping[str, Path]) -> None:
    """Holds that the service can see these.

    Args:
        paths: By what each is, for the message.

    Raises:
        InvalidRequestError: One lies where the service sees an empty folder, or is not absolute.
    """
    for what, path in paths.items():
        if not path.is_absolute():
            raise InvalidRequestError(f"expected {what} to be an absolute path, but got {path}")
        for hidden in _HIDDEN_FROM_THE_SERVICE:
            if path.is_relative_to(hidden):
                raise InvalidRequestError(
                    f"expected {what} outside of {hidden}, which the service cannot see, but got {path}",
                    hint="the software belongs into /opt/fieldpost, drop folders below /srv: see docs/station.md",
                )


def _quoted(path: Path, optional: str = "", *, dollar: str = "$") -> str:
    """A path as systemd's files want it; quotes only where they are needed."""
    text = f"{optional}{path}".replace("%", "%%").replace("$", dollar)
    if any(character in text for character in " \t\"'\\"):
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return text


def _toml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


_SETTINGS = """\
# The settings of this Fieldpost station. All that there are, with their defaults: docs/settings.md.
# After a change: sudo fieldpost-agent install   (lets the service into the folders named here, and restarts it)
# To see what is wrong: sudo fieldpost-agent check

station = {station}        # also the common name of its certificate

# Each is tried in turn until one answers.
broker_urls = [{broker_urls}]

# Everything that was measured; on a disk of its own where possible.
buffer_folder = "{state}/buffer"

# Whom the station trusts, and who it is. To renew: put station.pem.new and station.key.new beside them.
{tls}ca_file = "{identity}/ca.pem"
{tls}certificate_file = "{identity}/station.pem"
{tls}key_file = "{identity}/station.key"

# What the server holds stays here for three years, where the disk has room; what it does not hold stays anyway.
# retention_days = 1096
# when_full = "drop-oldest"        # or "wait"

# For the node exporter: --collector.textfile.directory={metrics}
# metrics_file = "{metrics}/station.prom"

{instruments}"""

_EXAMPLE = """\
# The instruments, each a table. Here is one that puts its files into a folder:
# [[instruments]]
# name = "cl61"
# source = "folder"
# folder = "/srv/sftp/cl61/upload"
"""
