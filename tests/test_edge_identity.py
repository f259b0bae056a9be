"""Certificates of a station: which pair next, promotion killed at every step, what a certificate says, alarms.

Run as a program, this file promotes pairs in processes that are killed.
"""

from __future__ import annotations

import os
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from edge_agent.link.certificate_facts import CertificateFacts, certificate_alarm, read_facts
from edge_agent.link.failures import LinkFailure
from edge_agent.link.identity import Identity
from edge_agent.link.pair_choice import RETRY_INTERVAL_S, Choice, Trials
from edge_agent.link.pair_files import Pair, PairFiles
from fieldpost.errors import InvalidRequestError, TryAgainError

if __name__ != "__main__":  # the killed processes need none of it
    from tls_support import Brokers, brokers, certificates, issue, make_authority  # noqa: F401  (fixtures)
    from uplink_support import Link

ROOT = Path(__file__).resolve().parent.parent
NOW = datetime(2026, 6, 1, tzinfo=UTC).timestamp()
DAY_S = 86_400.0
REFUSED = LinkFailure("the broker refused it", is_refusal=True)
UNREACHABLE = LinkFailure("no way")


# --- which pair next: pure ---


def test_a_new_pair_is_tried_once_then_it_is_the_old_ones_turn_and_again_after_an_hour() -> None:
    trials = Trials().see("v2")
    assert trials.choose(True, 0.0) is Choice.NEW
    trials = trials.failed(Choice.NEW, 10.0)
    assert trials.choose(True, 10.0) is Choice.CURRENT
    trials = trials.accepted(Choice.CURRENT)
    assert trials.choose(True, 10.0 + RETRY_INTERVAL_S - 1) is Choice.CURRENT
    assert trials.choose(True, 10.0 + RETRY_INTERVAL_S) is Choice.NEW


def test_other_files_are_another_pair_and_are_tried_at_once() -> None:
    trials = Trials("v2").failed(Choice.NEW, 10.0).accepted(Choice.CURRENT)
    assert not trials.see("v2").is_new_due(11.0)
    assert trials.see("v3").is_new_due(11.0)


def test_where_neither_connects_they_take_turns() -> None:
    trials = Trials("v2")
    chosen = []
    for now_s in range(6):
        choice = trials.choose(True, now_s)
        assert choice is not None
        chosen.append(choice)
        trials = trials.failed(choice, now_s)
    assert chosen == [Choice.NEW, Choice.CURRENT] * 3


def test_a_pair_that_is_alone_is_always_shown_and_none_is_none() -> None:
    assert Trials().choose(True, 0.0) is Choice.CURRENT
    assert Trials("v2").failed(Choice.NEW, 0.0).choose(False, 0.0) is Choice.NEW
    assert Trials().choose(False, 0.0) is None


def test_an_accepted_pair_that_cannot_be_moved_stays_in_use() -> None:
    trials = Trials("v2").accepted(Choice.NEW)
    assert trials.choose(True, 0.0) is Choice.NEW
    assert trials.failed(Choice.NEW, 0.0).choose(True, 0.0) is Choice.CURRENT


# --- what a certificate says ---


def facts(begins_s: float = -DAY_S, ends_s: float = 365 * DAY_S, name: str = "station-a") -> CertificateFacts:
    return CertificateFacts(name, "stations-ca", NOW + begins_s, NOW + ends_s)


@pytest.mark.parametrize(
    ("certificate", "now_unix_s", "expected"),
    [
        (facts(), NOW, ""),
        (facts(ends_s=29.6 * DAY_S), NOW, "expires on 2026-06-30, in 30 days: renew it"),
        (facts(ends_s=30.1 * DAY_S), NOW, ""),
        (facts(ends_s=-1.0), NOW, "expired on 2026-05-31"),
        (facts(begins_s=DAY_S), NOW, "only from 2026-06-02 on: the station's clock says 2026-06-01: is that right?"),
        (facts(), 60.0, "the station's clock says 1970-01-01: is NTP reachable?"),
        (facts(name="station-b"), NOW, "one of station-b, but the station is called station-a"),
        (facts(name=""), NOW, "one of nobody"),
    ],
)
def test_what_is_wrong_with_a_certificate_is_said_in_words(
    certificate: CertificateFacts, now_unix_s: float, expected: str
) -> None:
    text = certificate_alarm(certificate, "station-a", now_unix_s)
    assert expected in text
    assert bool(text) == bool(expected)


