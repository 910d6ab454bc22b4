"""A pytest plugin: a green run on a device leaves a file that says so, and other runs read it.

`make test-gpu` runs the suite in two parts: side by side what can be, and then one by one the tests
with the mark ``alone``, which measure the memory or the time of the whole device.
``--evidence=part`` remembers a green first part. ``--evidence=write`` writes
``bench/results/<device>/gpu-suite.json`` when the other part passed too, or the whole suite at
once. ``--evidence=check`` (`make test`) prints whether those files still belong to the code as it
is. ``GRAPHKIT_REQUIRE_GPU=1`` makes a missing device an error.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import provenance
import pytest

REMEMBERED = "graphkit/evidence-part"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--evidence",
        choices=("check", "part", "write"),
        help="check: say whether the GPU evidence is fresh; part: remember a green run of a part; "
        "write: write it after a green run of the other part, or of all",
    )


def pytest_configure(config: pytest.Config) -> None:
    required = os.environ.get("GRAPHKIT_REQUIRE_GPU") == "1"
    if (required or config.getoption("--evidence") in ("part", "write")) and not hasattr(
        config, "workerinput"
    ):
        try:
            provenance.provenance()
        except (ImportError, RuntimeError) as error:
            raise pytest.UsageError(f"this run needs a CUDA device: {error}") from error


def nothing_left_out(config: pytest.Config) -> bool:
    """Tell whether no test was left out by hand, but by a mark."""
    from_testpaths = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return from_testpaths and not (config.option.keyword or config.option.deselect)


def other_part(config: pytest.Config, digest: str) -> dict[str, Any] | None:
    """Return the outcome of what this run left out; None where nobody knows of a green one."""
    mark = config.option.markexpr
    if not mark:
        return outcome({})
    found: dict[str, Any] | None = config.cache and config.cache.get(REMEMBERED, None)
    complement = mark.removeprefix("not ") if mark.startswith("not ") else f"not {mark}"
    if found is None or found["mark"] != complement or found["digest"] != digest:
        return None
    return dict(found["outcome"])


def together(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Add up the outcomes of two parts."""
    counts = {name: one[name] + other[name] for name in ("passed", "failed", "skipped")}
    reasons = Counter(one["skip_reasons"]) + Counter(other["skip_reasons"])
    return {**counts, "skip_reasons": dict(sorted(reasons.items()))}


def outcome(stats: dict[str, list[Any]]) -> dict[str, Any]:
    """Count the reports of a run by their outcome, and the skips by their reason."""
    reasons = Counter(report.longrepr[2] for report in stats.get("skipped", []))
    return {
        "passed": len(stats.get("passed", [])),
        "failed": len(stats.get("failed", [])) + len(stats.get("error", [])),
        "skipped": len(stats.get("skipped", [])),
        "skip_reasons": dict(sorted(reasons.items())),
    }


def write(found: dict[str, Any], results: Path, source: dict[str, Any]) -> Path:
    """Write the outcome of a green run as evidence and return its path."""
    path = results / provenance.device_slug(source["device"]) / "gpu-suite.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**found, **source}, indent=2) + "\n", encoding="utf-8")
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
    elif wanted is None:
        return
    elif exitstatus != pytest.ExitCode.OK:
        terminalreporter.write_line("GPU evidence: not written, since the run is not green")
    elif not nothing_left_out(config):
        terminalreporter.write_line("GPU evidence: not written, since tests were left out")
    elif wanted == "part":
        part = {"mark": config.option.markexpr, "digest": provenance.digest()}
        part["outcome"] = outcome(terminalreporter.stats)
        assert config.cache is not None
        config.cache.set(REMEMBERED, part)
        terminalreporter.write_line("GPU evidence: one part is green")
    else:
        source = provenance.provenance()
        other = other_part(config, source["digest"])
        if other is None:
            terminalreporter.write_line("GPU evidence: not written, for want of the other part")
            return
        found = together(outcome(terminalreporter.stats), other)
        path = write(found, provenance.RESULTS, source)
        terminalreporter.write_line(f"GPU evidence: {path.relative_to(provenance.ROOT)}")
