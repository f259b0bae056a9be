"""Builds the requests about models out of what a caller says, and refuses what makes no sense. Asks no server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

from fieldpost.errors import InvalidRequestError
from fieldpost.v1 import model_pb2
from fieldpost.v1 import models_service_pb2 as pb

PIECE_BYTES = 1024 * 1024
SUBMIT_TIMEOUT_S = 600.0
"""A model of some hundred MB has to travel, and its trial may wait for another's."""

Content: TypeAlias = bytes | str | Path
"""Bytes, or the path of the file that holds them."""
Progress: TypeAlias = Callable[[int], None]
"""Told how many bytes are done."""


def submission_parts(
    model: Content, manifest: str | Path, sample: Content | None, sample_instrument_model: str, provenance: str
) -> tuple[pb.ModelSubmission, Iterator[bytes]]:
    """What is submitted, and the pieces of its content as they are asked for.

    Args:
        model: The ONNX file.
        manifest: Its manifest: TOML text, or the path of a file that holds it. Text has line breaks, a path has none.
        sample: A payload on which it is tried.
        sample_instrument_model: Which instrument model wrote the sample.
        provenance: Where the model comes from.

    Raises:
        InvalidRequestError: A file cannot be read, or the manifest is not text.
    """
    if isinstance(manifest, str) and "\n" in manifest:
        text = manifest
    else:
        try:
            text = _read(Path(manifest)).decode()
        except UnicodeDecodeError as error:
            raise InvalidRequestError(f"expected a manifest in UTF-8, but got other bytes ({manifest})") from error
    submission = pb.ModelSubmission(
        manifest=text,
        sample_payload=b"" if sample is None else sample if isinstance(sample, bytes) else _read(Path(sample)),
        sample_instrument_model=sample_instrument_model,
        provenance=provenance,
    )
    return submission, _pieces(model if isinstance(model, bytes) else _existing(Path(model)))


def submit_requests(
    submission: pb.ModelSubmission, pieces: Iterable[bytes], progress: Progress | None
) -> Iterator[pb.SubmitModelRequest]:
    """The messages of a submission, as they are asked for."""
    yield pb.SubmitModelRequest(submission=submission)
    sent_bytes = 0
    for piece in pieces:
        yield pb.SubmitModelRequest(content=piece)
        sent_bytes += len(piece)
        if progress is not None:
            progress(sent_bytes)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise InvalidRequestError(f"expected a file, but there is none at {path}")
    return path


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidRequestError(f"expected a file that can be read, but got: {error}") from error


def _pieces(model: bytes | Path) -> Iterator[bytes]:
    if isinstance(model, bytes):
        for start in range(0, len(model), PIECE_BYTES):
            yield model[start : start + PIECE_BYTES]
        return
    with model.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


def get_request(analysis: str, version: int) -> pb.GetModelRequest:
    """The request for everything about a version."""
    return pb.GetModelRequest(analysis=analysis, model_version=_checked(analysis, version))


def state_request(
    analysis: str, version: int, state: model_pb2.ModelState.ValueType, reason: str
) -> pb.SetModelStateRequest:
    """The request for another state."""
    return pb.SetModelStateRequest(
        analysis=analysis, model_version=_checked(analysis, version), state=state, reason=reason
    )


def roll_back_request(analysis: str, reason: str) -> pb.RollBackModelRequest:
    """The request to go back to the version before."""
    return pb.RollBackModelRequest(analysis=analysis, reason=reason)


def restrict_request(
    analysis: str, version: int, stations: Iterable[str], instruments: Iterable[str]
) -> pb.RestrictModelRequest:
    """The request for a restriction; both empty: none.

    Raises:
        InvalidRequestError: An instrument is not written as station/instrument.
    """
    wanted = model_pb2.ModelRestriction(stations=_several(stations), instruments=_several(instruments))
    for instrument in wanted.instruments:
        if instrument.count("/") != 1:
            raise InvalidRequestError(
                f"expected an instrument as station/instrument, but got {instrument!r}",
                hint="instruments are named for each station, for example payerne/ceilometer",
            )
    return pb.RestrictModelRequest(analysis=analysis, model_version=_checked(analysis, version), restriction=wanted)


def _several(names: Iterable[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _checked(analysis: str, version: int) -> int:
    if not analysis or version < 1:
        raise InvalidRequestError(
            f"expected an analysis and a model version of 1 or more, but got {analysis!r} and {version}",
            hint="`fieldpost models list` shows those there are",
        )
    return version
