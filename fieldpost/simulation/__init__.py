"""A simulated atmosphere with known truth, and simulated ceilometers that look at it. Needs numpy and nothing else."""

from __future__ import annotations

from fieldpost.simulation.atmosphere import Atmosphere, Truth
from fieldpost.simulation.ceilometer import SimulatedCeilometer
from fieldpost.simulation.cl51 import SimulatedCl51
from fieldpost.simulation.climates import CALIBRATION, FAIR, HELD_OUT, TRAINING, Climate
from fieldpost.simulation.course import REGIMES
from fieldpost.simulation.sky import SKIES

__all__ = [
    "CALIBRATION",
    "FAIR",
    "HELD_OUT",
    "REGIMES",
    "SKIES",
    "TRAINING",
    "Atmosphere",
    "Climate",
    "SimulatedCeilometer",
    "SimulatedCl51",
    "Truth",
]
