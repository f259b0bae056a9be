"""What the server has to compute with, and how busy it is: gathered at the moment of asking."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from fieldpost._version import __version__
from fieldpost.v1 import capacity_service_pb2 as pb
from server.batching.batcher import Batcher, ModelCounts
from server.ingest.core import Ingest

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")


class CapacityDesk:
    """Tells of capacity.

    Args:
        ingest: What comes in.
        batcher: What is computed; None where there are no workers.
        data_folder: Whose disk is looked at.
    """

    def __init__(self, ingest: Ingest, batcher: Batcher | None, data_folder: Path) -> None:
        self._ingest = ingest
        self._batcher = batcher
        self._data_folder = data_folder

    def gather(self) -> pb.GetCapacityResponse:
        """How things stand now; in the event loop."""
        answer = pb.GetCapacityResponse(
            server=__version__, ingest=self._ingest.load(), machine=machine_load(self._data_folder)
        )
        if self._batcher is not None:
            for worker in self._batcher.workers():
                answer.workers.add(
                    worker=worker.name,
                    device=worker.device,
                    is_ready=worker.is_ready,
                    batch_count=worker.batch_count,
                    restart_count=worker.restart_count,
                    busy_s=worker.busy_s,
                    memory_bytes=worker.memory_bytes,
                )
            for queue in self._batcher.queues():
                counts = self._batcher.model_counts.get(queue.key, ModelCounts())
                answer.queues.add(
                    analysis=queue.key.analysis,
                    model_version=queue.key.version,
                    live_count=queue.live_count,
                    backfill_count=queue.backfill_count,
                    shadow_count=queue.shadow_count,
                    oldest_s=queue.oldest_s,
                    predicted_count=counts.predicted + counts.failed,
                    failed_count=counts.failed,
                    batch_fixed_s=queue.batch_fixed_s,
                    observation_s=queue.observation_s,
                    max_batch_count=queue.max_batch_count,
                )
        return answer


def machine_load(data_folder: Path) -> pb.MachineLoad:
    """The machine, as far as this process may use it."""
    return pb.MachineLoad(
        processor_count=len(os.sched_getaffinity(0)),
        memory_free_bytes=min(_available_bytes(PROC / "meminfo"), _left_in_group_bytes(CGROUP)),
        memory_bytes=int((PROC / "self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
        disk_free_bytes=shutil.disk_usage(data_folder).free,
    )


def _available_bytes(meminfo: Path) -> int:
    for line in meminfo.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return 0


def _left_in_group_bytes(group: Path) -> int:
    """What a container's limit leaves; more than any machine has where there is no limit."""
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return 2**62
    return 2**62 if limit == "max" else max(0, int(limit) - used)
