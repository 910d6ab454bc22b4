"""A pytest plugin: a green run on a device leaves a file that says so, and other runs read it.

``--evidence=write`` (`make test-gpu`) writes ``bench/results/<device>/gpu-suite.json`` when the
whole suite passed on a device. ``--evidence=check`` (`make test`) prints whether those files still
belong to the code as it is. ``GRAPHKIT_REQUIRE_GPU=1`` makes a missing device an error.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import provenance
import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--evidence",
        choices=("check", "write"),
        help="check: say whether the GPU evidence is fresh; write: write it after a green run",
    )


def pytest_configure(config: pytest.Config) -> None:
    required = os.environ.get("GRAPHKIT_REQUIRE_GPU") == "1"
    if (required or config.getoption("--evidence") == "write") and not hasattr(
        config, "workerinput"
    ):
        try:
            provenance.provenance()
        except (ImportError, RuntimeError) as error:
            raise pytest.UsageError(f"this run needs a CUDA device: {error}") from error


def whole_suite(config: pytest.Config) -> bool:
    """Tell whether nothing was left out by hand."""
    from_testpaths = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    chosen = config.option.keyword or config.option.markexpr or config.option.deselect
    return from_testpaths and not chosen


def outcome(stats: dict[str, list[Any]]) -> dict[str, Any]:
    """Count the reports of a run by their outcome, and the skips by their reason."""
    reasons = Counter(report.longrepr[2] for report in stats.get("skipped", []))
    return {
        "passed": len(stats.get("passed", [])),
        "failed": len(stats.get("failed", [])) + len(stats.get("error", [])),
        "skipped": len(stats.get("skipped", [])),
        "skip_reasons": dict(sorted(reasons.items())),
    }


def write(stats: dict[str, list[Any]], results: Path, source: dict[str, Any]) -> Path:
    """Write the evidence of a green run and return its path."""
    path = results / provenance.device_slug(source["device"]) / "gpu-suite.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**outcome(stats), **source}, indent=2) + "\n", encoding="utf-8")
    return path


def freshness(results: Path, digest: str) -> str:
    """Say in one line whether the evidence belongs to the code of this digest."""
    found = []
    for path in sorted(results.glob("*/gpu-suite.json")):
        evidence = json.loads(path.read_text(encoding="utf-8"))
        state = "fresh" if evidence["digest"] == digest else "stale"
        found.append(
            f"{path.parent.name} {state} ({evidence['date'][:10]}, {evidence['passed']} passed,"
            f" {evidence['failed']} failed, {evidence['skipped']} skipped)"
        )
    return "GPU evidence: " + ("; ".join(found) or "none; run `make test-gpu` on a device")


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    wanted = config.getoption("--evidence")
    if wanted == "check":
        terminalreporter.write_line(freshness(provenance.RESULTS, provenance.digest()))
    elif wanted == "write" and exitstatus != pytest.ExitCode.OK:
        terminalreporter.write_line("GPU evidence: not written, since the run is not green")
    elif wanted == "write" and not whole_suite(config):
        terminalreporter.write_line("GPU evidence: not written, since tests were left out")
    elif wanted == "write":
        path = write(terminalreporter.stats, provenance.RESULTS, provenance.provenance())
        terminalreporter.write_line(f"GPU evidence: {path.relative_to(provenance.ROOT)}")
