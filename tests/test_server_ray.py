"""Workers on a cluster of Ray: two nodes on this machine, one of which is killed. One cluster for all tests here."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import psutil
import pytest
from test_server_workers import BOUNDARY_LAYER, PACKAGE, Heard, in_a_loop, make_item

from server.workers import supervised_worker
from server.workers.jobs import Job, JobDone
from server.workers.protocol import Worker, WorkerKind
from server.workers.ray_workers import QUIET, RayEngine
from server.workers.worker_pool import Pool, PoolPlan, open_pool

pytest.importorskip("ray")
pytestmark = pytest.mark.timeout(180)
TOKEN = "0123456789abcdef" * 4
STARTER = """
import sys
from ray.cluster_utils import Cluster
args = dict(num_cpus=1, object_store_memory=80 * 2**20, include_dashboard=False)
quick = dict(health_check_initial_delay_ms=500, health_check_period_ms=500, health_check_failure_threshold=3)
cluster = Cluster(initialize_head=True, head_node_args={**args, "_system_config": quick})
print(cluster.address, flush=True)
other = None
for line in sys.stdin:
    if line.strip() == "add":
        other = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    else:
        cluster.remove_node(other, allow_graceful=False)
    print("done", flush=True)
cluster.shutdown()
"""


@dataclass
class TwoNodes:
    """A head and, while it is there, another node; each has room for one worker."""

    process: subprocess.Popen[str]
    address: str

    def add(self) -> None:
        self._say("add")

    def kill(self) -> None:
        """All processes of the other node, by SIGKILL."""
        self._say("kill")

    def _say(self, what: str) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(what, file=self.process.stdin, flush=True)
        assert self.process.stdout.readline() == "done\n"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    environment = {**QUIET, "RAY_AUTH_TOKEN": TOKEN}
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(
            prefix="ray-", ignore_cleanup_errors=True
        ) as folder,  # its sockets need short names
        subprocess.Popen(
            [sys.executable, "-c", STARTER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **environment, "RAY_TMPDIR": folder},
            text=True,
        ) as process,
    ):
        patch.setenv("RAY_AUTH_TOKEN", TOKEN)
        assert process.stdout is not None and process.stdin is not None
        try:
            yield TwoNodes(process, process.stdout.readline().strip())
            process.stdin.close()
            process.wait(20)
        finally:
            process.kill()  # what it started ends with it


class Feeding(Heard):
    """Gives a pool's workers jobs as long as there are any, and again those that were lost."""

    def __init__(self) -> None:
        super().__init__()
        self.todo: list[Job] = []
        self.pool: Pool | None = None

    def on_done(self, worker: Worker, done: JobDone) -> None:
        super().on_done(worker, done)
        self.feed()

    def on_lost(self, worker: Worker, jobs: list[Job], reason: str) -> None:
        super().on_lost(worker, jobs, reason)
        self.todo += jobs
        self.feed()

    def on_ready(self) -> None:
        super().on_ready()
        self.feed()

    def feed(self) -> None:
        assert self.pool is not None
        for worker in self.pool.workers:
            while worker.free_slots and self.todo:
                worker.send(self.todo.pop(0), PACKAGE)


@asynccontextmanager
async def a_ray_pool(address: str, plan: PoolPlan) -> AsyncIterator[tuple[Pool, Feeding]]:
    heard = Feeding()
    pool = open_pool(f"ray://{address}", plan)(heard)
    assert isinstance(pool, Pool)
    heard.pool = pool
    try:
        pool.need(WorkerKind.BUILT_IN)
        yield pool, heard
    finally:
        pool.close()


@in_a_loop
async def test_a_long_queue_starts_an_actor_whose_death_in_a_batch_costs_a_retry_and_no_prediction(
    cluster: TwoNodes,
) -> None:
    await asyncio.to_thread(cluster.add)
    async with a_ray_pool(cluster.address, PoolPlan(workers=1, workers_max=2, oldest_max_s=0.5)) as (pool, heard):
        await heard.until(lambda: pool.workers[0].is_ready)
        pool.note_queue(WorkerKind.BUILT_IN, 0.4, 100)
        assert len(pool.workers) == 1
        pool.note_queue(WorkerKind.BUILT_IN, 0.6, 100)
        assert [worker.name for worker in pool.workers] == ["ray-1", "ray-2"]
        await heard.until(lambda: pool.workers[1].is_ready)  # each node has room for one: they are on both

        heard.todo = [Job(each, BOUNDARY_LAYER, [make_item()] * 500, 30.0) for each in range(1, 41)]
        heard.feed()
        await heard.until(lambda: min(worker.facts().batch_count for worker in pool.workers) >= 2)
        await asyncio.to_thread(cluster.kill)
        await heard.until(lambda: len(heard.done) == 40)
        assert len(heard.lost) == 1, heard.lost
        assert sorted(done.job_id for done in heard.done) == list(range(1, 41))
        assert all(len(done.results()) == 500 for done in heard.done)

        dead = next(worker for worker in pool.workers if not worker.is_ready)
        assert dead.facts().last_death
        await asyncio.to_thread(cluster.add)  # where its next life finds room
        await heard.until(lambda: dead.is_ready)
        dead.send(Job(41, BOUNDARY_LAYER, [make_item()], 30.0), PACKAGE)
        await heard.until(lambda: len(heard.done) == 41)


@in_a_loop
async def test_a_cluster_that_is_not_there_is_said_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervised_worker, "RESTART_WAIT_MIN_S", 0.05)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    async with a_ray_pool("127.0.0.1:1", PoolPlan()) as (pool, _):
        async with asyncio.timeout(60):
            while not pool.workers[0].facts().restart_count:
                await asyncio.sleep(0.05)
        assert "expected the head of a Ray cluster at 127.0.0.1:1, but got" in pool.workers[0].facts().last_death


@in_a_loop
async def test_a_ray_of_our_own_listens_on_loopback_alone_replaces_what_hangs_and_ends_with_the_server() -> None:
    heard = Feeding()
    start_pool = open_pool("ray:", PoolPlan())
    pool = start_pool(heard)
    assert isinstance(pool, Pool) and isinstance(pool._engine, RayEngine) and pool._engine._own is not None
    heard.pool = pool
    node = psutil.Process(pool._engine._own._process.pid)
    try:
        pool.need(WorkerKind.BUILT_IN)
        heard.todo = [Job(1, BOUNDARY_LAYER, [make_item()], 30.0)]
        await heard.until(lambda: bool(heard.done))
        assert not heard.done[0].failure
        family = [node, *node.children(recursive=True)]
        addresses = {
            ipaddress.ip_address(each.laddr.ip.removeprefix("::ffff:"))
            for process in family
            for each in process.net_connections("inet")
            if each.status == psutil.CONN_LISTEN
        }
        (worker,) = pool.workers
        worker.send(Job(2, BOUNDARY_LAYER, [make_item()] * 3000, 0.02), PACKAGE)  # takes ten times as long
        await heard.until(lambda: bool(heard.lost))
        heard.todo.clear()
        assert "it hung" in heard.lost[0][1]
        await heard.until(lambda: worker.is_ready)
    finally:
        await asyncio.to_thread(pool.close)
    assert addresses and all(each.is_loopback for each in addresses), addresses
    _, alive = psutil.wait_procs(family, timeout=15)
    assert not alive
