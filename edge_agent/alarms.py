"""What is wrong with a station, one sentence for each cause, as long as it is wrong. Logs the beginning and the end."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)


class Alarms:
    """The present alarms, by cause."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self.is_changed = False
        """Whether an alarm began or ended since this was last set to False."""

    def set(self, cause: str, text: str) -> None:
        """Says what is wrong with the cause; an empty text ends its alarm. A new wording of an alarm is no change."""
        had = cause in self._texts
        if text:
            self._texts[cause] = text
        elif had:
            del self._texts[cause]
        if bool(text) == had:
            return
        self.is_changed = True
        if text:
            logger.warning("alarm", extra={"alarm": text})
        else:
            logger.info("alarm over", extra={"cause": cause})

    def texts(self) -> list[str]:
        """The sentences, the oldest first."""
        return list(self._texts.values())
