"""Decodes one observation of any ceilometer that we know into attenuated backscatter.

The registry says which instrument wrote the bytes; nothing is guessed from the bytes. Knows no boundary layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from fieldpost.errors import InvalidObservationError
from fieldpost.telegrams import Profiles, decode_cl, decode_ct25k
from server.analyses import AnalysisInput
from server.analyses.boundary_layer.decoding.chm15k import decode_chm15k
from server.analyses.boundary_layer.decoding.cl61 import decode_cl61


def _of_telegrams(decoder: Callable[[bytes, int, float | None], Profiles]) -> Callable[[AnalysisInput], Profiles]:
    """A decoder of telegrams, asked as all of them are asked here."""
    return lambda observation: decoder(observation.payload, observation.measure_unix_nanos, observation.calibration)


DECODERS: Mapping[str, Callable[[AnalysisInput], Profiles]] = MappingProxyType(
    {
        "cl31": _of_telegrams(decode_cl),
        "cl51": _of_telegrams(decode_cl),
        "ct25k": _of_telegrams(decode_ct25k),
        "chm15k": decode_chm15k,
        "cl61": decode_cl61,
    }
)


def decode(observation: AnalysisInput) -> Profiles:
    """Decodes one observation: a telegram of the Vaisala CL31, CL51 and CT25K, a NetCDF file of the others.

    Raises:
        InvalidObservationError: The payload is not what the instrument model writes; the message says where.
    """
    decoder = DECODERS.get(observation.instrument_model)
    if decoder is None:
        raise InvalidObservationError(
            f"expected an instrument model of {', '.join(DECODERS)}, but got {observation.instrument_model!r}",
            hint="correct the model in the registry",
        )
    return decoder(observation)
