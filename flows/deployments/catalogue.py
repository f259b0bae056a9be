"""The deployments of all flows: the one list that `serve`, `deploy` and deploy/prefect.yaml stand on.

Plain values; a test holds deploy/prefect.yaml to them. Knows no Prefect, and imports no flow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

WhenTaken = Literal["ENQUEUE", "CANCEL_NEW"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a deployment runs by itself, in the network's time zone.

    Attributes:
        slug: Its name: what an operator changes in the page is kept under it.
        cron: Minute, hour, day of month, month, day of week; empty where it runs every so often.
        every_s: Seconds between two runs; 0 where it runs by cron.
    """

    slug: str
    cron: str = ""
    every_s: float = 0.0


@dataclass(frozen=True, slots=True)
class DeploymentDefinition:
    """A flow with its schedules and its default parameters.

    Attributes:
        flow: The flow's name.
        name: Of the deployment.
        entrypoint: `module:function`, importable wherever runs start.
        params: `module:class` of what the form asks.
        description: Markdown for the page: what it does, changes and costs, and what to look at afterwards.
        work_pool: Where runs start when workers do the work; `serve` starts them itself.
        schedules: When it runs by itself.
        parameters: Default parameters.
        tags: For filters on the page.
        concurrency_limit: So many runs at once.
        when_taken: What becomes of a further run: it waits for its turn, or is cancelled.
        event: It runs when this happens, too; empty for no such event.
    """

    flow: str
    name: str
    entrypoint: str
    params: str
    description: str
    work_pool: Literal["cpu", "gpu"]
    schedules: tuple[Schedule, ...] = ()
    parameters: Mapping[str, object] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    concurrency_limit: int = 1
    when_taken: WhenTaken = "ENQUEUE"
    event: str = ""

    @property
    def full_name(self) -> str:
        """As Prefect writes it: archive/nightly."""
        return f"{self.flow}/{self.name}"


