"""Builds what a station can be asked out of what a caller says, and reads its answer. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from fieldpost._times import Moment, to_timestamp, unix_nanos
from fieldpost.errors import InvalidRequestError, RejectedError
from fieldpost.v1 import command_pb2 as pb

COMMAND_TIMEOUT_S = 60.0
"""A station tries a model for some seconds, and a slow link takes its time."""


def replay_command(
    ranges: Iterable[tuple[int, int]] = (), since: Moment | None = None, until: Moment | None = None, epoch: str = ""
) -> pb.Command:
    """Asks a station to send observations again.

    Args:
        ranges: Of sequences, first to last.
        since: Those captured from this instant on; together with until.
        until: Those captured before this instant.
        epoch: Whose sequences are meant; empty for the buffer that the station told of last.

    Raises:
        InvalidRequestError: Nothing is asked for, or it makes no sense.
    """
    command = pb.Command()
    command.replay.epoch = epoch
    for first, last in ranges:
        if not 1 <= first <= last:
            raise InvalidRequestError(f"expected sequences from 1 on, first to last, but got {first} to {last}")
        command.replay.ranges.add(first_sequence=first, last_sequence=last)
    if since is not None and until is not None:
        start, end = unix_nanos(since), unix_nanos(until)
        if start >= end:
            raise InvalidRequestError(f"expected since before until, but got since={since} and until={until}")
        command.replay.start_time.CopyFrom(to_timestamp(start))
        command.replay.end_time.CopyFrom(to_timestamp(end))
    elif since is not None or until is not None:
        raise InvalidRequestError("expected since and until together, but got one without the other")
    if not command.replay.ranges and since is None:
        raise InvalidRequestError("expected sequences or a time to send again, but got neither")
    return command


def report_command() -> pb.Command:
    """Asks a station to say how it is, now."""
    return pb.Command(report=pb.ReportCommand())


def setting_command(key: str, value: str) -> pb.Command:
    """Asks a station to change a setting; an empty value goes back to its settings file."""
    return pb.Command(set_setting=pb.SetSettingCommand(key=key, value=value))


def model_command(package: bytes, signature: bytes) -> pb.Command:
    """Asks a station to use a model."""
    return pb.Command(take_model=pb.TakeModelCommand(package=package, signature=signature))


def check_result(station: str, result: pb.CommandResult) -> None:
    """Raises RejectedError where the station refused."""
    if not result.is_accepted:
        raise RejectedError(f"station {station} refused: {result.detail}")
