"""What the commands of the benchmarks share: when results are kept, and what is said."""

import command
import flow
import launch_overhead
import measure
import pytest
import rebind
from measure import Row
from rich.console import Console

SOURCE = {"device": "NVIDIA H200", "driver": "580.159", "cuda": "13.0"}
ROWS = [Row("launch: 10 nodes", "C", 1.5, measure.HOST_US, 1.5, 1.5, 3)]


@pytest.mark.parametrize(
    ("arguments", "kept"), [([], True), (["--quick"], False), (["--only", "x"], False)]
)
def test_only_whole_runs_are_kept(tmp_path, monkeypatch, capsys, arguments, kept):
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    chosen = command.options("What it costs.\n\nMore.").parse_args(arguments)
    whole = command.whole_run(chosen)
    assert command.report(Console(), "b", SOURCE, ROWS, out=chosen.out, whole=whole) == 0
    path = tmp_path / "nvidia-h200" / "b.json"
    assert path.exists() is kept
    said = capsys.readouterr().out
    assert ("1 rows, not written: only a whole run is" in said) is not kept
    assert "C" in said


def test_what_is_absent_and_what_failed_is_said(tmp_path, capsys):
    chosen = command.options(None, only=False, runtime=True).parse_args(["--out", str(tmp_path)])
    assert chosen.runtime == "cuda"
    code = command.report(
        Console(), "b", SOURCE, ROWS, out=chosen.out, whole=command.whole_run(chosen),
        absent={"torch": "not installed"}, failures=iter(["it broke"]),
    )  # fmt: skip
    assert code == 1
    source, rows = measure.read_results(tmp_path / "nvidia-h200" / "b.json")
    assert source["absent"] == {"torch": "not installed"}
    assert rows == ROWS
    said = capsys.readouterr().out
    assert "absent: torch: not installed" in said
    assert "FAILED: it broke" in said


@pytest.mark.parametrize(
    ("script", "setting"),
    [(flow, "FlowSetting"), (launch_overhead, "Setting"), (rebind, "RebindSetting")],
    ids=["flow", "launch_overhead", "rebind"],
)
def test_why_there_is_no_device_is_said_as_it_is(monkeypatch, capsys, script, setting):
    def unavailable():
        raise script.UnavailableError("pip install -e '.[cu13]'")  # no markup of rich's

    monkeypatch.setattr(script, setting, unavailable)
    assert script.main([]) == 2
    assert "'.[cu13]'" in "".join(capsys.readouterr().out.splitlines())
