"""The manifest of a pool: written whole, read back the same, refused when it is not right."""

import copy
import json
import math
import re
from contextlib import suppress
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_stats import BUSY, key_stats, pool_stats, signature

from graphkit.pool_manifest import Manifest, ManifestEntry


@pytest.fixture
def path(tmp_path):
    return tmp_path / "pool.json"


@pytest.fixture
def saved(path):
    """What a good file holds; change it and write it back."""
    Manifest.of("decode", BUSY).save(path)
    return json.loads(path.read_text())


def entry(batch, hits=1, milliseconds=1.0, failures=0):
    return ManifestEntry(signature(batch), hits, 0, milliseconds, failures)


# --- of a pool, and its order --------------------------------------------------------------------


def test_it_has_the_keys_of_the_pool():
    manifest = Manifest.of("decode", BUSY)
    assert manifest.function == "decode"
    assert manifest.left_out == 0
    assert manifest.entries[1] == ManifestEntry(
        signature(1, causal=True), hits=300, nbytes=1 << 20, milliseconds=4.0, failures=0
    )
    assert [e.key for e in manifest.entries] == [k.key for k in BUSY.keys]
    with pytest.raises(FrozenInstanceError):
        manifest.function = "prefill"


def test_the_most_valuable_come_first_and_failures_last():
    manifest = Manifest.of("decode", BUSY)
    assert [e.value for e in manifest.ordered()] == [1200.0, 600.0, 540.0]
    failed = entry(1, hits=10**6, milliseconds=50.0, failures=1)
    failed_more = entry(2, hits=10**9, milliseconds=50.0, failures=2)
    never_hit = entry(3, hits=0)
    manifest = Manifest("decode", (failed_more, failed, never_hit, entry(4)))
    assert manifest.ordered() == [entry(4), never_hit, failed, failed_more]


def test_equals_keep_the_order_in_which_they_were_asked_for():
    # Of a pool that only counted so far, every key has the value 0.
    entries = tuple(entry(batch, hits=0) for batch in (4, 1, 3, 2))
    assert Manifest("decode", entries).ordered() == [*entries]


# --- to a file and back --------------------------------------------------------------------------


def test_it_comes_back_the_same(path):
    manifest = Manifest.of("decode", BUSY)
    assert manifest.save(path) == ()
    assert Manifest.load(path) == manifest
    assert Manifest.load(str(path), function="decode") == manifest
    assert path.read_text().startswith('{\n  "format"')
    assert path.read_text().endswith("}\n")


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.floats(0.5, 1e300)
    | st.integers(-9, 9),
    lambda items: st.tuples(items) | st.tuples(items, items),
    max_leaves=4,
)
COUNT = st.integers(0, 2**63 - 1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    function=st.text(),
    figures=st.lists(
        st.tuples(VALUES, VALUES, COUNT, COUNT, st.floats(0, 1e308), COUNT), max_size=4
    ),
)
def test_any_keys_and_figures_come_back_the_same(path, function, figures):
    from graphkit.signature import Signature

    entries = tuple(
        ManifestEntry(Signature.of({"v": value, "place": i}, extra=extra), *rest)
        for i, (value, extra, *rest) in enumerate(figures)
    )
    manifest = Manifest(function, entries)
    assert manifest.save(path) == ()
    loaded = Manifest.load(path, function)
    assert loaded == manifest
    assert [*map(repr, loaded.entries)] == [*map(repr, entries)]  # 1 == 1.0 == True
    assert len(loaded.ordered()) == len(entries)


def test_an_empty_pool_has_an_empty_manifest(path):
    manifest = Manifest.of("decode", pool_stats())
    manifest.save(path)
    assert Manifest.load(path) == manifest
    assert manifest.ordered() == []


def test_keys_that_json_cannot_hold_are_left_out_and_counted(path):
    class Mode:
        pass

    held, not_held = signature(1, causal=True), signature(2, mode=Mode())
    stats = pool_stats(keys=(key_stats(held, hits=1), key_stats(not_held, hits=2)))
    manifest = Manifest.of("decode", stats)
    assert manifest.save(path) == (not_held,)
    loaded = Manifest.load(path)
    assert [e.key for e in loaded.entries] == [held]
    assert loaded.left_out == 1
    # Who saves what was loaded still says so.
    assert replace(loaded, entries=manifest.entries).save(path) == (not_held,)
    assert Manifest.load(path).left_out == 2


def test_saving_replaces_a_file_and_leaves_nothing_beside(path):
    path.write_text("what was there")
    Manifest.of("decode", BUSY).save(path)
    assert Manifest.load(path).function == "decode"
    assert [p.name for p in path.parent.iterdir()] == ["pool.json"]