ARCHIVE = DeploymentDefinition(
    flow="archive",
    name="nightly",
    entrypoint="flows.archive:archive",
    params="flows.archiving.parameters:ArchiveParams",
    description="""\
Makes a verified bag of each instrument's day: raw observations bit for bit, predictions as CF-NetCDF, SHA-256 \
of each file.

- **Changes:** new bags on the archive; a day that got late observations gets a new version, never an edit. What is \
past the hot retention leaves the server's database once its bag was read back.
- **By itself:** every night, for yesterday and for what came late in the 30 days before it.
- **Takes:** seconds to minutes for each instrument-day.
- **Look at afterwards:** the table `archive`: each day's outcome, bytes, ratio and verified hashes.

Running it again is harmless.
""",
    work_pool="cpu",
    schedules=(Schedule(slug="nightly", cron="30 1 * * *"),),
    parameters={"params": {"late_days": 30}},
    tags=("archive",),
)
RESTORE = DeploymentDefinition(
    flow="restore",
    name="on-demand",
    entrypoint="flows.restore:restore",
    params="flows.restoring.parameters:RestoreParams",
    description="""\
Brings days back from their bags, into the server's database or into a folder, bit for bit.

- **Changes:** adds what the database lacks, and holds it there for as long as you say; replaces nothing.
- **By itself:** never. Start it before work on days that have left the database.
- **Takes:** about as long as unpacking, hashing and copying the same files by hand.
- **Look at afterwards:** the table of days: what came back, what was there already, hashes checked.

Running it again is harmless.
""",
    work_pool="cpu",
    tags=("archive",),
)
SCRUB = DeploymentDefinition(
    flow="scrub",
    name="monthly",
    entrypoint="flows.scrub:scrub",
    params="flows.scrubbing.parameters:ScrubParams",
    description="""\
Reads the bags of the archive and compares every hash.

- **Changes:** nothing, unless a second copy of the archive is configured: then a damaged bag is set aside and made \
good from its other copy.
- **By itself:** on the first day of each month.
- **Takes:** as long as reading the archive does: hours for terabytes.
- **Look at afterwards:** the table of what was read and what failed; each damaged bag is an event, too.
""",
    work_pool="cpu",
    schedules=(Schedule(slug="monthly", cron="0 5 1 * *"),),
    tags=("archive",),
)
FILL_GAPS = DeploymentDefinition(
    flow="fill-gaps",
    name="daily",
    entrypoint="flows.fill_gaps:fill_gaps",
    params="flows.gap_filling.parameters:FillGapsParams",
    description="""\
Finds observations that a station numbered but the server never got, and asks the station to send them again.

- **Changes:** the observations come in as any others; what a station no longer has is recorded as lost.
- **By itself:** every night, before the archive.
- **Takes:** minutes; it waits for stations, and leaves those that are offline for the next run.
- **Look at afterwards:** the table of stations: missing, came, lost, still missing and why.
""",
    work_pool="cpu",
    schedules=(Schedule(slug="daily", cron="20 0 * * *"),),
    tags=("stations",),
)
WATCH = DeploymentDefinition(
    flow="watch",
    name="every-10-minutes",
    entrypoint="flows.watch:watch",
    params="flows.watching.parameters:WatchParams",
    description="""\
Looks at every station, and tells when one falls silent, comes back, or no longer keeps up.

- **Changes:** nothing but its own memory in the data folder. It emits events, which automations turn into messages.
- **By itself:** every ten minutes. A run that is due while another runs is cancelled.
- **Takes:** seconds.
- **Look at afterwards:** the table of stations: online, last seen, backlog, alarms.
""",
    work_pool="cpu",
    schedules=(Schedule(slug="every-10-minutes", cron="*/10 * * * *"),),
    tags=("stations",),
    when_taken="CANCEL_NEW",
)
BACKFILL = DeploymentDefinition(
    flow="backfill",
    name="on-demand",
    entrypoint="flows.backfill:backfill",
    params="flows.backfilling.parameters:BackfillParams",
    description="""\
Lets any version of a model predict a past range, from the database and from bags.

- **Changes:** adds that version's predictions; those of other versions stay as they are, and so does the active one.
- **By itself:** never. Live work goes first: it waits while stations are served.
- **Takes:** hours for months of data; the progress and the time left are artifacts of the run.
- **Look at afterwards:** the counts and the picture of before and after; then activate the version, or do not.

A run that was ended is taken up where it was.
""",
    work_pool="gpu",
    tags=("models",),
)
RETRAIN = DeploymentDefinition(
    flow="retrain",
    name="weekly",
    entrypoint="flows.retrain:retrain",
    params="flows.retraining.parameters:RetrainParams",
    description="""\
Trains a version of the learned analysis on days like the network's, and compares it with the active one.

- **Changes:** registers the version; activates it where it is better beyond noise, unless you say otherwise.
- **By itself:** every Sunday, and when drift is found.
- **Takes:** about an hour on two cores, minutes with a GPU.
- **Look at afterwards:** `retrain`, which says what was decided and why, and the table `retrain-scores`.

A run that was ended is taken up where it was.
""",
    work_pool="gpu",
    schedules=(Schedule(slug="weekly", cron="0 3 * * 0"),),
    tags=("models",),
    event="fieldpost.drift",
)
DRIFT = DeploymentDefinition(
    flow="drift",
    name="daily",
    entrypoint="flows.drift:drift",
    params="flows.drift:DriftParams",
    description="""\
Holds the last days of each instrument against those that the active version was trained for.

- **Changes:** nothing. Where days deviate it emits the event `fieldpost.drift`, which starts a retrain.
- **By itself:** every night.
- **Takes:** seconds to minutes.
- **Look at afterwards:** the table `drift`: what is not as in the training.
""",
    work_pool="cpu",
    schedules=(Schedule(slug="daily", cron="30 4 * * *"),),
    tags=("models",),
)

CATALOGUE = (ARCHIVE, RESTORE, SCRUB, FILL_GAPS, WATCH, BACKFILL, RETRAIN, DRIFT)


def to_prefect_yaml(definition: DeploymentDefinition) -> dict[str, object]:
    """The deployment as it stands in deploy/prefect.yaml, in UTC."""
    triggers = [{"type": "event", "name": definition.event, "expect": [definition.event]}] if definition.event else []
    return {
        "name": definition.name,
        "entrypoint": definition.entrypoint,
        "description": definition.description,
        "work_pool": {"name": definition.work_pool},
        "schedules": [{"cron": each.cron, "timezone": "UTC", "slug": each.slug} for each in definition.schedules],
        "parameters": dict(definition.parameters),
        "tags": list(definition.tags),
        "concurrency_limit": {
            "limit": definition.concurrency_limit,
            "collision_strategy": definition.when_taken,
        },
        **({"triggers": triggers} if triggers else {}),
    }
