"""`make` from a bare checkout: what it says, what it installs, and what it leaves alone."""

import contextlib
import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")


def make(*arguments, cwd=ROOT):
    # A make that runs this suite hands its flags and variables down; these runs have their own.
    environment = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    return subprocess.run(
        ["make", *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )


def test_help_lists_every_target_and_is_the_default():
    listed = re.findall(r"^make ([a-z-]+) ", make().stdout, re.MULTILINE)
    (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert set(phony.split()) - set(listed) == {"installed"}  # that one is not for users
    assert make("help").stdout == make().stdout


@pytest.mark.parametrize("target", ["demo", "test", "test-gpu", "lint", "types", "bench", "docs"])
def test_a_target_makes_its_environment_before_it_does_anything(target, tmp_path):
    planned = make("-n", target, f"VENV={tmp_path / 'venv'}").stdout
    assert planned.index("-m venv") < planned.index("-m pip install")


def test_without_an_environment_of_its_own_it_installs_nothing():
    planned = make("-n", "test-gpu", "NO_VENV=1", "PYTHON=some-python").stdout
    assert "pip install --quiet" not in planned
    assert "-m venv" not in planned
    assert "GRAPHKIT_REQUIRE_GPU=1 some-python -P -m pytest --runtime=cuda" in planned


@pytest.mark.parametrize(
    ("target", "driver", "installed"),
    [
        ("demo", "", "."),
        ("demo", "cu12", ".[cu12]"),
        ("lint", "", ".[test,dev,metrics,hf]"),
        ("lint", "cu13", ".[cu13,test,dev,metrics,hf]"),
    ],
)
def test_it_installs_once_and_what_the_target_and_the_driver_ask_for(
    target, driver, installed, tmp_path
):
    calls = tmp_path / "calls"
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    # It answers the question for the driver, and notes every other call instead of making it.
    python.write_text(
        f'#!/bin/sh\nif [ "$1" = -c ]; then echo {driver}; else echo "$@" >>{calls}; fi\n'
    )
    python.chmod(0o755)
    for _ in range(2):
        run = make(target, f"VENV={tmp_path / 'venv'}")
        assert run.returncode == 0, run.stderr
    installs = [line for line in calls.read_text().splitlines() if "pip install" in line]
    assert [line.split()[-1] for line in installs] == [installed]


def test_an_old_python_is_refused_by_name(tmp_path):
    old = tmp_path / "python3.10"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    refused = make("lint", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}")
    assert refused.returncode != 0
    assert f"graphkit needs Python 3.11 or newer, and '{old}' is not" in refused.stderr
    assert not (tmp_path / "venv").exists()


def test_a_missing_installation_is_named_when_nothing_may_be_installed(tmp_path):
    # A Python without packages: -S leaves site-packages out.
    bare = tmp_path / "python3"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    refused = make("docs", "NO_VENV=1", f"PYTHON={bare}")
    assert refused.returncode != 0
    assert refused.stderr.startswith(
        f"NO_VENV=1 installs nothing, and '{bare}' has no graphkit: "
        f"{bare} -m pip install --editable .\n"
    )


@pytest.mark.parametrize("how", [(), ("NO_VENV=1",)])
def test_a_python_that_is_not_there_is_called_so(tmp_path, how):
    refused = make("demo", *how, f"PYTHON={tmp_path / 'none'}", f"VENV={tmp_path / 'venv'}")
    assert refused.returncode != 0
    assert refused.stderr.startswith("PYTHON: expected a Python that runs, came ")


def test_a_prompt_reaches_the_program_as_it_was_given(tmp_path):
    seen = tmp_path / "seen"
    python = tmp_path / "python3"
    python.write_text(f'#!/bin/sh\nif [ "$1" = -P ]; then printf "%s\\n" "$@" >{seen}; fi\n')
    python.chmod(0o755)
    prompt = """say "hello" to `id`, $(HOME) and 'you'"""
    assert make("demo", "NO_VENV=1", f"PYTHON={python}", f"PROMPT={prompt}").returncode == 0
    assert seen.read_text().splitlines()[-4:] == ["--prompt", prompt, "--tokens", "64"]
    assert make("demo", "NO_VENV=1", f"PYTHON={python}").returncode == 0
    assert seen.read_text().splitlines()[-4:] == ["--prompt", "def ", "--tokens", "64"]


def run_driver_extra(monkeypatch, version):
    """Run the Makefile's question for the driver against a libcuda of this version, or none."""

    class Libcuda:
        def __init__(self, name):
            if version is None:
                raise OSError(f"{name}: cannot open shared object file")

        def cuDriverGetVersion(self, reference):
            reference._obj.value = version
            return 0

    (source,) = re.findall(r"^define DRIVER_EXTRA\n(.*?)^endef$", MAKEFILE, re.M | re.S)
    monkeypatch.setattr(ctypes, "CDLL", Libcuda)
    # Without a driver it ends early, and well: make goes on with no extra.
    with contextlib.suppress(SystemExit):
        exec(source, {})


@pytest.mark.parametrize(
    ("version", "extra"),
    [(None, ""), (11080, ""), (12020, "cu12"), (12090, "cu12"), (13000, "cu13"), (14000, "cu13")],
)
def test_the_extra_is_that_of_the_driver(monkeypatch, capsys, version, extra):
    run_driver_extra(monkeypatch, version)
    assert capsys.readouterr().out.strip() == extra


def test_a_driver_too_old_is_named(monkeypatch, capsys):
    run_driver_extra(monkeypatch, 11080)
    assert "CUDA 11; graphkit needs 12 or newer" in capsys.readouterr().err


def test_continuous_integration_runs_what_a_contributor_runs():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make lint types test" in script.read_text(encoding="utf-8")
