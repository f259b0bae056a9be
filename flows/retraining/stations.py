"""What a retrain does for stations: converts the network for LiteRT, and offers a signed model package.

Knows neither what is converted nor Prefect.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edge_agent.quick_look.package import read_package
from edge_agent.quick_look.signing import sign
from fieldpost import Client
from fieldpost.errors import InvalidRequestError, RejectedError, TryAgainError
from fieldpost.v1 import command_pb2
from flows.retraining.folder import make_file
from flows.retraining.parameters import RetrainParams
from flows.retraining.run import RetrainRun
from flows.retraining.training import run_command

HOW_TO_CONVERT = "LiteRT: not converted; name the converter's Python in litert_python (deploy/quick-look/README.md)"


def convert(run: RetrainRun, on_line: Callable[[str], None]) -> str:
    """Converts the network in the converter's own environment, where one is named; returns in words what there is."""
    python = run.params.litert_python
    if python is None:
        return HOW_TO_CONVERT
    program = make_file(run.folder / "network.pt2", lambda part: run.hooks.export_program(run.weights, part))
    environment = {"OMP_NUM_THREADS": str(run.params.threads)}

    def write(part: Path) -> None:
        run_command([str(python), str(run.hooks.LITERT_SCRIPT), str(program), str(part)], environment, on_line=on_line)

    path = make_file(run.folder / "model.tflite", write)
    return f"LiteRT: {path.name}, {path.stat().st_size} bytes"


def offer(params: RetrainParams, on_line: Callable[[str], None]) -> list[str]:
    """Asks each station to take the model package; returns in words which did not, and why.

    Raises:
        InvalidRequestError: The package or the key is none.
    """
    if params.station_package is None or params.signing_key_file is None:
        raise InvalidRequestError("expected a model package and a signing key, but got none")
    package = params.station_package.read_bytes()
    read_package(package)
    signature = sign(package, params.signing_key_file.read_bytes())
    take = command_pb2.TakeModelCommand(package=package, signature=signature)
    refusals = []
    with Client(params.server_address) as client:
        for station in params.offer_to:
            try:
                client.command(station, command_pb2.Command(take_model=take))
                on_line(f"{station} has taken {params.station_package.name}")
            except (RejectedError, TryAgainError) as error:
                refusals.append(f"{station}: {error}")
    return refusals
