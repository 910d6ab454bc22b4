"""compute-sanitizer finds nothing in decode steps: no access out of bounds, no hazard."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu

STEPS = Path(__file__).with_name("sanitized_steps.py")


def sanitizer():
    """Return where compute-sanitizer is, or None."""
    beside = Path("/usr/local/cuda/bin/compute-sanitizer")
    return shutil.which("compute-sanitizer") or (str(beside) if beside.exists() else None)


@pytest.mark.skipif(sanitizer() is None, reason="compute-sanitizer is not installed")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_steps_are_clean(tool):
    command = [sanitizer(), "--tool", tool, "--error-exitcode", "9"]
    if tool == "memcheck":  # calls that fail are how a kernel's parameters are counted
        command += ["--report-api-errors", "no"]
    command += [sys.executable, str(STEPS)]
    if tool == "racecheck":  # which takes long: both families once
        command += ["--batches", "1", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "Device not supported" in done.stdout:
        pytest.skip("compute-sanitizer can't watch this device")  # as in some virtual machines
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "ERROR SUMMARY: 0 errors" in done.stdout or "SUMMARY: 0 hazards" in done.stdout
