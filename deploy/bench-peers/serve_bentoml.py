"""BentoML: one worker process, its adaptive batching, arrays as it takes them over HTTP."""

import bentoml
import numpy as np
from profile_model import ProfileModel


@bentoml.service(workers=1, traffic={"timeout": 60})
class Profiles:
    """Arrays in and out."""

    def __init__(self) -> None:
        self._model = ProfileModel()

    @bentoml.api(batchable=True, batch_dim=0, max_batch_size=64)
    def predict(self, profile: np.ndarray) -> np.ndarray:
        """A batch."""
        return self._model.predict(profile.astype(np.float32, copy=False))
