"""Results of bench/decode.py from several devices become one file, or are refused."""

import pytest
from decode_join import joined
from measure import Row


def part(batch, **changes):
    """Return what a run of one batch wrote."""
    cases = "read bandwidth: 8 GB", f"a step at context 128, on the device: batch {batch}"
    source = {"device": "NVIDIA H200", "digest": "d", "date": f"day {batch}"} | changes
    rows = [Row(case, "somebody", 1.0, "us", 1.0, 1.0, 3) for case in cases]
    return source | {"absent": {f"batch {batch}, context 4096": "no time was left"}}, rows


def test_every_row_is_kept_and_each_device_has_its_bandwidth():
    source, rows = joined([part(1), part(64)])
    assert [row.case for row in rows] == [
        "read bandwidth: 8 GB, device 1",
        "a step at context 128, on the device: batch 1",
        "read bandwidth: 8 GB, device 2",
        "a step at context 128, on the device: batch 64",
    ]
    assert list(source["absent"]) == ["batch 1, context 4096", "batch 64, context 4096"]
    assert source["digest"] == "d"


def test_other_code_and_a_batch_that_was_measured_twice_are_refused():
    with pytest.raises(ValueError, match=r"^parts: expected the same digest in all of them"):
        joined([part(1), part(64, digest="e")])
    with pytest.raises(ValueError, match=r"^parts: expected each case in one of them"):
        joined([part(1), part(64), part(1)])
