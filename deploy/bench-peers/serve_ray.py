"""Ray Serve: its HTTP proxy, and one replica that batches. PEER_WAIT_MS: how long a batch waits."""

import os
import signal
import threading
from pathlib import Path

import ray
from profile_model import ProfileModel
from ray import serve
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(num_replicas=1, max_ongoing_requests=256)  # the default of 5 would cap a batch in silence
class Profiles:
    """Raw bytes in and out."""

    def __init__(self) -> None:
        self._model = ProfileModel()

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=float(os.environ["PEER_WAIT_MS"]) / 1000)
    async def answer(self, bodies: list[bytes]) -> list[bytes]:
        """A batch."""
        return self._model.answer(bodies)

    async def __call__(self, request: Request) -> Response:
        """A request."""
        return Response(await self.answer(await request.body()), media_type="application/octet-stream")


if __name__ == "__main__":
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    environment = {name: value for name, value in os.environ.items() if name.startswith("PEER_")}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parent)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": environment})
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PEER_PORT"])})
    serve.run(Profiles.bind(), route_prefix="/")
    stop.wait()
    serve.shutdown()
    ray.shutdown()
