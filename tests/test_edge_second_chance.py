"""What was refused is offered again: one ahead, the rest behind it."""

from __future__ import annotations

from edge_agent.second_chance import INTERVAL_S, SecondChance
from edge_agent.storage.ledger import Ledger


def ledger_with(*refused: int, reason: str = "UNKNOWN_INSTRUMENT") -> Ledger:
    ledger = Ledger("0" * 32)
    for sequence in refused:
        ledger.refuse(sequence, reason, "")
    return ledger


def test_one_goes_ahead_and_the_next_only_after_a_while() -> None:
    chance, ledger = SecondChance(), ledger_with(4, 5, 6, 9)
    assert chance.choose(ledger, 100.0) == [(4, 4)]
    assert chance.choose(ledger, 100.0 + INTERVAL_S - 1) == []
    assert chance.choose(ledger, 100.0 + INTERVAL_S) == [(4, 4)]


def test_the_rest_follows_when_the_one_ahead_is_held() -> None:
    chance, ledger = SecondChance(), ledger_with(4, 5, 6, 9)
    chance.choose(ledger, 0.0)
    assert chance.after_delivery([(1, 3)], ledger) == []
    ledger.deliver(4, 4)
    assert chance.after_delivery([(4, 4)], ledger) == [(5, 6), (9, 9)]
    assert chance.after_delivery([(4, 4)], ledger) == [], "once is enough"


def test_what_can_never_be_taken_is_not_offered() -> None:
    chance = SecondChance()
    assert chance.choose(ledger_with(1, 2, reason="CHECKSUM_MISMATCH"), 0.0) == []


def test_nothing_refused_is_nothing_to_do() -> None:
    chance, ledger = SecondChance(), ledger_with()
    assert chance.choose(ledger, 0.0) == []
    assert chance.after_delivery([(1, 10)], ledger) == []
