"""Padded and cut copies: the kernel against NumPy, its arguments, and what it refuses."""

import random
import re
from importlib.resources import files

import numpy as np
import pytest
from compiled import compiled
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import graphkit as gk
from graphkit.kernel import kernel_of
from graphkit.staging import (
    COPY_PADDED,
    MOST_COPIES,
    CopyTemplate,
    PaddedCopy,
    _divisor,
    launch,
    templates,
)

SIZES = sorted(COPY_PADDED)


def c_order(shape, itemsize, gap=0):
    """Return strides in bytes, with a gap of some bytes behind each row."""
    strides, step = [], itemsize
    for extent in reversed(shape):
        strides.append(step)
        step = step * extent + (gap if len(strides) == 1 else 0)
    return tuple(reversed(strides))


def f_order(shape, itemsize):
    return tuple(reversed(c_order(tuple(reversed(shape)), itemsize)))


def copy_of(extents, valid=None, src=None, dst=None, itemsize=4, fill=None, alignment=16):
    """Return a copy between arrays in C order; the source has the valid extents by default."""
    valid = extents if valid is None else valid
    return PaddedCopy(
        tuple(extents),
        tuple(valid),
        c_order(valid, itemsize) if src is None else src,
        c_order(extents, itemsize) if dst is None else dst,
        itemsize,
        bytes(itemsize) if fill is None else fill,
        alignment,
    )


def span(shape, strides, itemsize):
    return sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + itemsize


class Operands:
    """Random source and target of a copy, in device memory, and what the target must become.

    Both lie at addresses that are multiples of what the copy promises, and of no more.
    """

    def __init__(self, copy, rng):
        item = np.dtype(f"V{copy.itemsize}")
        read = tuple(max(n, 1) for n in copy.valid)
        spans = (
            span(read, copy.src_strides, copy.itemsize),
            span(copy.extents, copy.dst_strides, copy.itemsize),
        )
        source, target = (rng.integers(0, 256, 64 + nbytes, np.uint8) for nbytes in spans)
        self.source, self.target = gk.asarray(source), gk.asarray(target)
        self.offset = copy.alignment % 16
        self.expected = target.copy()
        wanted = np.ndarray(copy.extents, item, self.expected, self.offset, copy.dst_strides)
        wanted[...] = np.frombuffer(copy.fill, item)[0]
        if all(copy.valid):
            values = np.ndarray(copy.valid, item, source, self.offset, copy.src_strides)
            wanted[tuple(map(slice, copy.valid))] = values

    @property
    def addresses(self):
        return self.source.ptr + self.offset, self.target.ptr + self.offset

    def check(self):
        np.testing.assert_array_equal(self.target.get(), self.expected)


def check(copies, stream):
    """Do some copies in one launch, and compare all bytes around the targets with NumPy."""
    rng = np.random.default_rng(0)
    operands = [Operands(copy, rng) for copy in copies]
    template = CopyTemplate(copies)
    launch(template, [item.addresses for item in operands], stream)
    stream.synchronize()
    for item in operands:
        item.check()
    return template


def packed_argument(template, addresses):
    """Return the kernel's argument with the addresses in their places."""
    packed = bytearray(template.bytes)
    for index, pair in enumerate(addresses):
        for address, offset in zip(pair, template.offsets(index), strict=True):
            packed[offset : offset + 8] = address.to_bytes(8, "little")
    (parameter,) = template.kernel.parameters
    return np.frombuffer(packed, parameter.dtype)[0]


# --- copies against NumPy ------------------------------------------------------------------------


@pytest.mark.parametrize("itemsize", [1, 2, 3, 4, 6, 8, 12, 16, 24])
@pytest.mark.parametrize("valid", [(8, 16), (5, 16), (8, 11), (3, 5), (1, 7), (0, 16), (8, 0)])
def test_pads_items_of_any_size(itemsize, valid, stream):
    check([copy_of((8, 16), valid, itemsize=itemsize)], stream)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128, np.int16, bool])
def test_pads_with_the_value_given(dtype, stream):
    fill = np.ones((), dtype).tobytes()
    check([copy_of((6, 8), (4, 7), itemsize=len(fill), fill=fill)], stream)