def test_saving_that_fails_leaves_the_old_file(path, monkeypatch):
    Manifest.of("decode", BUSY).save(path)
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("graphkit.pool_manifest.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        Manifest.of("other", BUSY).save(path)
    with pytest.raises(ValueError, match="JSON"):
        Manifest("other", (entry(1, milliseconds=math.nan),)).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["pool.json"]


def test_saving_through_a_link_keeps_the_link(path):
    link = path.with_name("link.json")
    link.symlink_to(path)
    Manifest.of("decode", BUSY).save(link)
    assert link.is_symlink()
    assert Manifest.load(path).function == "decode"


def test_saving_where_no_folder_is(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Manifest.of("decode", BUSY).save(tmp_path / "nowhere" / "pool.json")


# --- refused -------------------------------------------------------------------------------------


def refused(path, says, function=None):
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        Manifest.load(path, function)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "expected" in message
    assert "came" in message or "JSON" in message
    assert len(message) < 1000


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "came an empty file"),
        (b"  \n", "came an empty file"),
        (b"not JSON", "expected a manifest as JSON"),
        (b"\x80\x81\x82", "expected a manifest as JSON"),
        (b"[" * 100_000, "expected a manifest as JSON, came more brackets"),
        (b"[]", "format: expected 'graphkit pool manifest', came []"),
        (b"null", "format: expected 'graphkit pool manifest', came None"),
        (b"{}", "format: expected 'graphkit pool manifest', came {}"),
        (b'{"format": "gguf"}', "format: expected 'graphkit pool manifest', came 'gguf'"),
    ],
)
def test_what_is_no_manifest_is_refused(path, raw, says):
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        Manifest.load(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_truncated_file_is_refused_wherever_it_ends(path, saved):
    raw = path.read_bytes().rstrip()
    for size in range(len(raw)):
        path.write_bytes(raw[:size])
        with pytest.raises(ValueError, match="expected a manifest as JSON") as caught:
            Manifest.load(path)
        assert str(caught.value).startswith(f"{path}: ")


def test_another_function_is_refused(path, saved):
    refused(path, "function: expected a manifest of 'prefill', came one of 'decode'", "prefill")


def test_a_missing_file_is_the_systems_error(path):
    with pytest.raises(FileNotFoundError, match=re.escape(path.name)):
        Manifest.load(path)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("version", 2, "version: expected 1, came 2"),
        ("version", True, "version: expected 1, came True"),
        ("version", None, "version: expected 1, came None"),
        ("function", 3, "function: expected a name, came 3"),
        ("entries", {}, "entries: expected a list, came {}"),
        ("entries", [3], "entries[0]: expected an entry, came 3"),
        ("entries", [{}], "entries[0]: expected key, hits, bytes, milliseconds, failures, came no"),
        ("left_out", -1, "left_out: expected an int of 0 or more, came -1"),
        ("more", 1, "manifest: expected format, version, function, left_out, entries, came"),
    ],
)
def test_wrong_fields_are_refused(path, saved, name, value, says):
    path.write_text(json.dumps({**saved, name: value}))
    refused(path, says)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("hits", -1, "entries[1].hits: expected an int of 0 or more, came -1"),
        ("hits", 1.0, "entries[1].hits: expected an int"),
        ("hits", True, "entries[1].hits: expected an int"),
        ("hits", 10**40, "entries[1].hits: expected an int"),
        ("bytes", "1", "entries[1].bytes: expected an int of 0 or more, came '1'"),
        ("failures", None, "entries[1].failures: expected an int of 0 or more, came None"),
        ("milliseconds", -0.5, "entries[1].milliseconds: expected a number of 0 or more, came"),
        ("milliseconds", "1", "entries[1].milliseconds: expected a number"),
        ("milliseconds", False, "entries[1].milliseconds: expected a number"),
        ("milliseconds", 10**400, "entries[1].milliseconds: expected a number"),
        ("milliseconds", math.nan, "expected a number, came NaN"),
        ("milliseconds", math.inf, "expected a number, came Infinity"),
        ("key", None, "entries[1].key: signature: expected a dict"),
        ("key", {}, "entries[1].key: signature: expected a dict"),
        ("more", 1, "entries[1]: expected key, hits, bytes, milliseconds, failures, came"),
    ],
)
def test_wrong_figures_are_refused(path, saved, name, value, says):
    saved["entries"][1][name] = value
    path.write_text(json.dumps(saved))
    refused(path, says)


def test_a_number_beyond_floats_is_refused(path, saved):
    saved["entries"][0]["milliseconds"] = 123.25
    path.write_text(json.dumps(saved).replace("123.25", "1e999"))
    refused(path, "entries[0].milliseconds: expected a number of 0 or more, came inf")


def test_a_missing_field_is_refused(path, saved):
    del saved["entries"][2]["hits"]
    path.write_text(json.dumps(saved))
    refused(path, "entries[2]: expected key, hits")


def test_a_wrong_shape_is_refused(path, saved):
    saved["entries"][0]["key"]["arrays"][0]["shape"] = [8, -64]
    path.write_text(json.dumps(saved))
    refused(path, "entries[0].key: shape: expected ints of 0 or more, came [8, -64]")


def test_a_value_in_too_many_brackets_is_refused(path, saved):
    text = json.dumps(saved).replace('"extra": null', '"extra": @', 1)
    for depth in (900, 100_000):  # too many for the signature, and for JSON
        value = '["tuple", [' * depth + '["int", 1]' + "]]" * depth
        path.write_text(text.replace("@", value))
        refused(path, "came more brackets in one another than can be read")


def test_a_key_that_comes_twice_is_refused(path, saved):
    saved["entries"].append(copy.deepcopy(saved["entries"][0]))
    path.write_text(json.dumps(saved))
    refused(path, "entries[3].key: expected each key once, came that of entries[0]")


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda items: st.lists(items, max_size=3) | st.dictionaries(st.text(max_size=4), items),
    max_leaves=4,
)


def places(data, here=()):
    """Yield the way to everything inside of what JSON holds."""
    if isinstance(data, dict | list):
        for name, inner in data.items() if isinstance(data, dict) else enumerate(data):
            yield (*here, name)
            yield from places(inner, (*here, name))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_damage_is_refused_or_a_manifest(path, saved, data):
    damaged = copy.deepcopy(saved)
    *way, last = data.draw(st.sampled_from([*places(damaged)]))
    inner = damaged
    for name in way:
        inner = inner[name]
    inner[last] = data.draw(JUNK)
    path.write_text(json.dumps(damaged))
    manifest = None
    with suppress(ValueError):  # and nothing else
        manifest = Manifest.load(path)
    if manifest is None:
        with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: "):
            Manifest.load(path)
        return
    manifest.ordered()
    manifest.save(path)
    assert Manifest.load(path) == manifest
