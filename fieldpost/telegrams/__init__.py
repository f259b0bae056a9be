"""What ceilometers' telegrams say: backscatter profiles, decoded alike on the server and beside the instrument.

Knows no boundary layer, no registry and no NetCDF. Needs numpy; `import fieldpost` alone does not load it.
"""

from __future__ import annotations

from fieldpost.telegrams.noise import estimate_noise
from fieldpost.telegrams.profiles import Profiles
from fieldpost.telegrams.vaisala_cl import decode_cl
from fieldpost.telegrams.vaisala_ct import decode_ct25k

__all__ = ["Profiles", "decode_cl", "decode_ct25k", "estimate_noise"]
