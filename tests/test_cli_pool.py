"""`graphkit pool`, and the tables that it and an exec pool's figures are shown in."""

import subprocess
import sys
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console
from sample_stats import BUSY, key_stats, pool_stats, signature
from typer.testing import CliRunner

from graphkit import cli
from graphkit.pool_manifest import Manifest
from graphkit.pool_policy import Reason, Step
from graphkit.pool_stats import PoolMemory, StepStats
from graphkit.pool_table import manifest_table, stats_table
from graphkit.signature import ArraySignature, Signature


def lines(table, width=100):
    text = StringIO()
    Console(file=text, width=width, highlight=False).print(table)
    return text.getvalue().splitlines()


def columns(line, heads):
    """Where the columns of these heads end."""
    return [line.index(head) + len(head) for head in heads]


def sizes(*figures):
    """How a manifest shows numbers of bytes, its total last."""
    keys = tuple(
        key_stats(signature(place), hits=9 - place, nbytes=nbytes, milliseconds=1.0)
        for place, nbytes in enumerate(figures)
    )
    shown = lines(manifest_table(Manifest.of("f", pool_stats(keys=keys))))
    return [" ".join(line.split()[-3:-1]) for line in shown[2:]]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "pool.json"
    Manifest.of("decode", BUSY).save(path)
    return path


def call(*arguments, status=0):
    result = CliRunner().invoke(cli.app, ["pool", *map(str, arguments)])
    assert result.exit_code == status, result.output
    return result


# --- a manifest ----------------------------------------------------------------------------------


def test_a_manifest_is_a_table_in_the_order_of_its_value():
    title, head, *rows, total = lines(manifest_table(Manifest.of("decode", BUSY)))
    assert title == "decode: 3 keys, 960 hits"
    assert head.split() == ["key", "hits", "ms", "size", "failures"]
    assert [row.rsplit(maxsplit=5) for row in rows] == [
        ["x float32[1, 64], causal=True", "300", "4.000", "1.0", "MiB", "0"],
        ["x float32[8, 64], causal=True", "600", "1.000", "2.3", "KiB", "0"],
        ["x float32[64, 64], causal=True", "60", "9.000", "0", "B", "2"],
    ]
    assert total.split() == ["total", "960", "14.000", "1.0", "MiB", "2"]


def test_numbers_end_where_their_column_ends():
    keys = tuple(
        key_stats(signature(10**n), hits=10 ** (2 * n), milliseconds=10.0**n, nbytes=10 ** (2 * n))
        for n in range(6)
    )
    _, head, *rows = lines(manifest_table(Manifest.of("decode", pool_stats(keys=keys))))
    assert len({len(row) for row in (head, *rows)}) == 1
    for end in columns(head, ["hits", "ms", "size", "failures"]):
        assert all(row[end - 1] != " " and row[end:][:1] in ("", " ") for row in rows)


def test_sizes_have_the_largest_unit_that_fits():
    found = sizes(0, 1023, 1024, 1536, (1 << 20) - 1, 1 << 20, 5 << 30)
    assert found[:-1] == ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "1.0 MiB", "5.0 GiB"]
    assert sizes(1 << 40, 1 << 50) == ["1.0 TiB", "1,024.0 TiB", "1,025.0 TiB"]


def test_an_empty_manifest_says_so():
    assert lines(manifest_table(Manifest("decode", ()))) == ["decode: 0 keys, 0 hits"]


def test_keys_that_a_file_could_not_hold_are_said():
    shown = lines(manifest_table(Manifest("decode", (), left_out=1)))
    assert shown[-1] == "without 1 key whose values JSON cannot hold"
    shown = lines(manifest_table(Manifest("decode", (), left_out=2)))
    assert shown[-1] == "without 2 keys whose values JSON cannot hold"


@pytest.mark.parametrize("width", [80, 100, 300])
def test_nothing_is_wider_than_the_terminal_or_100_columns(width):
    arrays = tuple(ArraySignature(f"argument_{n}", (2**40, n), "float32") for n in range(12))
    key = Signature(arrays, (("text", ("str", "x" * 300)),))
    figures = {"hits": 10**9, "eager": 10**5, "moves": 10**4, "nbytes": 10**9}
    keys = [replace(key, extra=("int", number)) for number in range(3)]
    stats = replace(BUSY, keys=tuple(key_stats(one, **figures, milliseconds=1e5) for one in keys))
    for table in (manifest_table(Manifest.of("f" * 300, stats)), stats_table(stats, "f" * 300)):
        shown = lines(table, width)
        assert max(map(len, shown)) <= min(width, 100)
        assert "…" not in "".join(shown)  # no number is cut
        assert "1,000,000,000" in "".join(shown)


