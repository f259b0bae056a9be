"""LitServe: FastAPI in front, one worker process; the body is raw bytes, not its usual JSON."""

import os
from typing import Annotated

import litserve
from fastapi import Body, Response
from profile_model import ProfileModel


class Profiles(litserve.LitAPI):
    """Its five hooks."""

    def setup(self, device: str) -> None:
        """Loads the model."""
        self._model = ProfileModel()

    def decode_request(self, request: Annotated[bytes, Body(media_type="application/octet-stream")]) -> bytes:
        """Nothing: the body is what the model wants."""
        return request

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        """A list is a batch."""
        return inputs

    def predict(self, x: list[bytes]) -> list[bytes]:
        """A batch."""
        return self._model.answer(x)

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        """A list is a batch."""
        return output

    def encode_response(self, output: bytes) -> Response:
        """Raw bytes."""
        return Response(output, media_type="application/octet-stream")


if __name__ == "__main__":
    api = Profiles(max_batch_size=32, batch_timeout=float(os.environ["PEER_WAIT_MS"]) / 1000)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1", port=int(os.environ["PEER_PORT"]), num_api_servers=1, generate_client_file=False,
        log_level="warning", access_log=False,
    )  # fmt: skip
