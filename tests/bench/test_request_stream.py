"""bench/request_stream.py on the simulator: the stream, the function, and what it would notice."""

import json

import numpy as np
import pytest
import request_stream as bench

import graphkit as gk
from graphkit.exec_pool import ExecPool


def test_a_shorter_stream_is_how_a_longer_one_begins():
    short, long = bench.make_requests(50), bench.make_requests(500)
    assert np.array_equal(short.batches, long.batches[:50])
    assert np.array_equal(short.sequences, long.sequences[:50])
    assert len(long) == 500


def test_batches_follow_zipf_and_sequences_their_logarithm():
    requests = bench.make_requests(20_000)
    assert (requests.batches.min(), requests.batches.max()) == (1, 512)
    ones, twos = (np.count_nonzero(requests.batches == size) for size in (1, 2))
    assert ones / twos == pytest.approx(2, rel=0.1)
    assert (requests.sequences.min(), requests.sequences.max()) == (1, 256)
    low, high = (np.count_nonzero(requests.sequences // edge == 1) for edge in (8, 64))
    assert low / high == pytest.approx(1, rel=0.1)


def test_learnt_sizes_hold_what_was_not_seen():
    requests = bench.Requests(np.array([3, 3, 7]), np.array([2, 9, 9]), np.zeros(3, np.int64))
    made = bench.lattices(requests)
    assert tuple(made) == bench.CASES
    batch, sequence = made["learnt"]
    assert batch.sizes == (3, 7, 512)
    assert sequence.sizes == (2, 9, 256)
    assert sequence.axis == 1


@pytest.mark.parametrize("columns", [1, 2, 7, 16, 200])
def test_the_function_makes_prefix_sums_in_as_many_kernels_as_doublings(columns):
    gk.use("sim")
    values = np.random.default_rng(0).integers(0, 1 << 16, (3, columns)).astype(np.uint32)
    stream = gk.Stream()
    fn, x = bench.PrefixSums(2), gk.asarray(values)
    sums = values.cumsum(1, np.uint32).cumsum(1, np.uint32)
    assert np.array_equal(fn(x, stream).get(), sums)
    with gk.capture(stream) as graph:
        fn(x, stream)
    assert len(graph.nodes) == 2 * bench.steps(columns)
    stream.close()


def test_without_sharing_the_budget_decides_who_is_answered_by_a_graph(tmp_path):
    arguments = ["--runtime", "sim", "--requests", "300", "--out", str(tmp_path)]
    assert bench.main([*arguments, "--cases", bench.UNSHARED]) == 0
    document = json.loads((tmp_path / "simulator" / "request_stream.json").read_text())
    rows = {row["metric"]: row["value"] for row in document["rows"]}
    assert rows["wrong"] == 0
    assert rows["instantiates"] > 9
    assert rows["evictions"] + rows["fallbacks"] > 0
    assert not any(metric.startswith("moves") for metric in rows)


def test_a_stream_is_served_right_and_within_the_budget(tmp_path):
    arguments = ["--runtime", "sim", "--requests", "150", "--out", str(tmp_path)]
    assert bench.main([*arguments, "--cases", "serving", "learnt"]) == 0
    document = json.loads((tmp_path / "simulator" / "request_stream.json").read_text())
    assert document["provenance"]["device"] == "simulator"
    rows = {(row["case"], row["metric"]): row for row in document["rows"]}
    serving = "request stream: serving"
    assert rows[serving, "compared with eager"]["value"] == 150
    assert rows[serving, "wrong"]["value"] == 0
    assert rows[serving, "pool.memory(), at most"]["value"] <= rows[serving, "the budget"]["value"]
    assert rows["request stream: learnt", "padding"]["value"] < rows[serving, "padding"]["value"]
    assert "host us" not in {row["unit"] for row in document["rows"]}


def test_a_function_that_padding_changes_is_noticed():
    gk.use("sim")
    stream = gk.Stream()

    class Columns(bench.PrefixSums):
        """Depends on the columns of the bucket, which no function under a pool may."""

        def __call__(self, x, stream):
            return super().__call__(x, stream) if x.shape[1] > 16 else x

    fn = Columns(1)
    sizes = bench.Buckets([512]), bench.Buckets([256], 1)
    with ExecPool(fn, {"x": sizes}, memory_budget=bench.budget(1), stream=stream) as pool:
        server = bench.Server(pool, fn, stream, timed=False)
        served = server.serve(bench.make_requests(20), 1)
    assert served.checked == 20
    assert 0 < served.wrong < 20
    assert any("were wrong" in fault for fault in served.faults())
    stream.close()


def test_what_must_not_happen_is_said():
    served = bench.Served(checked=9, wrong=2, over_budget=1, resident_fifth=1 << 30)
    assert [fault.split(" after")[0] for fault in served.faults()] == [
        "2 of 9 answers were wrong",
        "over the budget",
    ]
    served.resident_end = served.resident_fifth + (20 << 20)
    assert served.flat
    served.resident_end = served.resident_fifth + (30 << 20)
    assert not served.flat


@pytest.mark.parametrize(("text", "every"), [("every", 1), ("none", 0), ("50", 50)])
def test_how_often_answers_are_compared_is_a_number_or_a_word(text, every):
    assert bench.parse(["--check", text]).check == every
