"""What an operator asks of a station from afar: through the client, and on the command line."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from typer.testing import CliRunner

from fieldpost import AsyncClient, Client, InvalidRequestError, RejectedError
from fieldpost._commands import replay_command, report_command
from fieldpost.cli import app
from fieldpost.testing import RecordingServer


@pytest.fixture
def server() -> Iterator[RecordingServer]:
    with RecordingServer() as running:
        yield running


def test_a_replay_names_sequences_or_a_time_and_nothing_that_makes_no_sense() -> None:
    command = replay_command([(3, 7)], datetime(2026, 6, 1, tzinfo=UTC), datetime(2026, 6, 2, tzinfo=UTC))
    assert [(r.first_sequence, r.last_sequence) for r in command.replay.ranges] == [(3, 7)]
    assert command.replay.start_time.ToJsonString() == "2026-06-01T00:00:00Z"
    for arguments, text in (
        (((),), "expected sequences or a time"),
        (([(0, 1)],), "expected sequences from 1 on"),
        (([(5, 4)],), "but got 5 to 4"),
        (([], datetime(2026, 6, 1, tzinfo=UTC)), "expected since and until together"),
        (([], datetime(2026, 6, 2, tzinfo=UTC), datetime(2026, 6, 1, tzinfo=UTC)), "expected since before until"),
    ):
        with pytest.raises(InvalidRequestError, match=text):
            replay_command(*arguments)  # type: ignore[arg-type]


def test_a_command_is_passed_on_and_a_refusal_is_an_error(server: RecordingServer) -> None:
    server.refusals["delft"] = "expected observations that the buffer still has"
    with Client(server.address) as client:
        client.command("magurele", report_command())
        with pytest.raises(RejectedError, match="station delft refused: expected observations that"):
            client.command("delft", replay_command([(1, 2)]))

    async def ask() -> None:
        async with AsyncClient(server.address) as client:
            await client.command("magurele", report_command())

    asyncio.run(ask())
    assert [station for station, _ in server.commands] == ["magurele", "delft", "magurele"]


@pytest.mark.parametrize(
    ("words", "action", "said"),
    [
        (["report", "magurele"], "report", "magurele: it has said how it is"),
        (["replay", "magurele", "--from", "3", "--to", "9"], "replay", "magurele: it sends them again"),
        (["replay", "magurele", "--since", "2d"], "replay", "magurele: it sends them again"),
        (["set", "magurele", "retention_days", "30"], "set_setting", "magurele: retention_days is 30"),
        (["set", "magurele", "retention_days", ""], "set_setting", "retention_days is as in its settings file"),
    ],
)
def test_an_operator_asks_on_the_command_line(
    server: RecordingServer, words: list[str], action: str, said: str
) -> None:
    done = CliRunner().invoke(app, ["station", *words, "--server", server.address])
    assert done.exit_code == 0, done.output
    assert said in done.output
    assert server.commands[0][1].WhichOneof("action") == action


def test_a_refusal_and_a_wrong_usage_have_their_exit_status_on_the_command_line(server: RecordingServer) -> None:
    server.refusals["delft"] = "no"
    done = CliRunner().invoke(app, ["station", "report", "delft", "--server", server.address])
    assert (done.exit_code, done.output.splitlines()[0]) == (1, "fieldpost: station delft refused: no")
    done = CliRunner().invoke(app, ["station", "replay", "delft", "--server", server.address])
    assert (done.exit_code, "expected sequences or a time" in done.output) == (2, True)
