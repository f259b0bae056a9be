"""A Ray of one node on this machine, for who has no cluster: says its address on stdout, and ends with its parent."""

from __future__ import annotations

import signal
import sys

import ray

from server.workers.fate import die_with

OBJECT_STORE_BYTES = 200 * 1024 * 1024


def main() -> None:
    """Runs until SIGTERM. Ray ends what it started when this process ends, however that happens."""
    die_with(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signals = {signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    ray.init(address="local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, log_to_driver=False)
    print(ray.get_runtime_context().gcs_address, flush=True)  # noqa: T201
    signal.sigwait(signals)
    ray.shutdown()


if __name__ == "__main__":
    main()