def test_a_fill_that_looks_like_nothing_keeps_its_bits(stream):
    # A signalling NaN: arithmetic would quieten it.
    check(
        [copy_of((8,), (3,), itemsize=8, fill=(0x7FF0_0000_0000_0001).to_bytes(8, "little"))],
        stream,
    )


def test_cuts_the_result_to_the_real_size(stream):
    check([copy_of((3, 5, 7), src=c_order((4, 8, 16), 4))], stream)


@pytest.mark.parametrize("order", [c_order, f_order])
def test_source_and_target_may_be_in_any_order(order, stream):
    shape = (5, 6, 7)
    other = c_order(shape, 4)
    check([copy_of(shape, src=order(shape, 4), dst=other)], stream)
    check([copy_of(shape, src=other, dst=order(shape, 4))], stream)


def test_a_stride_of_zero_repeats_the_source(stream):
    check([copy_of((8, 4, 4), (6, 4, 3), src=(0, 16, 0))], stream)
    check([copy_of((32,), src=(0,))], stream)


def test_gaps_of_the_target_stay(stream):
    check([copy_of((6, 5), (6, 3), dst=c_order((6, 5), 4, gap=12))], stream)
    check([copy_of((20,), (9,), src=(8,), dst=(12,))], stream)


def test_a_scalar_is_a_copy_without_axes(stream):
    check([copy_of(())], stream)


@pytest.mark.parametrize("alignment", [1, 2, 4, 8])
def test_misaligned_addresses_move_fewer_bytes_at_once(alignment, stream):
    template = check([copy_of((8, 8), (5, 8), itemsize=8, alignment=alignment)], stream)
    assert template.alignment(0) == alignment


def test_a_large_array_takes_many_rounds_of_the_grid(stream):
    # More bytes than the first loads of the largest grid cover, and an end within a round.
    elements = (9 << 20) // 16
    template = check([copy_of((elements + 3,), (elements,), itemsize=16)], stream)
    assert template.grid == (2048, 1, 1)


def random_copy(choose):
    """Return a copy of up to four axes, with everything that a request may bring."""
    itemsize = choose.choice([1, 2, 3, 4, 8, 12, 16])
    plain = itemsize & -itemsize  # what an allocator promises at least
    axes = choose.randint(0, 4 if plain == itemsize else 3)
    extents = tuple(choose.choice([1, 2, 3, 5, 8, 16]) for _ in range(axes))
    valid = tuple(choose.choice([n, n, choose.randint(0, n)]) for n in extents)

    def strides(shape, repeat):
        found, step = [0] * axes, itemsize
        order = list(range(axes))
        if choose.random() < 0.3:
            choose.shuffle(order)
        for axis in reversed(order):
            if repeat and choose.random() < 0.1:
                continue
            found[axis] = step
            step = step * max(shape[axis], 1) + itemsize * choose.choice([0, 0, 0, 1, 4])
        return tuple(found)

    return PaddedCopy(
        extents,
        valid,
        strides(choose.choice([valid, extents]), True),
        strides(extents, False),
        itemsize,
        choose.randbytes(itemsize) if plain == itemsize else choose.randbytes(1) * itemsize,
        choose.choice([16, plain]),
    )


@pytest.mark.untraced
@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(choose=st.randoms(use_true_random=False), count=st.integers(1, MOST_COPIES))
def test_random_copies_in_one_launch(choose, count, stream):
    check([random_copy(choose) for _ in range(count)], stream)


@pytest.mark.parametrize("grid", [1, 3, 1000])
@pytest.mark.parametrize("block", [32, 256])
def test_any_grid_and_block_copy_the_same(grid, block, stream):
    copies = [copy_of((64, 70), (40, 70)), copy_of((9, 8, 7), (9, 5, 7), itemsize=2)]
    operands = [Operands(copy, np.random.default_rng(0)) for copy in copies]
    template = CopyTemplate(copies)
    argument = packed_argument(template, [item.addresses for item in operands])
    template.kernel(grid, block, (argument,), stream=stream)
    stream.synchronize()
    for item in operands:
        item.check()


