"""What a person chooses when starting the restore flow; Prefect's page draws its form from this."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from fieldpost.errors import InvalidRequestError
from flows.parameters import FirstDay, Form, Instrument, LastDay, SettingsFile, Station

Target = Literal["hot store", "folder"]


class RestoreParams(Form):
    """Which archived days come back, and where to."""

    first_day: FirstDay = Field(json_schema_extra={"position": 1})
    last_day: LastDay = Field(json_schema_extra={"position": 2})
    station: Station = Field(default=None, json_schema_extra={"position": 3})
    instrument: Instrument = Field(default=None, json_schema_extra={"position": 4})
    target: Target = Field(
        default="hot store",
        title="Where to",
        description="The hot store is what the server has at hand: the days can then be asked for, drawn and predicted "
        "as any other. A folder gets the instrument's own files, for other programs.",
        json_schema_extra={"position": 5},
    )
    folder: Path | None = Field(
        default=None,
        title="Folder",
        description="An absolute path on the machine on which the flow runs; only for the target 'folder'. Each day "
        "gets a folder `<station>/<instrument>/<day>` in it.",
        json_schema_extra={"position": 6},
    )
    keep_days: int = Field(
        default=30,
        ge=1,
        le=3660,
        title="Days to keep",
        description="So many days from now the restored days stay in the hot store; then they go again as all that is "
        "old. Nothing is lost by it: the archive has them.",
        json_schema_extra={"position": 7},
    )
    with_predictions: bool = Field(
        default=True,
        title="With predictions",
        description="Bring the archived predictions back too. Without them, the active model versions predict the "
        "restored days anew, when nothing more urgent waits.",
        json_schema_extra={"position": 8},
    )
    dry_run: bool = Field(
        default=False,
        title="Dry run",
        description="Only list the days and their bytes, and restore nothing.",
        json_schema_extra={"position": 9},
    )
    settings_file: SettingsFile = Field(default=None, json_schema_extra={"position": 10})

    def target_folder(self) -> Path | None:
        """The folder to restore to; None for the hot store.

        Raises:
            InvalidRequestError: The choices do not fit together.
        """
        if self.last_day < self.first_day:
            raise InvalidRequestError(
                f"expected a last day at or after {self.first_day}, but got {self.last_day}", hint="swap the two"
            )
        if self.target == "hot store":
            if self.folder is not None:
                raise InvalidRequestError(
                    f"expected no folder for the target 'hot store', but got {self.folder}",
                    hint="choose the target 'folder', or leave the folder empty",
                )
            return None
        if self.folder is None or not self.folder.is_absolute():
            got = "none" if self.folder is None else str(self.folder)
            raise InvalidRequestError(
                f"expected the absolute path of a folder to restore to, but got {got}",
                hint="for example /srv/restored, on the machine on which the flow runs",
            )
        return self.folder