def test_what_looks_like_markup_or_steers_a_terminal_is_shown_as_it_is():
    key = Signature((ArraySignature("\x1b[2J[bold]x", (1,), "float32"),))
    stats = pool_stats(keys=(key_stats(key),))
    for table in (manifest_table(Manifest.of("[red]\x1b", stats)), stats_table(stats, "[red]\x1b")):
        text = "\n".join(lines(table))
        assert "\x1b" not in text
        assert "[red]\\x1b: " in text
        assert "\\x1b[2J[bold]x float32[1]" in text


# --- the figures of a pool -----------------------------------------------------------------------


def rows(shown):
    """The rows of all tables by their first cell."""
    return {line.split("  ")[0]: line.split() for line in shown if line.strip()}


def test_the_figures_of_a_pool():
    shown = lines(stats_table(BUSY, "decode"))
    assert shown[0] == "decode: 1,000 requests, 96.0% hits"
    found = rows(shown)
    assert found["hits"][-1] == "960"
    assert found["padding"][1:3] == ["25,000", "25.0%"]
    assert found["failed captures"][-1] == "3"
    assert found["moves by nodes"][-1] == "50"
    assert found["moves by update"][-1] == "9"
    assert found["moves refused"][-1] == "1"
    assert found["execs"] == ["execs", "3.0", "MiB"]
    assert found["all"] == ["all", "4.0", "MiB", "25.0%", "of", "16.0", "MiB"]
    assert found["launch"] == ["launch", "900", "1.800", "2.0", "-", "-", "-"]
    assert found["capture"] == [
        *("capture", "10", "50.000", "5,000.0"),
        *("5", "1,500.000", "300,000.0"),
    ]
    assert found["key_miss"] == ["key_miss", "20"]
    key = "x float32[64, 64], causal=True"
    assert found[key][-7:] == ["60", "1", "7", "2", "9.0", "0", "B"]


def test_the_most_frequent_reason_comes_first():
    stats = pool_stats(fallbacks={Reason.OVER_MAX: 1, Reason.BUDGET: 9, Reason.KEY_MISS: 4})
    shown = [line.split()[0] for line in lines(stats_table(stats)) if line.strip()]
    assert shown[-3:] == ["budget", "key_miss", "over_max"]


def test_a_pool_that_did_nothing_has_no_empty_tables():
    shown = lines(stats_table(pool_stats()))
    assert shown[0] == "pool: no requests"
    assert rows(shown)["all"] == ["all", "0", "B", "no", "budget"]
    assert not {"key", "step", "answered eagerly"} & rows(shown).keys()


def test_what_was_not_timed_has_no_time():
    shown = lines(stats_table(pool_stats(steps={Step.LAUNCH: StepStats(5, 0.0)})))
    assert rows(shown)["launch"] == ["launch", "5", "-", "-", "-", "-", "-"]


def test_as_many_keys_as_asked_for():
    shown = lines(stats_table(BUSY, most=2))
    assert shown[-1] == "and 1 more key"
    assert sum("float32" in line for line in shown) == 2
    assert sum("float32" in line for line in lines(stats_table(BUSY))) == 3


def test_a_budget_that_is_exceeded_shows():
    stats = pool_stats(memory=PoolMemory(0, 3 << 20, 0, budget=2 << 20))
    assert rows(lines(stats_table(stats)))["all"][3:] == ["150.0%", "of", "2.0", "MiB"]


# --- the command ---------------------------------------------------------------------------------


def test_the_command_prints_a_manifest(path):
    result = call(path)
    assert result.stdout.splitlines()[0] == "decode: 3 keys, 960 hits"
    assert "x float32[8, 64], causal=True" in result.stdout
    assert "SIMULATOR" not in result.stdout  # it needs no runtime
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "expected a manifest as JSON, came an empty file"),
        (b'{"format": "graphkit', "expected a manifest as JSON"),
        (b'{"format": "other"}', "format: expected 'graphkit pool manifest', came 'other'"),
    ],
)
def test_a_bad_manifest_is_refused_in_one_message(path, raw, says):
    path.write_bytes(raw)
    result = call(path, status=1)
    assert result.stderr.startswith(f"graphkit: error: {path}: ")
    assert says in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.output


def test_a_file_that_is_not_there_is_refused(tmp_path):
    result = call(tmp_path / "none.json", status=1)
    assert result.stderr.startswith("graphkit: error: ")
    assert "none.json" in result.stderr
    assert "graphkit: error: " in call(tmp_path, status=1).stderr  # a folder


def test_an_error_about_a_file_steers_no_terminal(path):
    text = path.read_text().replace('"causal": [\n            "bool"', '"\\u001b[2J": [\n 3')
    path.write_text(text)
    result = call(path, status=1)
    assert "\x1b" not in result.stderr
    assert "\\x1b[2J: expected a list" in result.stderr


def test_a_manifest_is_asked_for():
    assert call(status=2).stderr


def test_the_command_as_a_process(path):
    command = [sys.executable, "-m", "graphkit.cli", "pool", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines()[0] == "decode: 3 keys, 960 hits"
    assert done.stderr == ""