@pytest.mark.gpu
def test_more_units_than_31_bits_count(stream):
    row, gap = 1 << 30, 1
    values = gk.asarray(np.array([1, 2, 3], np.uint8))
    target = gk.zeros(3 * (row + gap), np.uint8)
    rows = copy_of(
        (3, row), (3, row - 5), src=(1, 0), dst=(row + gap, 1), itemsize=1, fill=b"\7", alignment=1
    )
    launch(CopyTemplate([rows]), [(values.ptr, target.ptr)], stream)
    stream.synchronize()
    for index, value in enumerate([1, 2, 3]):
        first = index * (row + gap)
        assert target[first : first + 1].get() == value
        end = target[first + row - 6 : first + row + gap].get()
        np.testing.assert_array_equal(end, [value, 7, 7, 7, 7, 7, 0])
    line = copy_of((3 * row,), (3 * row - 5,), src=(0,), itemsize=1, fill=b"\7", alignment=1)
    launch(CopyTemplate([line]), [(values.ptr, target.ptr)], stream)
    stream.synchronize()
    np.testing.assert_array_equal(target[3 * row - 7 : 3 * row].get(), [1, 1, 7, 7, 7, 7, 7])


# --- in a graph ----------------------------------------------------------------------------------


def test_a_node_takes_the_bytes_of_another_template(stream):
    """What an exec pool does: capture the exact copy, then write pointers and extents."""
    rng = np.random.default_rng(1)
    exact, padded = copy_of((8, 16)), copy_of((8, 16), (3, 9), fill=b"abcd")
    first, second = Operands(exact, rng), Operands(padded, rng)
    with gk.capture(stream) as graph:
        launch(CopyTemplate([exact]), [first.addresses], stream)
    (node,) = graph.nodes
    exe = graph.instantiate()
    exe.launch(stream)
    stream.synchronize()
    first.check()
    template = CopyTemplate([padded])
    assert template.grid == CopyTemplate([exact]).grid
    exe.set_kernel_node_params(node, args=(packed_argument(template, [second.addresses]),))
    exe.launch(stream)
    stream.synchronize()
    second.check()


def test_a_captured_copy_is_known_by_its_kernel(runtime, stream):
    template = CopyTemplate([copy_of((4,))])
    operands = Operands(copy_of((4,)), np.random.default_rng(0))
    with gk.capture(stream) as graph:
        launch(template, [operands.addresses], stream)
    (node,) = graph.nodes
    assert (
        kernel_of(runtime, runtime.graph_kernel_node_get_params(node.ptr).function)
        is template.kernel
    )
    assert template.kernel in COPY_PADDED.values()


# --- what the simulator sees ---------------------------------------------------------------------


def two_at_once(stream, copies, addresses):
    """Do two copies that nothing orders."""
    side = gk.Stream()
    for copy, pair, on in zip(copies, addresses, (stream, side), strict=True):
        launch(CopyTemplate([copy]), [pair], on)
    stream.synchronize()
    side.synchronize()


def test_two_halves_of_one_array_are_no_race(stream):
    source, target = gk.asarray(np.arange(32, dtype=np.int32)), gk.zeros((8, 8), np.int32)
    half = copy_of((8, 4), dst=(32, 4))
    two_at_once(stream, [half] * 2, [(source.ptr, target.ptr), (source.ptr, target.ptr + 16)])
    np.testing.assert_array_equal(target.get(), np.tile(source.get().reshape(8, 4), 2))


def test_the_padding_of_the_source_is_not_read(stream):
    rows = gk.zeros((8, 8), np.int32)
    other = gk.asarray(np.arange(32, dtype=np.int32))
    target = gk.zeros((8, 8), np.int32)
    cut = copy_of((8, 8), (8, 4), src=(32, 4))
    fill = copy_of((8, 4), dst=(32, 4))
    two_at_once(stream, [cut, fill], [(rows.ptr, target.ptr), (other.ptr, rows.ptr + 16)])
    assert not target.get().any()


def test_two_copies_to_the_same_bytes_race(sim):
    source, target, stream = gk.zeros(8), gk.zeros(8), gk.Stream()
    with pytest.raises(gk.SimulationError, match="race"):
        two_at_once(stream, [copy_of((8,))] * 2, [(source.ptr, target.ptr)] * 2)


def test_a_source_that_ends_too_early_is_seen(sim):
    stream = gk.Stream()
    source, target = gk.zeros(7), gk.zeros(8)
    launch(CopyTemplate([copy_of((8,), alignment=4)]), [(source.ptr, target.ptr)], stream)
    with pytest.raises(gk.SimulationError, match="copy_padded"):
        stream.synchronize()


