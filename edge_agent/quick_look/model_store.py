"""The models on the station's disk, and which of them is active. Runs none and judges none.

    <folder>/active.json               which one is active, which was before, and which are never to be taken again
    <folder>/<sha256>.fpmodel          packages that were taken

active.json is the one truth and is replaced as a whole; a package is on the disk before active.json names it, and is
removed only after nothing names it any more. So a power cut leaves the old model or the new one, and never none: where
all else is gone there is still the model that came with the software.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from edge_agent.quick_look.package import SHIPPED, SUFFIX, label
from edge_agent.storage.durable import disk_error, replace_file

STATE_FILE = "active.json"
REFUSED_MAX = 50
"""Of models that failed on probation, the last so many are remembered."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model on the disk.

    Attributes:
        sha256: Of its package; empty for the one that came with the software.
        name: Its name; empty likewise.
    """

    sha256: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """What active.json says.

    Attributes:
        active: The model in use.
        previous: The one to go back to.
        is_on_probation: Whether the active one has yet to prove itself.
        refused: Why each model failed, by SHA-256.
        rolled_back: What happened at the last roll-back, in words; empty once another model was taken.
    """

    active: Model = Model()
    previous: Model = Model()
    is_on_probation: bool = False
    refused: dict[str, str] = field(default_factory=dict)
    rolled_back: str = ""


class ModelStore:
    """The models of one station.

    Args:
        folder: Where they lie; made when the first is taken.
        shipped: The package that came with the software.
    """

    def __init__(self, folder: Path, shipped: Path = SHIPPED) -> None:
        self._folder = folder
        self._shipped = shipped
        self.damage = ""
        """What was found damaged when the state was read, in words; empty once it is written anew."""
        self.state = self._load()

    @property
    def active_path(self) -> Path:
        """The active model's package."""
        return self._path(self.state.active)

    @property
    def is_shipped_active(self) -> bool:
        """Whether there is nothing to go back to."""
        return not self.state.active.sha256

    @property
    def active_label(self) -> str:
        """What the active model is called, where that is known without reading it: not that of the software."""
        active = self.state.active
        return label(active.name, active.sha256) if active.sha256 else ""

    def activate(self, content: bytes, model: Model) -> None:
        """Makes a new model the active one, on probation; the one before is kept.

        Raises:
            TryAgainError: The disk is full; the old model stays.
            BrokenStateError: The disk refuses; the old model stays.
        """
        self._replace(self._path(model), content)
        # one that never proved itself is nothing to go back to
        previous = self.state.previous if self.state.is_on_probation else self.state.active
        self._save(State(active=model, previous=previous, is_on_probation=True, refused=self.state.refused))
        self._remove_unnamed()

    def confirm(self) -> None:
        """The active model has proved itself.

        Raises:
            TryAgainError: The disk is full; it stays on probation.
            BrokenStateError: The disk refuses; it stays on probation.
        """
        self._save(replace(self.state, is_on_probation=False))

    def roll_back(self, reason: str, *, is_blamed: bool) -> None:
        """Goes back to the model before, or to that of the software.

        Args:
            reason: Why, in words.
            is_blamed: Whether the model failed, and must not be taken again; not where its file was damaged.

        Raises:
            TryAgainError: The disk is full; the model stays.
            BrokenStateError: The disk refuses; the model stays.
        """
        failed = self.state.active
        refused = dict(self.state.refused)
        if is_blamed:
            refused[failed.sha256] = reason
        previous = self.state.previous
        known = previous if previous.sha256 and self._path(previous).is_file() else Model()
        text = f"the model {label(failed.name, failed.sha256)} was given up for the one before it: {reason}"
        newest = dict(list(refused.items())[-REFUSED_MAX:])
        self._save(State(active=known, refused=newest, rolled_back=text))
        self._remove_unnamed()

    def _path(self, model: Model) -> Path:
        return self._folder / f"{model.sha256}{SUFFIX}" if model.sha256 else self._shipped

    def _save(self, state: State) -> None:
        self._replace(self._folder / STATE_FILE, json.dumps(asdict(state), indent=2).encode())
        self.state = state
        self.damage = ""

    def _replace(self, path: Path, content: bytes) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(error, self._folder) from error
        replace_file(path, content)

    def _load(self) -> State:
        path = self._folder / STATE_FILE
        try:
            table = json.loads(path.read_bytes())
            return State(
                active=Model(**table["active"]),
                previous=Model(**table["previous"]),
                is_on_probation=bool(table["is_on_probation"]),
                refused=dict(table["refused"]),
                rolled_back=str(table["rolled_back"]),
            )
        except FileNotFoundError:
            return State()
        except (OSError, ValueError, TypeError, KeyError) as error:
            self.damage = f"{path} is damaged, and the model that came with the software is used: {error}"
            return State()

    def _remove_unnamed(self) -> None:
        """Removes packages that active.json no longer names, and half-written ones; what stays only costs space."""
        named = {STATE_FILE, self._path(self.state.active).name, self._path(self.state.previous).name}
        with suppress(OSError):
            for path in self._folder.iterdir():
                if path.name not in named and path.suffix in {SUFFIX, ".new"}:
                    path.unlink(missing_ok=True)
