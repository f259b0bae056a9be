"""Every range and every probability that a site, its days, its sky and an instrument are drawn from. Draws nothing."""

from __future__ import annotations

from dataclasses import dataclass

Range = tuple[float, float]
"""(low, high); evenly drawn where nothing else is said."""


@dataclass(frozen=True, slots=True)
class Climate:
    """Every range and every probability.

    Attributes:
        latitude_deg: Of a site, without its sign.
        southern_share: Share of sites south of the equator.
        longitude_deg: Of a site; east is positive.
        maximum_height_m: Afternoon height of the mixing layer under a high sun (usual over land: 1 to 2 km, Stull).
        season_loss: Share of that height that is lost where the noon sun stands at the horizon.
        weak_share: Probability of a day whose layer hardly grows: overcast or cold.
        weak_height_m: Afternoon height on such a day.
        deep_share: Probability of a day with an uncommonly deep layer.
        deep_height_m: Afternoon height on such a day.
        onset: From sunrise until the layer begins to grow; this and the next three as shares of the time from sunrise
            to noon.
        erosion: How long the stable layer is eroded, while the layer grows slowly (Stull, section 11.2).
        rise: How long the fast growth through the residual layer lasts.
        settling: How long the last, slow growth lasts.
        collapse_h: Middle of the evening collapse after sunset, hours; negative before it, as the surface heat flux
            turns round before sunset (Stull).
        collapse_width_h: A quarter of the time that the collapse takes.
        heating_decay_h: In what time turbulence falls to 1/e after the surface heating has ended.
        stable_depth_m: Depth of the stable layer at the end of the night.
        stable_top_share: Standard deviation of its soft top, as a share of its depth.
        second_step_share: Probability of a second step within or above the stable layer.
        surface_excess: What the surface adds to the aerosol of the stable layer in a night, as a share.
        residual_share: What is left of the mixing layer's aerosol in the residual layer by the morning, as a share.
        residual_step_share: Probability of a step within the residual layer.
        sinking_m_per_h: Subsidence of the residual layer and of lofted layers (18 m/h is fair weather, Stull).
        entrainment_share: Standard deviation of the erf-shaped top (Steyn et al. 1999, JTECH 16, 953), as a share of
            the mixing height.
        thermal_share: How far thermals move the top by day, standard deviation as a share of the height.
        night_wave_share: The same for waves on the stable layer.
        plume_share: Standard deviation of the aerosol from one thermal to the next, as a share.
        strata_share: The same of faint strata that mean nothing.
        mixed_backscatter: Median of the aerosol backscatter of the mixing layer at 910 nm, m-1 sr-1: of a site.
        mixed_log_spread: Standard deviation of its logarithm from day to day.
        free_backscatter: Aerosol backscatter at the bottom of the free troposphere; evenly in the logarithm.
        humidity_gain: Relative increase of the backscatter from the ground to the top by day: hygroscopic growth.
        lofted_share: Probability that a day has a lofted layer (dust, smoke); drawn twice.
        lofted_height_m, lofted_depth_m, lofted_backscatter: Its centre, half of its depth, its backscatter.
        cumulus_share, cumulus_cover: Probability of a day with cumulus, and how much of the sky it takes.
        cloud_base_share: Base of cumulus and stratocumulus as a share of the mixing height.
        deck_share, deck_h: Probability that a deck of stratocumulus or stratus comes, and for how long.
        middle_share, middle_base_m: The same for mid-level clouds, and their base.
        cirrus_share: Probability that cirrus comes.
        rain_share, rain_h: Probability that rain comes, and for how long.
        rain_backscatter: Of rain and drizzle, m-1 sr-1; evenly in the logarithm.
        rain_base_m: Base of the cloud that it falls from.
        virga_share: Share of rain that does not reach the ground.
        washout: Share of the aerosol that rain takes away.
        fog_share, fog_depth_m, fog_backscatter: Probability of fog in a night, its depth, its backscatter.
        noise_factor: Factor on the usual noise of an instrument model.
        noon_noise_ratio: How much an overhead sun raises the noise.
        calibration_log_spread: Standard deviation of the logarithm of the calibration's error.
        overlap_error: What the overlap correction leaves at the ground, as a share of the signal.
        near_step: Height of the small steps that some instruments have between 50 and 120 m, as a share.
        water_vapour_loss: Share of the signal at 910 nm that water vapour takes from several kilometres on (Wiegner
            and Gasteiger 2015, AMT 8, 3971: up to 20 %).
        window_loss: Share of the signal that a dirty window takes at its worst.
        baseline_error: Offset of the signal before range correction, in standard deviations of its noise.
        cloud_missed_share: How often the instrument does not report a cloud that it sees.
        cloud_base_error_m: Standard deviation of its cloud bases.
        dropout_share: Probability that a day has a gap of hours.
        lost_share: Share of single profiles that are lost.
    """

    latitude_deg: Range
    southern_share: float
    longitude_deg: Range
    maximum_height_m: Range
    season_loss: float
    weak_share: float
    weak_height_m: Range
    deep_share: float
    deep_height_m: Range
    onset: Range
    erosion: Range
    rise: Range
    settling: Range
    collapse_h: Range
    collapse_width_h: Range
    heating_decay_h: Range
    stable_depth_m: Range
    stable_top_share: Range
    second_step_share: float
    surface_excess: Range
    residual_share: Range
    residual_step_share: float
    sinking_m_per_h: Range
    entrainment_share: Range
    thermal_share: Range
    night_wave_share: Range
    plume_share: Range
    strata_share: Range
    mixed_backscatter: Range
    mixed_log_spread: float
    free_backscatter: Range
    humidity_gain: Range
    lofted_share: float
    lofted_height_m: Range
    lofted_depth_m: Range
    lofted_backscatter: Range
    cumulus_share: float
    cumulus_cover: Range
    cloud_base_share: Range
    deck_share: float
    deck_h: Range
    middle_share: float
    middle_base_m: Range
    cirrus_share: float
    rain_share: float
    rain_h: Range
    rain_backscatter: Range
    rain_base_m: Range
    virga_share: float
    washout: Range
    fog_share: float
    fog_depth_m: Range
    fog_backscatter: Range
    noise_factor: Range
    noon_noise_ratio: Range
    calibration_log_spread: float
    overlap_error: Range
    near_step: Range
    water_vapour_loss: Range
    window_loss: Range
    baseline_error: Range
    cloud_missed_share: float
    cloud_base_error_m: Range
    dropout_share: float
    lost_share: float
