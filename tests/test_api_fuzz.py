"""A short run of the fuzzer of the gRPC services; the long one is `python -m chaos.api_fuzz`."""

from __future__ import annotations

from chaos.api_fuzz import fuzz_own_server


def test_a_server_answers_malformed_messages_with_a_status_and_goes_on() -> None:
    outcome = fuzz_own_server(1500, seed=20260714)
    assert not outcome.broken, outcome.broken
    assert outcome.is_sound, outcome
    assert {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "CANCELLED"} <= set(outcome.codes)