def test_a_certificate_is_read_in_a_process_of_its_own(tmp_path: Path) -> None:
    make_authority(tmp_path, "stations-ca")
    issue(tmp_path, "station-a", ends=timedelta(days=40))
    found = read_facts(tmp_path / "station-a.crt")
    assert (found.common_name, found.issuer_name) == ("station-a", "stations-ca")
    assert found.valid_until_unix_s - datetime.now(UTC).timestamp() == pytest.approx(40 * DAY_S, abs=60)
    # With its chain it holds as long as the shortest of them.
    chain = tmp_path / "chain.crt"
    chain.write_bytes((tmp_path / "station-a.crt").read_bytes() + (tmp_path / "stations-ca.crt").read_bytes())
    assert read_facts(chain).common_name == "station-a"
    assert read_facts(chain).valid_until_unix_s - datetime.now(UTC).timestamp() == pytest.approx(2 * DAY_S, abs=60)


def test_what_is_no_certificate_is_named_and_a_process_that_hangs_is_given_up(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no certificate")
    with pytest.raises(InvalidRequestError, match="text, but got something that is no cert"):
        read_facts(tmp_path / "text")
    with pytest.raises(InvalidRequestError, match="absent, but got No such file"):
        read_facts(tmp_path / "absent")
    os.mkfifo(tmp_path / "fifo")  # opening it for reading waits for a writer
    with pytest.raises(TryAgainError, match=r"fifo, but got .* timed out"):
        read_facts(tmp_path / "fifo", timeout_s=0.5)


def test_the_recorder_itself_loads_neither_cryptography_nor_numpy(tmp_path: Path) -> None:
    make_authority(tmp_path, "stations-ca")
    issue(tmp_path, "station-a")
    program = (
        "import sys\nfrom pathlib import Path\nfrom edge_agent.link.identity import Identity\n"
        "import edge_agent.link.uplink\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "identity = Identity(folder / 'station-a.crt', folder / 'station-a.key', 'station-a')\n"
        "identity.choose(0.0)\nassert identity.expiry_unix_s\n"
        "print([name for name in ('cryptography', 'numpy', 'importlib.metadata', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "[]", done.stderr


# --- files ---


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A station's pair in use, c and k, and a new one that nobody has put beside it yet."""
    make_authority(tmp_path, "stations-ca")
    issue(tmp_path, "station-a")
    issue(tmp_path, "renewed", common_name="station-a")
    (tmp_path / "c").write_bytes((tmp_path / "station-a.crt").read_bytes())
    shutil.copy2(tmp_path / "station-a.key", tmp_path / "k")
    return tmp_path


def offer(folder: Path, name: str, *, with_key: bool = True) -> None:
    """Puts a pair beside the one in use, whole, as a renewal tool does."""
    for suffix, target in ((".key", "k.new"), (".crt", "c.new"))[0 if with_key else 1 :]:
        shutil.copy2(folder / f"{name}{suffix}", folder / "temporary")
        (folder / "temporary").replace(folder / target)


def holds(folder: Path, suffix: str, name: str) -> bool:
    """Whether c and k with that suffix are the pair of that name."""
    return all(
        (folder / f"{short}{suffix}").read_bytes() == (folder / f"{name}{long}").read_bytes()
        for short, long in (("c", ".crt"), ("k", ".key"))
    )


def test_a_promoted_pair_is_in_use_and_the_former_one_is_kept(folder: Path) -> None:
    offer(folder, "renewed")
    files = PairFiles(folder / "c", folder / "k")
    new = files.find().new
    assert new is not None
    assert files.promote(new, new.version())
    assert holds(folder, "", "renewed")
    assert holds(folder, ".old", "station-a")
    assert (folder / "k.old").stat().st_mode & 0o777 == (folder / "k").stat().st_mode & 0o777 == 0o600
    assert not list(folder.glob("*.new")) + list(folder.glob("*.part"))
    assert files.find().new is None


def test_a_certificate_renewed_for_the_same_key_comes_alone(folder: Path) -> None:
    issue(folder, "same-key", common_name="station-a", with_key_of="station-a")
    offer(folder, "same-key", with_key=False)
    files = PairFiles(folder / "c", folder / "k")
    new = files.find().new
    assert new == Pair(folder / "c.new", folder / "k")
    assert files.promote(new, new.version())
    assert (folder / "c").read_bytes() == (folder / "same-key.crt").read_bytes()
    assert holds(folder, ".old", "station-a")


def test_certificate_and_key_may_be_one_file(folder: Path) -> None:
    for name, target in (("station-a", "pem"), ("renewed", "pem.new")):
        (folder / target).write_bytes((folder / f"{name}.crt").read_bytes() + (folder / f"{name}.key").read_bytes())
    content = (folder / "pem.new").read_bytes()
    files = PairFiles(folder / "pem", folder / "pem")
    new = files.find().new
    assert new is not None
    assert files.promote(new, new.version())
    assert (folder / "pem").read_bytes() == content
    assert (folder / "pem.old").exists()


def test_what_was_exchanged_after_the_broker_took_it_is_not_promoted(folder: Path) -> None:
    offer(folder, "renewed")
    files = PairFiles(folder / "c", folder / "k")
    new = files.find().new
    assert new is not None
    version = new.version()
    issue(folder, "newer", common_name="station-a")
    offer(folder, "newer")
    assert not files.promote(new, version)
    assert holds(folder, "", "station-a")


def test_a_half_written_or_foreign_new_pair_is_named_and_left_alone(folder: Path) -> None:
    files = PairFiles(folder / "c", folder / "k")
    shutil.copy2(folder / "renewed.key", folder / "k.new")
    assert files.find().new is None  # its certificate is still to come
    assert not files.find().problems
    shutil.copy2(folder / "station-a.crt", folder / "c.new")
    assert files.find().new is None
    assert "but it is another one's; the new certificate is not tried" in files.find().problems[0]
    (folder / "c.new").write_bytes((folder / "renewed.crt").read_bytes()[:100])
    assert "expected PEM in" in files.find().problems[0]
    assert files.find().current == files.in_use


def test_a_file_that_opens_and_cannot_be_read_is_a_problem_as_on_a_worn_card(folder: Path) -> None:
    (folder / "c.new").symlink_to("/proc/self/mem")  # its first byte is an Input/output error
    shutil.copy2(folder / "renewed.key", folder / "k.new")
    found = PairFiles(folder / "c", folder / "k").find()
    assert found.current is not None and found.new is None
    assert "Input/output error; the new certificate is not tried" in found.problems[0]


def test_a_new_pair_that_the_system_does_not_let_us_look_for_is_none(folder: Path) -> None:
    long = "c" * 252  # with .new no name of a file any more
    shutil.copy2(folder / "c", folder / long)
    found = PairFiles(folder / long, folder / "k").find()
    assert found.current is not None and found.new is None and not found.problems


def test_a_key_with_a_password_is_a_problem_and_no_question_at_the_terminal(folder: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key((folder / "renewed.key").read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"secret")
    text = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)
    offer(folder, "renewed")
    (folder / "k.new").write_bytes(text)
    assert "without a password" in PairFiles(folder / "c", folder / "k").find().problems[0]


def test_where_the_pair_in_use_is_spoilt_the_former_one_is_used(folder: Path) -> None:
    files = PairFiles(folder / "c", folder / "k")
    shutil.copy2(folder / "station-a.crt", folder / "c.old")
    shutil.copy2(folder / "station-a.key", folder / "k.old")
    shutil.copy2(folder / "renewed.crt", folder / "c")  # somebody forgot the key
    found = files.find()
    assert found.current == files.former
    assert "the former pair is used instead" in found.problems[0]
    (folder / "k.old").unlink()
    assert files.find().current is None
    assert "nothing can be sent without them" in files.find().problems[0]


# --- killed at every step ---


def promote_and_kill(folder: Path, kill_before: int) -> None:
    """Promotes, and dies before the given one of the system's calls that change something on the disk."""
    done = 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            done += 1
            if done == kill_before:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return instead

    os.fsync, os.replace, os.open = counted(os.fsync), counted(os.replace), counted(os.open)  # type: ignore[assignment]
    files = PairFiles(folder / "c", folder / "k")
    new = files.find().new
    if new is not None:
        files.promote(new, new.version())


def end_promotions(base: Path) -> None:
    """Makes folders step-1, step-2 ... each left by a promotion that was killed one call later."""
    for kill_before in range(1, 100):
        folder = base / f"step-{kill_before}"
        shutil.copytree(base / "start", folder)
        child = os.fork()
        if child == 0:
            promote_and_kill(folder, kill_before)
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            return


def killed_promotions(base: Path) -> list[Path]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, __file__, str(base)], check=True, env=environment, timeout=60)
    return sorted(base.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))


