"""A simulated atmosphere with known truth, and a simulated CL51 that looks at it. Needs numpy and nothing else."""

from __future__ import annotations

from fieldpost.simulation.atmosphere import Atmosphere, Truth
from fieldpost.simulation.cl51 import SimulatedCl51

__all__ = ["Atmosphere", "SimulatedCl51", "Truth"]
