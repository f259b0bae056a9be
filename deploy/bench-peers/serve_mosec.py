"""mosec: a Rust front, and one worker process that takes raw bytes. PEER_WAIT_MS: how long a batch waits."""

from __future__ import annotations

import os

from mosec import Server, Worker
from profile_model import ProfileModel


class Profiles(Worker):
    """Raw bytes in and out; a list of them, since it batches."""

    resp_mime_type = "application/octet-stream"

    def __init__(self) -> None:
        super().__init__()
        self._model = ProfileModel()

    def deserialize(self, data: bytes) -> bytes:
        """Nothing: the body is what the model wants."""
        return data

    def serialize(self, data: bytes) -> bytes:
        """Nothing."""
        return data

    def forward(self, data: list[bytes]) -> list[bytes]:
        """A batch."""
        return self._model.answer(data)


if __name__ == "__main__":
    server = Server()
    server.append_worker(Profiles, num=1, max_batch_size=32, max_wait_time=int(os.environ["PEER_WAIT_MS"]))
    server.run()
