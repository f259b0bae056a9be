"""The demo, as a newcomer runs it: every process real, every observation accounted for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import bagit
import netCDF4
import pytest
from conftest import ROOT


def run_demo(output: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """Runs it; returns its summary, and what it printed."""
    command = [sys.executable, "-m", "demo", "--output", str(output), *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + "".join(
        f"\n--- {log.name}\n{log.read_text(errors='replace')[-2000:]}" for log in (output / "logs").glob("*.log")
    )
    return json.loads((output / "summary.json").read_text()), done.stdout


def is_png(path: Path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.timeout(300)
def test_a_day_of_three_stations_arrives_whole_although_a_link_is_cut(tmp_path: Path) -> None:
    summary, printed = run_demo(tmp_path / "out", "--day", "2026-11-20")
    assert summary["totals"]["written"] == 3 * 5760
    for key in ("held", "predicted", "archived"):
        assert summary["totals"][key] == 3 * 5760, key
    for key in ("lost", "failed", "provisional"):
        assert summary["totals"][key] == 0, key
    assert "is cut" in printed
    assert "is back" in printed
    for instrument in summary["instruments"]:
        assert instrument["latency_p50_s"] > 0
        learned, wavelet = instrument["heights"]
        assert (learned["method"], wavelet["method"]) == ("learned", "wavelet")
        assert learned["predicted"] == wavelet["predicted"] == 5760
        assert learned["availability_percent"] > 80
        assert learned["mae_m"] < min(wavelet["mae_m"], 100)
    assert len([path for path in (tmp_path / "out" / "figures").glob("*.png") if is_png(path)]) == 3
    bags = [path.parent for path in (tmp_path / "out" / "archive").rglob("bagit.txt")]
    assert len(bags) == 3
    for bag in bags:
        bagit.Bag(str(bag)).validate()
        of_versions = sorted((bag / "data").glob("predictions-*.nc"))
        assert [path.stem[-3:] for path in of_versions] == ["-v1", "-v5"]
        for path in of_versions:
            with netCDF4.Dataset(path) as dataset:
                assert dataset.Conventions.startswith("CF-")
                assert len(dataset["atmosphere_boundary_layer_thickness"]) == 5760


@pytest.mark.timeout(300)
def test_a_folder_of_real_files_is_recognised_the_faulty_set_aside_and_the_rest_predicted(
    tmp_path: Path, shared_data: Path
) -> None:
    summary, printed = run_demo(tmp_path / "out", "--data", str(shared_data / "ceilometer"))
    models = {each["instrument"]: each["instrument_model"] for each in summary["instruments"]}
    assert set(models.values()) == {"cl31", "cl51", "ct25k", "chm15k", "cl61", "unrecognised"}
    totals = summary["totals"]
    assert totals["written"] == totals["held"] == totals["predicted"] == totals["archived"] == 28
    assert totals["lost"] == 0
    reasons = {aside["name"]: aside["reason"] for each in summary["instruments"] for aside in each["quarantined"]}
    assert set(reasons) == {"C4122300.DAT", "C5061800-first-invalid.DAT", "cl51-corrupted-profile.cl"}
    assert all("expected" in reason for reason in reasons.values())
    assert all(name in printed for name in reasons)


def test_a_folder_that_no_demo_made_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    command = [sys.executable, "-m", "demo", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, env=os.environ)
    assert done.returncode == 1
    assert "holds something else" in done.stdout
    assert (tmp_path / "mine.txt").read_text() == "mine"
