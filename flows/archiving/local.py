"""The archive flow's work by plain calls, for a machine without a Prefect server. Prints the table that it has."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime

from fieldpost.logs import configure_logging
from flows.archiving.archivist import Archivist, archive_days
from flows.archiving.copies import copy_bags, copy_now
from flows.archiving.parameters import ArchiveParams
from flows.archiving.report import to_error, to_text
from flows.site import open_site


def archive_locally(params: ArchiveParams) -> None:
    """Archives the days and brings the bags to the second place.

    Raises:
        FieldpostError: A day could not be archived, or a bag not copied; the others are.
    """
    configure_logging("WARNING")
    first_day, last_day = params.days(datetime.now(UTC).date())
    with open_site(params.settings_file) as site:
        archivist = Archivist(site)
        days = archivist.find_days(first_day, last_day, station=params.station, instrument=params.instrument)
        outcomes = archive_days(archivist, days, time.time_ns)
        copies = copy_bags(site, outcomes, copy_now(time.time_ns), is_new_place=params.new_copy)
    sys.stdout.write(to_text(outcomes, copies) + "\n")
    if error := to_error(outcomes, copies):
        raise error