def test_an_address_less_aligned_than_promised_is_seen(sim):
    stream = gk.Stream()
    source, target = gk.zeros(9), gk.zeros(8)
    template = CopyTemplate([copy_of((8,))])
    argument = packed_argument(template, [(source.ptr + 4, target.ptr)])
    template.kernel(template.grid, template.block, (argument,), stream=stream)
    with pytest.raises(gk.SimulationError, match="multiple of 16"):
        stream.synchronize()


def test_pieces_too_many_to_tell_apart_copy_all_the_same(stream):
    check([copy_of((70, 60), src=f_order((70, 60), 4), dst=(488, 8))], stream)


# --- templates -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("copy", "unit"),
    [
        (copy_of((8, 128), (5, 128)), 16),
        (copy_of((8, 127), (4, 127)), 16),  # merged: 4 * 127 elements
        (copy_of((8, 127), (5, 127)), 4),
        (copy_of((8, 128), (8, 100)), 16),
        (copy_of((8, 128), (8, 99)), 4),
        (copy_of((8, 128), (8, 98)), 8),
        (copy_of((8, 128), alignment=8), 8),
        (copy_of((8, 128), (5, 128), itemsize=2, alignment=2), 2),
        (copy_of((8, 128), src=(4, 32)), 4),
        (copy_of((8, 128), (1, 128), src=(3, 4)), 16),  # the stride of one row is none
        (copy_of((8, 4), src=(32, 4), dst=(48, 4)), 16),
        (copy_of((8, 4), src=(24, 4), dst=(48, 4)), 8),
        (copy_of((6,), itemsize=12), 8),
        (copy_of((8,), (2,), itemsize=12, fill=b"abcd" * 3), 8),
        (copy_of((7,), itemsize=3), 1),
    ],
)
def test_the_widest_unit_that_fits_is_moved(copy, unit):
    assert CopyTemplate([copy]).alignment(0) == unit


def test_the_grid_follows_from_the_extents():
    grids = {
        CopyTemplate([copy_of((512, 64), valid, alignment=alignment)]).grid
        for valid in ((1, 1), (511, 63), (512, 64))
        for alignment in (4, 16)
    }
    assert grids == {(32, 1, 1)}
    assert CopyTemplate([copy_of((1,))]).grid == (1, 1, 1)
    assert CopyTemplate([copy_of((512, 64)), copy_of((1,))]).grid == (33, 1, 1)
    assert CopyTemplate([copy_of((1 << 30,))]).grid == (2048, 1, 1)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9, 16])
def test_the_bytes_are_the_kernels_argument_with_the_addresses_missing(count):
    template = CopyTemplate([copy_of((8,))] * count)
    (parameter,) = template.kernel.parameters
    assert len(template.bytes) == parameter.size
    assert template.kernel is COPY_PADDED[min(size for size in SIZES if size >= count)]
    packed = bytearray(template.bytes)
    for index in range(count):
        for side, offset in enumerate(template.offsets(index)):
            assert packed[offset : offset + 8] == bytes(8)
            packed[offset : offset + 8] = (2 * index + side + 1).to_bytes(8, "little")
    entries = np.frombuffer(packed, parameter.dtype)[0]["entries"][:count]
    assert entries["src"].tolist() == [2 * index + 1 for index in range(count)]
    assert entries["dst"].tolist() == [2 * index + 2 for index in range(count)]


def test_any_number_of_copies_is_several_templates():
    made = templates([copy_of((n + 1,)) for n in range(35)])
    assert [template.count for template in made] == [16, 16, 3]
    assert templates([]) == []
    with pytest.raises(ValueError, match=r"copies\[20\].extents"):
        templates([copy_of((1,))] * 20 + [copy_of((0,))])


def test_repr_is_one_line():
    template = CopyTemplate([copy_of((8, 128)), copy_of((7,), itemsize=2)])
    assert repr(template) == "<CopyTemplate 2 copies in 2 blocks, units [16, 2]>"


