"""Draws the sky of each simulated day: clouds, rain, fog and lofted layers, from the ranges of a climate.

Knows no layer below them and no time but the day. What is drawn for a day may begin on it and end on the next.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from fieldpost.simulation.climate import Climate
from fieldpost.simulation.weather import Site, log_uniform, sun_of_day


@dataclass(frozen=True, slots=True)
class SkyDay:
    """The numbers of one day's sky; hours are mean solar time, and an end at or before the start means: none.

    Attributes:
        cumulus_cover: Share of the convective hours under cumulus; 0 for none.
        cumulus_base_share, cumulus_depth_m: Base over the mixing height; depth of the cloud.
        deck_start_h, deck_end_h, deck_base_share, deck_cover: Stratocumulus or stratus under the lid.
        middle_start_h, middle_end_h, middle_base_m, middle_depth_m, middle_cover: Mid-level clouds.
        cirrus_start_h, cirrus_end_h, cirrus_height_m, cirrus_depth_m, cirrus_backscatter: Cirrus.
        rain_start_h, rain_end_h, rain_base_m, rain_bottom_m, rain_backscatter, rain_showers: Rain; where it has
            evaporated (0: it reaches the ground), and how showery it is, 0 to 1.
        washout: Share of the aerosol that the rain takes away.
        fog_start_h, fog_end_h, fog_depth_m, fog_backscatter: Fog; mostly in the morning of the next day.
        lofted_start_h, lofted_end_h, lofted_height_m, lofted_depth_m, lofted_backscatter, lofted_sinking_m_per_h: A
            lofted layer; and those of another one.
    """

    cumulus_cover: float
    cumulus_base_share: float
    cumulus_depth_m: float
    deck_start_h: float
    deck_end_h: float
    deck_base_share: float
    deck_cover: float
    middle_start_h: float
    middle_end_h: float
    middle_base_m: float
    middle_depth_m: float
    middle_cover: float
    cirrus_start_h: float
    cirrus_end_h: float
    cirrus_height_m: float
    cirrus_depth_m: float
    cirrus_backscatter: float
    rain_start_h: float
    rain_end_h: float
    rain_base_m: float
    rain_bottom_m: float
    rain_backscatter: float
    rain_showers: float
    washout: float
    fog_start_h: float
    fog_end_h: float
    fog_depth_m: float
    fog_backscatter: float
    lofted_start_h: float
    lofted_end_h: float
    lofted_height_m: float
    lofted_depth_m: float
    lofted_backscatter: float
    lofted_sinking_m_per_h: float
    other_start_h: float
    other_end_h: float
    other_height_m: float
    other_depth_m: float
    other_backscatter: float
    other_sinking_m_per_h: float


def draw_sky(seed: int, climate: Climate, site: Site, day: int) -> SkyDay:
    """Draws the sky of a day."""
    random = np.random.default_rng([seed, 7, day + 1_000_000])
    next_sunrise_h = 24 + sun_of_day(site, day + 1)[0]

    def comes(probability: float) -> float:
        return float(random.random() < probability)

    numbers: dict[str, float] = {
        "cumulus_cover": random.uniform(*climate.cumulus_cover) * comes(climate.cumulus_share),
        "cumulus_base_share": random.uniform(*climate.cloud_base_share),
        "cumulus_depth_m": log_uniform(random, (120.0, 600.0)),
        "deck_start_h": random.uniform(0, 24),
        "deck_base_share": random.uniform(*climate.cloud_base_share),
        "deck_cover": random.uniform(0.8, 1.02),
        "middle_start_h": random.uniform(0, 24),
        "middle_base_m": random.uniform(*climate.middle_base_m),
        "middle_depth_m": log_uniform(random, (100.0, 900.0)),
        "middle_cover": random.uniform(0.3, 1.02),
        "cirrus_start_h": random.uniform(0, 24),
        "cirrus_height_m": random.uniform(7500, 11500),
        "cirrus_depth_m": random.uniform(200, 900),
        "cirrus_backscatter": log_uniform(random, (5e-7, 1.5e-5)),
        "rain_start_h": random.uniform(0, 24),
        "rain_base_m": random.uniform(*climate.rain_base_m),
        "rain_backscatter": log_uniform(random, climate.rain_backscatter),
        "rain_showers": random.uniform(0.05, 0.9),
        "washout": random.uniform(*climate.washout),
        "fog_start_h": next_sunrise_h - random.uniform(0.5, 8),
        "fog_depth_m": log_uniform(random, climate.fog_depth_m),
        "fog_backscatter": log_uniform(random, climate.fog_backscatter),
    }
    bottom_m = numbers["rain_base_m"] * random.uniform(0.15, 0.8)
    numbers["rain_bottom_m"] = bottom_m * comes(climate.virga_share)
    numbers["deck_end_h"] = numbers["deck_start_h"] + random.uniform(*climate.deck_h) * comes(climate.deck_share)
    numbers["middle_end_h"] = numbers["middle_start_h"] + random.uniform(1, 12) * comes(climate.middle_share)
    numbers["cirrus_end_h"] = numbers["cirrus_start_h"] + random.uniform(2, 14) * comes(climate.cirrus_share)
    numbers["rain_end_h"] = numbers["rain_start_h"] + log_uniform(random, climate.rain_h) * comes(climate.rain_share)
    fog_end_h = next_sunrise_h + random.uniform(0.3, 4)
    numbers["fog_end_h"] = fog_end_h if comes(climate.fog_share) else numbers["fog_start_h"]
    for name in ("lofted", "other"):
        numbers[f"{name}_start_h"] = random.uniform(0, 24)
        length_h = random.uniform(3, 22)
        numbers[f"{name}_end_h"] = numbers[f"{name}_start_h"] + length_h * comes(climate.lofted_share)
        numbers[f"{name}_height_m"] = random.uniform(*climate.lofted_height_m)
        numbers[f"{name}_depth_m"] = random.uniform(*climate.lofted_depth_m)
        numbers[f"{name}_backscatter"] = log_uniform(random, climate.lofted_backscatter)
        numbers[f"{name}_sinking_m_per_h"] = random.uniform(-10, 60)
    return SkyDay(**numbers)


SKY_NAMES = tuple(field.name for field in fields(SkyDay))
