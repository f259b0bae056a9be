"""Imports what the catalogue only names, when it is needed: some flows take seconds to import.

Imports no Prefect itself.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from flows.deployments.catalogue import DeploymentDefinition

if TYPE_CHECKING:
    from prefect import Flow
    from pydantic import BaseModel


def load_flow(definition: DeploymentDefinition) -> Flow[..., object]:
    """The flow."""
    flow: Flow[..., object] = _load(definition.entrypoint)
    return flow


def load_params(definition: DeploymentDefinition) -> type[BaseModel]:
    """The model of the flow's parameters."""
    params: type[BaseModel] = _load(definition.params)
    return params


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