def test_divisors_divide_every_index():
    choose = random.Random(0)
    for extent in [
        1,
        2,
        3,
        5,
        7,
        641,
        2**16,
        2**31 - 1,
        *(choose.randrange(1, 2**31) for _ in range(200)),
    ]:
        magic, shift = _divisor(extent)
        assert 0 < magic < 2**32
        near = [extent * choose.randrange(2**31 // extent) + d for d in (-1, 0, 1)]
        for n in [0, 2**31 - 1, *near, choose.randrange(2**31)]:
            if 0 <= n < 2**31:
                assert ((n * magic >> 32) + n) >> shift == n // extent


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extents": (8, 0)}, "extents: expected 1 or more"),
        ({"extents": (8,)}, "valid: expected 1 axes"),
        ({"valid": (8, 17)}, "valid: expected at most"),
        ({"valid": (-1, 16)}, "valid: expected 0 or more"),
        ({"src_strides": (4,)}, "src_strides: expected 2 axes"),
        ({"src_strides": (-64, 4)}, "src_strides: expected 0 or more"),
        ({"dst_strides": (64, -4)}, "dst_strides: expected 0 or more"),
        ({"dst_strides": (0, 4)}, "dst_strides: expected elements of their own"),
        ({"dst_strides": (32, 4)}, "dst_strides: expected elements of their own"),
        ({"dst_strides": (64, 3)}, "dst_strides: expected elements of their own"),
        ({"itemsize": 0}, "itemsize: expected 1 or more"),
        ({"fill": b"abc"}, "fill: expected 4 bytes"),
        ({"alignment": 12}, "alignment: expected a power of two"),
        ({"alignment": 0}, "alignment: expected a power of two"),
        (
            {"alignment": 2, "fill": b"abcd", "valid": (8, 3)},
            "fill: expected a pattern that repeats every 2 bytes",
        ),
    ],
)
def test_a_copy_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=re.escape(f"copies[0].{message}")):
        CopyTemplate([copy_of((8, 16))._replace(**change)])


def test_more_axes_than_the_kernel_knows_are_refused():
    shape = (2, 3, 2, 3, 2)
    strides = [4]
    for extent in reversed(shape[1:]):
        strides.append(strides[-1] * (extent + 1))
    gaps = tuple(reversed(strides))
    assert CopyTemplate([copy_of(shape)]).alignment(0) == 16  # merged into one
    with pytest.raises(ValueError, match="at most 4 axes where merged, came 5"):
        CopyTemplate([copy_of(shape, dst=gaps)])


@pytest.mark.parametrize("count", [0, MOST_COPIES + 1])
def test_a_template_holds_1_to_16_copies(count):
    with pytest.raises(ValueError, match="copies: expected 1 to 16"):
        CopyTemplate([copy_of((1,))] * count)


@pytest.mark.parametrize("index", [-1, 1])
def test_places_are_those_of_copies(index):
    with pytest.raises(IndexError, match="expected 0 to 0"):
        CopyTemplate([copy_of((1,))]).offsets(index)


def test_launch_refuses_missing_and_misaligned_addresses(stream):
    template = CopyTemplate([copy_of((8,))])
    with pytest.raises(ValueError, match="addresses: expected 1 pairs, came 0"):
        launch(template, [], stream)
    with pytest.raises(ValueError, match=r"addresses\[0\]: expected multiples of 16, came 0x8"):
        launch(template, [(0, 8)], stream)


# --- the CUDA C++ source -------------------------------------------------------------------------


def ptx(capacity, architecture):
    """Compile staging.cu without any include path."""
    source = (files("graphkit") / "staging.cu").read_text(encoding="utf-8")
    made = compiled(source, architecture, "--std=c++17", *COPY_PADDED[capacity].options)
    assert not made.log
    return made.code.decode()


@pytest.mark.parametrize("capacity", SIZES)
def test_the_source_has_the_layout_that_python_packs(capacity):
    text = ptx(capacity, "compute_90")
    ((size,),) = [re.findall(r"\.param .*?copy_padded_param_0\[(\d+)\]", text)]
    assert int(size) == COPY_PADDED[capacity].parameters[0].size


@pytest.mark.parametrize("architecture", ["compute_80", "compute_90", "compute_100"])
def test_it_compiles_to_wide_loads_and_to_no_local_memory(architecture):
    text = ptx(MOST_COPIES, architecture)
    assert "ld.global.v4" in text or "ld.global.v2.u64" in text or "ld.global.v2.b64" in text
    assert ".local" not in text
