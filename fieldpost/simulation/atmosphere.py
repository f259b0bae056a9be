"""A diurnal boundary layer whose height is known exactly, seen as attenuated backscatter.

Knows no instrument: no noise, no overlap, no telegram. It has the features that decide how well a retrieval does, each
drawn from a climate; it is not a forecast model, and one day's clouds do not ask what another's rain has done.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fieldpost.simulation import course as layers
from fieldpost.simulation import sky as skies
from fieldpost.simulation.climate import Climate
from fieldpost.simulation.climates import FAIR
from fieldpost.simulation.days import Days, day_and_hour
from fieldpost.simulation.profile import REFERENCE_NM, attenuated_backscatter
from fieldpost.simulation.sky_day import SKY_NAMES, draw_sky
from fieldpost.simulation.waves import Texture, Waves
from fieldpost.simulation.weather import LayerDay, Site, draw_layers, draw_site

PLUME_PERIODS_S, PLUME_LENGTHS_M, PLUME_COUNT = (25.0, 150.0), (250.0, 2500.0), 16
STRATA_PERIODS_S, STRATA_LENGTHS_M, STRATA_COUNT = (1800.0, 9000.0), (150.0, 900.0), 16
COVER_SPAN_S, COVER_EVERY_S = 1800.0, 300.0
LAYER_NAMES = tuple(field.name for field in fields(LayerDay))


@dataclass(frozen=True, slots=True)
class Truth:
    """What is true of the simulated atmosphere, at each time asked for; each attribute is (times,).

    Attributes:
        mixing_height_m: Depth of the layer in contact with the ground: mixing layer by day, stable layer by night.
            float64; NaN in rain that reaches the ground and in fog, where no height is defined. It follows thermals
            that take minutes, not those that pass within one or two. Stratocumulus lies at the top of the air that
            was mixed last. By day that is the mixing layer, the height is the top of the cloud, and a ceilometer sees
            its base, 0 to 12 % lower. By night the deck is cut off from the ground, and the height that of the stable
            layer below (an assumption: in nature a thick deck may keep the air mixed all night).
        residual_layer_height_m: Top of the residual layer above it; float64; NaN where there is none, or none that
            differs from the air above, and in rain and fog.
        cloud_base_m: Lowest base of low and mid-level clouds overhead; float64; NaN where there is none, and in fog.
            Cirrus does not count.
        sky: int8, index into SKIES.
        regime: int8, index into REGIMES: from the state of the layer, not from the clock.
    """

    mixing_height_m: NDArray[np.float64]
    residual_layer_height_m: NDArray[np.float64]
    cloud_base_m: NDArray[np.float64]
    sky: NDArray[np.int8]
    regime: NDArray[np.int8]


class Atmosphere:
    """An atmosphere, the same for the same seed and climate, at any time and in any order of asking.

    What it assumes, beside the ranges of its climate:

    * The sun is that of fieldpost.sun. After sunrise the stable layer is eroded slowly; then the layer grows fast
      through the residual layer, and slowly until the afternoon; it collapses about sunset (the course in Stull 1988,
      An Introduction to Boundary Layer Meteorology, figure 1.7). Less sun makes lower layers.
    * The day's top stays behind as the residual layer. It sinks, loses aerosol, and is gone when the next day's mixing
      layer reaches it, at the latest when that collapses. When the layer has just collapsed, the air below and above
      the new top is the same: no instrument that looks at aerosol alone sees the new top for an hour or two.
    * Turbulence shows: by day thermals move the top, and the aerosol differs from plume to plume; both die away within
      about half an hour when the surface heating ends. By night there are weak waves only.
    * The top is erf-shaped (Steyn et al. 1999, JTECH 16, 953). Humid air near it scatters more.
    * Faint strata everywhere: edges that mean nothing, as all real profiles have them. Lofted layers, entrained where
      the mixing layer touches them.
    * Lidar ratios as in profile.py. Rain reaches the ground or does not; it washes the aerosol out. Fog begins in the
      second half of the night and is gone some hours after sunrise.

    Args:
        seed: Which atmosphere; 0 or more.
        climate: From what it is drawn.
        latitude_deg: Of the site, north positive; drawn where not given.
        longitude_deg: East positive; drawn where not given.
    """

    def __init__(
        self,
        seed: int,
        climate: Climate = FAIR,
        *,
        latitude_deg: float | None = None,
        longitude_deg: float | None = None,
    ) -> None:
        drawn = draw_site(seed, climate)
        site = Site(
            drawn.latitude_deg if latitude_deg is None else latitude_deg,
            drawn.longitude_deg if longitude_deg is None else longitude_deg,
            drawn.backscatter_median,
        )
        self.seed = seed
        self.climate = climate
        self.latitude_deg, self.longitude_deg = site.latitude_deg, site.longitude_deg
        self._layer_days = Days(partial(draw_layers, seed, climate, site), LAYER_NAMES)
        self._sky_days = Days(partial(draw_sky, seed, climate, site), SKY_NAMES)
        self._layer_waves = Waves(seed, layers.WAVE_PERIODS_S)
        self._sky_waves = Waves(seed, skies.WAVE_PERIODS_S, stream=8)
        self._plumes = Texture((seed, 9), PLUME_COUNT, PLUME_PERIODS_S, PLUME_LENGTHS_M)
        self._strata = Texture((seed, 10), STRATA_COUNT, STRATA_PERIODS_S, STRATA_LENGTHS_M)
        self._cover = float("nan"), 0  # until when, octas

    def truth(self, unix_s: NDArray[np.float64]) -> Truth:
        """The heights at these times.

        Args:
            unix_s: (times,), seconds since 1970-01-01 UTC.
        """
        return _truth(*self._at(unix_s))

    def attenuated_backscatter(
        self, unix_s: NDArray[np.float64], range_m: NDArray[np.float64], wavelength_nm: float = REFERENCE_NM
    ) -> NDArray[np.float32]:
        """The profiles at these times, without noise.

        Args:
            unix_s: (times,), seconds since 1970-01-01 UTC.
            range_m: (gates,), height above the ground, ascending and evenly spaced.
            wavelength_nm: Of the light.

        Returns:
            (times, gates), m-1 sr-1, float32.
        """
        return self.scene(unix_s, range_m, wavelength_nm)[1]

    def scene(
        self, unix_s: NDArray[np.float64], range_m: NDArray[np.float64], wavelength_nm: float = REFERENCE_NM
    ) -> tuple[Truth, NDArray[np.float32]]:
        """Returns truth and attenuated_backscatter at once."""
        state, sky = self._at(unix_s)
        z = np.asarray(range_m, np.float32)
        textures = tuple((t.in_time(unix_s), t.in_height(z)) for t in (self._plumes, self._strata))
        return _truth(state, sky), attenuated_backscatter(
            unix_s, state, sky, (textures[0], textures[1]), z, wavelength_nm
        )

    def cover_octas(self, unix_s: float) -> int:
        """Cloud cover of the last half hour in eighths, low and mid-level clouds; made anew every five minutes."""
        until_unix_s = unix_s // COVER_EVERY_S * COVER_EVERY_S
        if until_unix_s != self._cover[0]:
            bases_m = self.truth(until_unix_s - np.arange(0.0, COVER_SPAN_S, 60)).cloud_base_m
            self._cover = until_unix_s, round(8 * float(np.isfinite(bases_m).mean()))
        return self._cover[1]

    def _at(self, unix_s: NDArray[np.float64]) -> tuple[layers.State, skies.Sky]:
        day, hour = day_and_hour(unix_s, self.longitude_deg)
        sky_now, sky_before = self._sky_days.around(day)
        kept_before = skies.kept_after_rain(hour + 24, sky_before)
        kept_now = skies.kept_after_rain(hour, sky_now) * kept_before
        state = layers.course(hour, *self._layer_days.around(day), self._layer_waves(unix_s), kept_now, kept_before)
        return state, skies.overhead(hour, sky_now, sky_before, state, self._sky_waves(unix_s))


def _truth(state: layers.State, sky: skies.Sky) -> Truth:
    is_defined = (sky.sky != skies.RAIN) & (sky.sky != skies.FOG)
    return Truth(
        mixing_height_m=np.where(is_defined, state.mixing_height_m, np.nan),
        residual_layer_height_m=np.where(is_defined & state.has_residual(), state.residual_height_m, np.nan),
        cloud_base_m=sky.cloud_base_m,
        sky=sky.sky,
        regime=state.regime.astype(np.int8),
    )
