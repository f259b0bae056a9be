"""What framing has to be told about an instrument's bytes, where the format alone does not say it. Plain values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FramingParameters:
    r"""How an instrument's bytes are to be cut.

    Attributes:
        line_end: What ends a line: "line".
        frame_bytes: The length of a frame: "fixed-length".
        frame_start: What each frame begins with; empty where frames have no common start: "fixed-length".
        idle_gap_s: So much silence ends what was being received: all formats of streams.
        max_frame_bytes: Nothing longer is waited for: all formats of streams. The largest telegram of a ceilometer that
            we know has 10 kB.
    """

    line_end: bytes = b"\n"
    frame_bytes: int = 1
    frame_start: bytes = b""
    idle_gap_s: float = 10.0
    max_frame_bytes: int = 1 << 16
