"""Triton by NVIDIA's pytriton: its server, and its Python backend with one instance.

The wheel brings no ONNX backend. Its dynamic batcher delays nothing by default.
"""

import os

import numpy as np
from profile_model import PROFILE_LENGTH, ProfileModel
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

MODEL = ProfileModel()


@batch
def answer(profile: np.ndarray) -> dict[str, np.ndarray]:
    """A batch."""
    return {"heights": MODEL.predict(profile)}


if __name__ == "__main__":
    config = TritonConfig(
        http_port=int(os.environ["PEER_PORT"]),
        http_address="127.0.0.1",
        grpc_port=int(os.environ["PEER_GRPC_PORT"]),
        grpc_address="127.0.0.1",
        allow_metrics=False,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="profiles",
            infer_func=answer,
            inputs=[Tensor(name="profile", dtype=np.float32, shape=(1, PROFILE_LENGTH))],
            outputs=[Tensor(name="heights", dtype=np.float32, shape=(4,))],
            # A bundle of 64 is one request, and a request cannot be larger than this.
            config=ModelConfig(max_batch_size=64, batcher=DynamicBatcher(max_queue_delay_microseconds=0)),
            strict=False,
        )
        triton.serve()