@pytest.mark.mosquitto
def test_after_a_kill_at_every_step_of_a_promotion_a_station_connects(
    certificates: Path, brokers: Brokers, tmp_path: Path
) -> None:
    start = tmp_path / "start"
    start.mkdir()
    issue(certificates, "renewed", common_name="station-a")
    for name, suffix in (("station-a", ""), ("renewed", ".new")):
        shutil.copy2(certificates / f"{name}.crt", start / f"c{suffix}")
        shutil.copy2(certificates / f"{name}.key", start / f"k{suffix}")
    port = brokers.start()
    folders = killed_promotions(tmp_path)
    assert len(folders) > 15, "a promotion has more steps than that"
    in_the_middle = 0
    for folder in folders:
        in_the_middle += not is_pair(folder / "c", folder / "k")
        found = PairFiles(folder / "c", folder / "k").find()
        assert found.current is not None, folder
        assert is_pair(found.current.certificate, found.current.key), folder
        identity = Identity(folder / "c", folder / "k", "station-a")
        with Link([f"mqtts://localhost:{port}"], ca_file=certificates / "stations-ca.crt", identity=identity) as link:
            link.wait_for_up()
            link.wait_for(
                lambda folder=folder: (folder / "c").read_bytes() == (certificates / "renewed.crt").read_bytes()
            )  # type: ignore[misc]
        assert (folder / "k").read_bytes() == (certificates / "renewed.key").read_bytes(), folder
        assert (folder / "c.old").read_bytes() == (certificates / "station-a.crt").read_bytes(), folder
        assert (folder / "k.old").read_bytes() == (certificates / "station-a.key").read_bytes(), folder
    assert in_the_middle, "no kill came between the key and its certificate"


