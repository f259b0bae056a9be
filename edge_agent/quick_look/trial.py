"""The short-lived process that tries a model before it is taken: python -m edge_agent.quick_look.trial.

Reads one message from its standard input (the package, its signature, the key, and the station's last telegrams) and
says on its standard output whether the model may be taken. Takes nothing itself.
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edge_agent.quick_look.confinement import DEAD_AFTER_S, confine, set_alarm, take_standard_output
from edge_agent.quick_look.messages import MessageBuffer, pack
from edge_agent.quick_look.package import Package, read_package
from edge_agent.quick_look.signing import verify
from fieldpost.errors import FieldpostError, InvalidObservationError, InvalidRequestError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edge_agent.quick_look.estimator import Estimator

SAMPLES_MAX = 64
LATE_TELEGRAMS_MAX_SHARE = 0.1
"""A busy station may delay one of ten without the model being to blame."""


def try_model(
    content: bytes, signature: bytes, public_pem: bytes, telegrams: Sequence[bytes], budget_ms: float
) -> Package:
    """Tries a model.

    Returns:
        Its package.

    Raises:
        InvalidRequestError: It may not be taken; the message says why.
    """
    verify(content, signature, public_pem)  # before anything else looks at the bytes
    package = read_package(content)

    from edge_agent.quick_look.estimator import Estimator

    estimator = Estimator(package)
    check_sample(estimator, package)
    check_telegrams(estimator, telegrams, budget_ms)
    return package


def check_sample(estimator: Estimator, package: Package) -> None:
    """Raises InvalidRequestError where the package's own sample does not give what the package says."""
    profile, height_m, quality = (_load_array(package, name) for name in ("profile", "height_m", "quality"))
    count = len(profile)
    if not 1 <= count <= SAMPLES_MAX or height_m.shape != (count,) or quality.shape != (count, 3):
        raise InvalidRequestError(
            f"expected 1 to {SAMPLES_MAX} samples with a height and 3 probabilities each, "
            f"but got {profile.shape}, {height_m.shape} and {quality.shape}"
        )
    tolerance_m, tolerance = package.manifest.height_tolerance_m, package.manifest.quality_tolerance
    for index in range(count):
        found_m, found = estimator.run(profile[index : index + 1])
        off_m = abs(found_m - float(height_m[index]))
        off = max(abs(a - float(b)) for a, b in zip(found, quality[index], strict=True))
        if not (off_m <= tolerance_m and off <= tolerance):  # so that NaN is refused
            raise InvalidRequestError(
                f"expected the sample's {height_m[index]:.1f} m within {tolerance_m} m and probabilities within "
                f"{tolerance}, but got {found_m:.1f} m and probabilities off by {off:.3f} (sample {index + 1})",
                hint="the model was changed after its sample was made, or this processor computes otherwise",
            )


def check_telegrams(estimator: Estimator, telegrams: Sequence[bytes], budget_ms: float) -> None:
    """Raises InvalidRequestError where the model is too slow, or gives no numbers, on what this station measures."""
    durations_ms = []
    for telegram in telegrams:
        start_s = time.perf_counter()
        try:
            estimator.estimate(telegram)
        except InvalidObservationError:
            continue  # a damaged telegram is not the model's fault
        durations_ms.append((time.perf_counter() - start_s) * 1000)
    late = [duration_ms for duration_ms in durations_ms if duration_ms > budget_ms]
    if len(late) > LATE_TELEGRAMS_MAX_SHARE * len(durations_ms):
        raise InvalidRequestError(
            f"expected an estimate within {budget_ms:g} ms, "
            f"but {len(late)} of {len(durations_ms)} telegrams took up to {max(late):.0f} ms"
        )


def _load_array(package: Package, name: str) -> NDArray[np.float32]:
    import numpy as np

    try:
        array = np.load(io.BytesIO(package.samples[name]), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InvalidRequestError(f"expected an array, but got {error} (sample/{name}.npy)") from error
    if not isinstance(array, np.ndarray) or array.dtype != np.float32:
        raise InvalidRequestError(f"expected an array of float32, but got {array!r:.60} (sample/{name}.npy)")
    return array


def main() -> None:
    """Reads one message, answers it."""
    answers = take_standard_output()
    confine()
    set_alarm(3 * DEAD_AFTER_S)  # an agent that lives kills it earlier
    buffer = MessageBuffer()
    buffer.feed(sys.stdin.buffer.read())
    message = buffer.next()
    assert message is not None
    head, (content, signature, public_pem, *telegrams) = message
    try:
        package = try_model(content, signature, public_pem, telegrams, head["budget_ms"])
        answer = {"name": package.manifest.name}
    except ImportError as error:
        answer = {
            "refused": f"expected {error.name} to be installed, but it is not",
            "hint": "pip install 'fieldpost[quick-look]'",
        }
    except FieldpostError as error:
        answer = {"refused": str(error), "hint": error.hint}
    except Exception as error:  # whatever a package does to numpy or LiteRT: it is refused, with these words
        answer = {"refused": f"expected the trial to succeed, but got {type(error).__name__}: {error}"}
    with os.fdopen(answers, "wb") as pipe:
        pipe.write(pack(answer))


if __name__ == "__main__":
    main()
