"""How long a run will still take, as far as that can be told from what is done."""

from __future__ import annotations

import pytest

from flows.progress import format_time_left


@pytest.mark.parametrize(
    ("share", "elapsed_s", "text"),
    [
        (0.0, 60.0, ""),
        (0.5, 60.0, "about 60 s left"),
        (0.25, 600.0, "about 30 min left"),
        (0.1, 3600.0, "about 9 h left"),
        (1.0, 60.0, ""),
    ],
)
def test_the_time_left_is_in_proportion_to_what_is_done(share: float, elapsed_s: float, text: str) -> None:
    assert format_time_left(share, elapsed_s) == text