def is_pair(certificate: Path, key: Path) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key)
    except ssl.SSLError:
        return False
    return True


# --- the identity as a whole ---


def test_a_refused_new_pair_is_an_alarm_until_it_changes(folder: Path) -> None:
    offer(folder, "renewed")
    identity = Identity(folder / "c", folder / "k", "station-a")
    shown = identity.choose(0.0)
    assert (shown.choice, shown.is_trial) == (Choice.NEW, True)
    identity.note_failed(shown, REFUSED, 0.0)
    assert "c.new did not connect: the broker refused it; it is tried again every hour" in identity.alarm
    current = identity.choose(1.0)
    assert (current.pair.certificate, current.is_trial) == (folder / "c", False)
    identity.note_accepted(current, 1.0)
    assert not identity.is_trial_due(current, 60.0)
    assert identity.is_trial_due(current, RETRY_INTERVAL_S + 1)
    issue(folder, "newer", common_name="station-a")
    offer(folder, "newer")
    assert identity.is_trial_due(current, 61.0)
    assert "did not connect" not in identity.alarm


def test_a_network_that_is_down_says_nothing_about_a_new_pair_until_the_old_one_connects(folder: Path) -> None:
    offer(folder, "renewed")
    identity = Identity(folder / "c", folder / "k", "station-a")
    identity.note_failed(identity.choose(0.0), UNREACHABLE, 0.0)
    assert "did not connect" not in identity.alarm
    identity.note_accepted(identity.choose(1.0), 1.0)
    assert "c.new did not connect: no way" in identity.alarm


def test_a_new_pair_of_another_station_is_not_even_tried(folder: Path) -> None:
    issue(folder, "station-b")
    offer(folder, "station-b")
    identity = Identity(folder / "c", folder / "k", "station-a")
    assert identity.choose(0.0).choice is Choice.CURRENT
    assert "c.new is one of station-b, not of station-a: it is not tried" in identity.alarm


def test_an_accepted_pair_that_cannot_be_moved_is_used_from_where_it_lies(folder: Path) -> None:
    offer(folder, "renewed")
    (folder / "c.old.part").mkdir()  # where the copy of the old one would go
    identity = Identity(folder / "c", folder / "k", "station-a")
    shown = identity.choose(0.0)
    identity.note_accepted(shown, 0.0)
    assert "is in use, but could not take the old one's place" in identity.alarm
    again = identity.choose(1.0)
    assert again.pair == Pair(folder / "c.new", folder / "k.new")
    (folder / "c.old.part").rmdir()
    identity.note_accepted(again, 1.0)
    assert "could not take" not in identity.alarm
    assert holds(folder, "", "renewed")


def test_without_any_pair_the_error_says_what_is_missing(folder: Path) -> None:
    (folder / "k").unlink()
    with pytest.raises(InvalidRequestError, match=r"expected to read .*/k, but got No such file"):
        Identity(folder / "c", folder / "k", "station-a").choose(0.0)


def test_the_end_of_the_certificate_in_use_is_known_after_a_promotion_too(folder: Path) -> None:
    identity = Identity(folder / "c", folder / "k", "station-a", wall_clock=lambda: datetime.now(UTC).timestamp())
    identity.note_accepted(identity.choose(0.0), 0.0)
    first = identity.expiry_unix_s
    issue(folder, "renewed", common_name="station-a", ends=timedelta(days=90))
    offer(folder, "renewed")
    assert "in 2 days: renew it" in identity.alarm
    identity.note_accepted(identity.choose(1.0), 1.0)
    assert identity.expiry_unix_s is not None
    assert first is not None
    assert identity.expiry_unix_s - first == pytest.approx(88 * DAY_S, abs=60)
    assert identity.alarm == ""


if __name__ == "__main__":
    end_promotions(Path(sys.argv[1]))
