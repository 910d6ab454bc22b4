"""The evidence of a GPU run: what it counts, and when it is fresh."""

import hashlib
import json
from types import SimpleNamespace

import provenance
import pytest
from plugins import evidence

SOURCE = {"device": "NVIDIA H200", "driver": "580.159", "date": "2026-11-21T10:00:00+00:00"}


def skip(reason):
    return SimpleNamespace(longrepr=("test_x.py", 3, reason))


@pytest.fixture
def tree(tmp_path):
    """A checkout with two files that count and four that do not."""
    for name in (
        "graphkit/z.py",
        "kernels/a.cu",
        "graphkit/z.md",
        "bench/b.py",
        "pyproject.toml",
        "tests/__pycache__/c.json",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path


def test_the_digest_is_of_path_and_content_in_order_of_the_path(tree):
    parts = b"graphkit/z.py\0graphkit/z.py\0" + b"kernels/a.cu\0kernels/a.cu\0"
    assert provenance.digest(tree) == hashlib.sha256(parts).hexdigest()


@pytest.mark.parametrize("change", ["content", "name", "added"])
def test_the_digest_changes_with_the_code(tree, change):
    before = provenance.digest(tree)
    if change == "content":
        (tree / "kernels/a.cu").write_text("other")
    elif change == "name":
        (tree / "kernels/a.cu").rename(tree / "kernels/b.cu")
    else:
        (tree / "tests/new.toml").write_text("")
    assert provenance.digest(tree) != before


def test_the_digest_of_this_checkout_is_that_of_a_plain_reading():
    sha = hashlib.sha256()
    paths = [
        path
        for top in ("graphkit", "kernels", "tests")
        for path in (provenance.ROOT / top).rglob("*")
        if path.is_file() and path.suffix in (".py", ".cu", ".toml", ".json")
    ]
    for path in sorted(paths, key=lambda path: path.relative_to(provenance.ROOT).as_posix()):
        name = path.relative_to(provenance.ROOT).as_posix()
        sha.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    assert provenance.digest() == sha.hexdigest()


def test_evidence_counts_outcomes_and_names_why_tests_were_skipped(tmp_path):
    stats = {
        "passed": [None] * 7,
        "failed": [None],
        "error": [None],
        "skipped": [skip("no torch"), skip("no torch"), skip("CUDA 13.1")],
    }
    path = evidence.write(evidence.outcome(stats), tmp_path, {**SOURCE, "digest": "d"})
    assert path == tmp_path / "nvidia-h200" / "gpu-suite.json"
    assert json.loads(path.read_text()) == {
        "passed": 7,
        "failed": 2,
        "skipped": 3,
        "skip_reasons": {"CUDA 13.1": 1, "no torch": 2},
        "digest": "d",
        **SOURCE,
    }


@pytest.mark.parametrize(("digest", "state"), [("d", "fresh"), ("e", "stale")])
def test_evidence_is_fresh_as_long_as_the_digest_is_the_same(tmp_path, digest, state):
    evidence.write(evidence.outcome({"passed": [None] * 7}), tmp_path, {**SOURCE, "digest": "d"})
    assert evidence.freshness(tmp_path, digest) == (
        f"GPU evidence: nvidia-h200 {state} (2026-11-21, 7 passed, 0 failed, 0 skipped)"
    )


def test_without_evidence_the_line_says_how_to_get_it(tmp_path):
    assert evidence.freshness(tmp_path, "d") == (
        "GPU evidence: none; run `make test-gpu` on a device"
    )


class Remembered(dict):
    def get(self, key, default):
        return super().get(key, default)


def config_of(chosen, **remembered):
    option = SimpleNamespace(markexpr=chosen)
    return SimpleNamespace(option=option, cache=Remembered({evidence.REMEMBERED: remembered}))


def test_two_parts_add_up():
    one = evidence.outcome({"passed": [None] * 7, "skipped": [skip("no torch")]})
    other = evidence.outcome({"passed": [None] * 2, "skipped": [skip("no torch"), skip("no cupy")]})
    assert evidence.together(one, other) == {
        "passed": 9,
        "failed": 0,
        "skipped": 3,
        "skip_reasons": {"no cupy": 1, "no torch": 2},
    }


def test_the_other_part_counts_when_it_is_the_complement_and_of_the_same_code():
    found = evidence.outcome({"passed": [None] * 7})
    remembered = {"mark": "not alone", "digest": "d", "outcome": found}
    assert evidence.other_part(config_of("alone", **remembered), "d") == found
    assert evidence.other_part(config_of("alone", **remembered), "e") is None
    assert evidence.other_part(config_of("gpu", **remembered), "d") is None
    assert evidence.other_part(config_of("alone", **{**remembered, "mark": "alone"}), "d") is None


def test_a_whole_run_needs_no_other_part():
    assert evidence.other_part(config_of(""), "d") == evidence.outcome({})
