"""Runs a model on telegrams. Only in child processes: numpy and LiteRT, and a model that may do anything.

Knows no pipe and no time budget.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_agent.quick_look.manifest import CHANNELS, INPUT_NAME, OUTPUT_NAMES
from edge_agent.quick_look.package import Package
from edge_agent.quick_look.profile_input import to_input
from fieldpost.errors import InvalidObservationError, InvalidRequestError
from fieldpost.telegrams import Profiles, decode_cl, decode_ct25k
from fieldpost.telegrams.vaisala_ct import HEADER as CT_HEADER
from fieldpost.telegrams.vaisala_ct import HEADER_WITHIN_BYTES

SIGNATURE = "serving_default"


class NotFiniteError(InvalidRequestError):
    """The model gave a number that is none, or a height where no model may see one."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the model makes of one telegram.

    Attributes:
        quality: "good", "doubtful" or "bad".
        height_m: Of the mixing layer above the instrument; None where the quality is bad.
    """

    quality: str
    height_m: float | None


class Estimator:
    """A model, loaded.

    Args:
        package: Where it comes from.

    Raises:
        InvalidRequestError: LiteRT cannot read it, or it reads or gives something else than its manifest says.
    """

    def __init__(self, package: Package) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.manifest = package.manifest
        shape = (1, len(CHANNELS), self.manifest.grid.gate_count)
        try:
            # one thread: the sources have the other cores
            self._interpreter = Interpreter(model_content=package.model, num_threads=1)
            self._run = self._interpreter.get_signature_runner(SIGNATURE)
            inputs, outputs = self._run.get_input_details(), self._run.get_output_details()
        except (ValueError, RuntimeError) as error:
            raise InvalidRequestError(f"expected a model that LiteRT can read, but got {error}") from error
        found = {name: (tuple(detail["shape"]), detail["dtype"]) for name, detail in inputs.items()}
        if found != {INPUT_NAME: (shape, np.float32)} or set(outputs) != set(OUTPUT_NAMES):
            raise InvalidRequestError(
                f"expected a model that reads {INPUT_NAME} {shape} and gives {', '.join(OUTPUT_NAMES)}, "
                f"but it reads {found} and gives {sorted(outputs)}"
            )

    def run(self, profile: NDArray[np.float32]) -> tuple[float, tuple[float, float, float]]:
        """The model's own numbers: height in m, and the probabilities of good, doubtful, bad.

        Args:
            profile: (1, channels, gates), float32, as to_input gives it.

        Raises:
            NotFiniteError: The numbers are none.
        """
        answer = self._run(**{INPUT_NAME: profile})
        height, quality = np.ravel(answer["height_m"]), np.ravel(answer["quality"])
        if height.shape != (1,) or quality.shape != (3,):
            raise InvalidRequestError(f"expected 1 height and 3 probabilities, but got {height.shape}, {quality.shape}")
        height_m, (good, doubtful, bad) = float(height[0]), map(float, quality)
        grid = self.manifest.grid
        # the negation also catches what is not finite
        if not (0 <= height_m <= grid.gate_count * grid.gate_m and math.isfinite(good + doubtful + bad)):
            raise NotFiniteError(f"expected finite numbers of the model, but got {height_m} m, {quality.tolist()}")
        return height_m, (good, doubtful, bad)

    def estimate(self, telegram: bytes) -> Estimate:
        """A first estimate.

        Raises:
            InvalidObservationError: The telegram cannot be decoded.
            NotFiniteError: The model's numbers are none.
        """
        profiles = decode_telegram(telegram)
        if profiles.is_obscured[0]:  # the instrument itself says that there is nothing to see
            return Estimate("bad", None)
        height_m, probabilities = self.run(to_input(profiles, self.manifest.grid))
        quality = self.manifest.quality(probabilities)
        return Estimate(quality, None if quality == "bad" else height_m)


def decode_telegram(telegram: bytes) -> Profiles:
    """Decodes a telegram of a CL31, CL51 or CT25K, as its header line says.

    Raises:
        InvalidObservationError: It is none of them, or damaged.
    """
    decoder = decode_ct25k if CT_HEADER.search(telegram, 0, HEADER_WITHIN_BYTES) else decode_cl
    profiles = decoder(telegram, 0)
    if len(profiles.height_m) < 2:
        raise InvalidObservationError(f"expected two gates or more, but got {len(profiles.height_m)}")
    return profiles
