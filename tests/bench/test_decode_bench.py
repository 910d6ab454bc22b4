"""bench/decode.py without a device: its reference, its verification, its order and its budgets."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import decode
import decode_kernels
import decode_own
import decode_picture
import numpy as np
import pytest
from decode import BEST, FLOOR, LOOKING, LOOP, MANUAL, PROGRAMMATIC, Bench, Case, Plan, on_device
from decode_model import (
    TINY,
    WINDOW,
    Answer,
    Draw,
    Model,
    Size,
    check_answer,
    places,
    reference,
    relative_error,
)
from decode_own import EAGER, Own
from decode_pool import Pooled
from decode_setting import DecodeSetting, DeviceWindow, Stepper, until_done, window_until_done
from exec_pool_setting import UnavailableError, WrongResultError
from graphkit.kernels.llama.decoder import Decoder
from measure import DEVICE_US, HOST_US, Row

SIZE = Size(2, 20)


def wide(array):
    return array.astype(np.float64)


@pytest.fixture(scope="module")
def model():
    return Model(TINY, Draw(), batch=2, places=places([20]))


@pytest.fixture(scope="module")
def expected(model):
    return reference(model, SIZE, np, wide)


class StandIn(Decoder):
    """The interface of the fused decoder over the kernels that there are for every model."""

    @property
    def k_cache(self):
        return self.llama.k_cache

    @property
    def v_cache(self):
        return self.llama.v_cache

    def build(self, build, stream=None, *, steps=0):
        if build != "loop":
            return super().build("manual" if build == "programmatic" else build, stream)
        single = super().build("eager", stream)

        def launch():
            for _ in range(steps - self.short):
                single.launch()

        return SimpleNamespace(launch=launch, close=single.close)

    short = 0


@pytest.fixture
def own(sim, monkeypatch, model):
    module = ModuleType("graphkit.kernels.decode")
    module.FusedDecoder = StandIn
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(decode_own, "WINDOW", 4)  # tokens of a loop: enough to tell
    setting = DecodeSetting("sim")
    made = Own(setting, model, SIZE.batch)
    yield made
    made.close()


@pytest.fixture
def pooled(sim, model):
    made = Pooled(DecodeSetting("sim"), model, SIZE.batch)
    yield made
    made.close()


# --- the model -----------------------------------------------------------------------------------


def test_matrices_that_are_multiplied_in_one_go_are_no_copies(model):
    for layer in range(model.config.num_hidden_layers):
        at = f"model.layers.{layer}."
        for names, whole in (
            (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), model.qkv[layer]),
            (("mlp.gate_proj", "mlp.up_proj"), model.gate_up[layer]),
        ):
            parts = [model.tensors[f"{at}{name}.weight"] for name in names]
            assert all(np.shares_memory(part, whole) for part in parts)
            assert np.array_equal(np.concatenate(parts), whole)


def test_bytes_of_a_step():
    model = Model(TINY, Draw(), batch=1, places=4)
    assert model.weight_bytes == sum(2 * tensor.size for tensor in model.tensors.values())
    assert model.position_bytes == 2 * 3 * 2 * 64 * 2  # keys and values, layers, heads, width
    more = model.step_bytes(Size(4, 100)) - model.step_bytes(Size(4, 99))
    assert more == 4 * model.position_bytes


def test_a_window_has_its_context_in_the_middle():
    positions = [size.first + step for size in (Size(1, 128),) for step in range(WINDOW)]
    attended = [position + 1 for position in positions]
    assert sum(attended) / WINDOW == Size(1, 128).attended + 0.5
    assert positions[-1] < places([128])


# --- verification --------------------------------------------------------------------------------


def test_the_reference_is_what_the_kernels_for_every_model_compute(own, expected):
    stepper = own.build(SIZE, EAGER)
    # They keep their caches in float32: the only roundings are float32's.
    assert stepper.verify(expected, own.setting.drain) < 1e-5


def test_every_contender_of_graphkits_is_verified(own, expected):
    made = [make() for _, make in own.makers(SIZE)]
    assert [stepper.name for stepper in made] == [name for name, _ in own.makers(SIZE)]
    for stepper in made:
        assert stepper.verify(expected, own.setting.drain) < 1e-5
    assert {stepper.name for stepper in made if stepper.stops} == {LOOKING, LOOP}


def test_steps_through_a_pool_are_verified(pooled, expected):
    ((_, make),) = pooled.makers(SIZE)
    stepper = make()
    for _ in range(2):
        assert stepper.verify(expected, pooled.setting.drain) < stepper.bound
        stepper.step()  # and the token behind it
    assert pooled.pool.stats().captures == 1
    assert pooled.pool.stats().hits == 3


def test_a_pool_whose_rows_stand_elsewhere_is_found_out(pooled, expected):
    ((_, make),) = pooled.makers(SIZE)
    stepper = make()
    pooled._slots.set([1, 0])
    with pytest.raises(WrongResultError):
        stepper.verify(expected, pooled.setting.drain)


def test_a_loop_that_makes_other_steps_is_found_out(own, expected, monkeypatch):
    monkeypatch.setattr(StandIn, "short", 1)
    with pytest.raises(WrongResultError, match="device loop"):
        own.loop(SIZE).verify(expected, own.setting.drain)


def test_a_decoder_without_a_loop_is_no_failure(own, monkeypatch):
    monkeypatch.setattr(StandIn, "build", Decoder.build)
    with pytest.raises(UnavailableError, match="no loop"):
        own.loop(SIZE)


def test_a_contender_that_does_nothing_is_found_out(own, expected):
    stepper = own.build(SIZE, EAGER)
    stepper.step = lambda: None
    with pytest.raises(WrongResultError, match="logits"):
        stepper.verify(expected, own.setting.drain)


@pytest.mark.parametrize("what", ["logits", "token", "key", "value"])
def test_what_is_wrong_is_named(expected, what):
    logits, tokens = expected.logits.copy(), np.array(expected.next_tokens)
    appended = {layer: tuple(map(np.copy, pair)) for layer, pair in expected.appended.items()}
    if what == "logits":
        logits[1] = np.nan
    elif what == "token":
        tokens[1] = logits[1].argmin()
    else:
        appended[2][what == "value"][0, 1] += 1
    with pytest.raises(WrongResultError, match=what):
        check_answer("someone", Answer(logits, tokens, appended), expected, 1e-2)
    assert check_answer("someone", expected, expected, 1e-2) == 0


def test_an_error_of_what_is_no_number_is_none():
    assert not relative_error(np.array([1.0, np.nan]), np.ones(2)) <= 1
    assert relative_error(np.array([3.0, 4.5]), np.array([3.0, 4.0])) == pytest.approx(0.1)


# --- timing --------------------------------------------------------------------------------------


class Clock:
    """What contenders ask of a setting."""

    simulated = True
    modules = ()

    def __init__(self):
        self.log = []

    def drain(self):
        self.log.append("drain")

    def record(self, which):
        self.log.append(f"record {which}")

    def elapsed_us(self):
        self.log.append("elapsed")
        return 64.0


def stepper_of(clock, name="someone", **options):
    return Stepper(
        name,
        lambda: clock.log.append("step"),
        lambda: clock.log.append("start"),
        lambda position: clock.log.append(f"place {position}"),
        lambda _: Answer(np.ones((1, 2)), np.zeros(1, int), {}),
        1e-2,
        **options,
    )


def test_a_window_is_timed_from_event_to_event():
    clock = Clock()
    window = DeviceWindow(stepper_of(clock), clock, first=5)
    assert (window.name, window.sample(0, 2)) == ("someone", [2.0, 2.0])
    once = ["place 5", "drain", "record 0", *["step"] * WINDOW, "record 1", "elapsed"]
    assert clock.log == once * 2


def test_a_step_is_timed_with_its_wait_at_the_context():
    clock = Clock()
    (sample,) = until_done(stepper_of(clock), clock, SIZE).sample(0, 1)
    assert sample >= 0
    assert clock.log == ["place 20", "drain", "step", "drain"]


def test_a_loop_is_timed_by_the_tokens_that_it_decodes():
    clock = Clock()
    window_until_done(stepper_of(clock, tokens=WINDOW), clock, SIZE).sample(0, 1)
    assert clock.log == [f"place {SIZE.first}", "drain", "step", "drain"]
    clock.log.clear()
    window_until_done(stepper_of(clock), clock, SIZE).sample(0, 1)
    assert clock.log.count("step") == WINDOW


# --- the run -------------------------------------------------------------------------------------


class Contenders:
    """A family whose contenders are given."""

    def __init__(self, makers):
        self.given = makers
        self.closed = 0

    def makers(self, size, *, whole=False):
        return self.given

    def close(self):
        self.closed += 1


@pytest.fixture
def bench(model, monkeypatch):
    monkeypatch.setattr(
        Bench, "_reference", lambda self, size: Answer(np.ones((1, 2)), np.zeros(1, int), {})
    )
    console = SimpleNamespace(print=lambda *_, **__: None)
    seconds = 3600 + decode.time.monotonic() - decode._began
    made = Bench(Clock(), model, Plan(windows=2, steps=2), console, seconds)
    made.bandwidth = [1e12]
    return made


def refuse(error):
    raise error


def test_a_run_keeps_rows_and_tells_who_was_absent_and_why(bench):
    clock = bench.setting
    family = Contenders(
        [
            (MANUAL, lambda: stepper_of(clock, MANUAL)),
            ("graphkit broken", lambda: refuse(ZeroDivisionError("oh"))),
            ("peer", lambda: stepper_of(clock, "peer")),
            ("peer that cannot", lambda: refuse(RuntimeError("out of memory"))),
            ("peer that is not there", lambda: refuse(UnavailableError("no such module"))),
        ]
    )
    bench.families.append(lambda batch: family)
    saved = []
    todo = [Case(Size(1, 20)), Case(Size(1, 40)), Case(Size(2, 20))]
    bench.run(todo, lambda: saved.append(len(bench.rows)))
    assert saved == [1, 2, 3]  # after each case
    assert family.closed == 2  # behind each batch
    assert bench.failures == [
        f"{case.name}: graphkit broken: ZeroDivisionError: oh" for case in todo
    ]
    assert bench.absent["peer that cannot, batch 2, context 20"] == "RuntimeError: out of memory"
    assert bench.absent["peer that is not there, batch 1, context 20"] == "no such module"
    rows = {(row.case, row.metric): row for row in bench.rows[Size(1, 20)]}
    floor = rows[on_device(Size(1, 20)), FLOOR]
    assert (floor.n, floor.unit) == (0, DEVICE_US)
    assert floor.value == pytest.approx(bench.model.step_bytes(Size(1, 20)) / 1e12 * 1e6, rel=1e-3)
    mine = rows[on_device(Size(1, 20)), MANUAL]
    assert (mine.value, mine.baseline) == (2.0, FLOOR)
    share = rows["share of the read bandwidth at context 20: batch 1", "peer"]
    assert share.value == pytest.approx(100 * floor.value / 2.0, rel=1e-3)


def test_what_there_is_no_time_for_is_told(bench):
    bench.deadline = decode.time.monotonic() + 5
    bench.run([Case(Size(1, 20))], lambda: None)
    assert bench.absent == {"batch 1, context 20": "no time was left"}
    assert bench.rows == {}


def test_nothing_is_compiled_when_the_end_is_near(bench):
    bench.deadline = decode.time.monotonic() + 30
    made = bench._verified("peer, compiled", Case(SIZE), lambda: refuse(AssertionError), None)
    assert made is None
    assert "no time" in bench.absent[f"peer, compiled, {SIZE.name}"]


def test_the_order_of_what_is_measured():
    every = decode.cases()
    assert len({case.name for case in every}) == len(every) == 22
    assert every[0] == Case(Size(1, 128))
    whole = every.index(Case(Size(1, 128), whole=True))
    assert {case.size.batch for case in every[:whole]} == {1, 8, 64}
    assert decode.cases((2,), (128,)) == [Case(Size(2, 128))]
    assert decode.cases((1,), (128,)) == [Case(Size(1, 128)), Case(Size(1, 128), whole=True)]


# --- budgets -------------------------------------------------------------------------------------


def row(case, metric, value, unit=DEVICE_US, n=8):
    return Row(case, metric, value, unit, value, value, n)


def test_budgets_are_judged_against_the_best_of_all_peers():
    case = on_device(Size(1, 128))
    rows = [
        row(case, FLOOR, 560.0, n=0),
        row(case, PROGRAMMATIC, 650.0),
        row(case, MANUAL, 700.0),
        row(case, "PyTorch eager", 2000.0),
        row(case, "PyTorch CUDA graph", 1250.0),
        row(case, "Hugging Face eager", 13500.0),
        row("error of the logits at context 128: batch 1", "PyTorch eager", 0.01, "relative", 1),
    ]
    (best,) = decode.best_rows(rows)
    assert (best.metric, best.value) == (BEST, 1250.0)
    found = decode.verdicts(rows)
    assert {floor: [verdict.met for verdict in judged] for floor, judged in found.items()} == {
        FLOOR: [True],
        BEST: [False],  # 1.92 times as fast, of 2
        "Hugging Face eager": [True],
        MANUAL: [True],
    }
    case = decode.many(Size(1, 128))
    found = decode.verdicts([row(case, LOOKING, 660.0, HOST_US), row(case, LOOP, 655.0, HOST_US)])
    assert [verdict.met for verdict in found[LOOKING]] == [True]


def test_without_graphkit_or_without_peers_nothing_is_judged():
    case = on_device(Size(1, 128))
    assert decode.verdicts([row(case, FLOOR, 560.0, n=0), row(case, "PyTorch eager", 1.0)]) == {}
    assert set(decode.verdicts([row(case, PROGRAMMATIC, 1.0)])) == set()


# --- kernel by kernel ----------------------------------------------------------------------------


def test_every_kind_of_kernel_has_graphs_of_its_own(own):
    size = Size(2, 20)
    own.start(size)
    made = decode_kernels.Kernels(own.setting, own, size)
    counts = {kind.name: len(kind.launches) for kind in made.kinds}
    assert counts["q"] == counts["attention"] == own.model.layer_count
    assert counts["lm_head"] == counts["advance"] == 1
    # A kernel of every kind, all of them together: every byte that a step must read.
    total = sum(kind.nbytes * len(kind.launches) for kind in made.kinds)
    rows = 2 * own.model.config.hidden_size * size.batch  # of the embedding
    norms = (2 * own.model.layer_count + 1) * 2 * own.model.config.hidden_size
    assert total == own.model.step_bytes(size) + rows - norms
    contenders = made.contenders()
    assert len({contender.name for contender in contenders}) == 2 * (len(made.kinds) + 1)
    own.setting.cleanup.close()


def test_kernels_stand_behind_each_other_with_either_kind_of_edge(own):
    own.start(SIZE)
    launches = [entry.launch for entry in own.decoder.launches if entry.name.endswith(".q")]
    for edges in (decode_kernels.PLAIN, decode_kernels.PROGRAMMATIC):
        graph = decode_kernels.line_of(launches, edges)
        assert len(graph.edges) == len(launches) - 1
        kept = {edge.programmatic for edge in graph.edges}
        assert kept == {edges == decode_kernels.PROGRAMMATIC}
        graph.close()


def kernel_rows(size):
    us = DEVICE_US
    rows = [
        row(f"launches in a step: {size}", "qkv", 16, "launches", 0),
        row(f"launches in a step: {size}", "next", 1, "launches", 0),
        row(f"launches in a step: {size}", decode_picture.STEP, 1, "launches", 0),
        row(f"floor of a kernel: {size}", "qkv", 3.0, us),
        row(f"floor of a kernel: {size}", decode_picture.STEP, 560.0, us),
    ]
    for edges, qkv, step in (("plain edges", 5.0, 90.0), ("programmatic edges", 4.0, 60.0)):
        case = f"a kernel, {edges}: {size}"
        rows += [
            row(case, "qkv", qkv),
            row(case, "next", 2.0),
            row(case, decode_picture.STEP, step),
        ]
    return rows


def test_the_picture_shows_a_step_by_kernel():
    rows = [*kernel_rows("batch 1, context 128"), *kernel_rows("batch 8, context 128")]
    floor, plain, programmatic = decode_picture.kernel_bars(rows, "batch 1, context 128")
    assert floor.parts == {"qkv": 48.0}
    assert plain.parts == {"qkv": 80.0, "next": 2.0, decode_picture.OTHERS: 8.0}
    assert programmatic.parts == {"qkv": 64.0, "next": 2.0}  # overlapped: less than the sum
    assert "60 us" in programmatic.label
    with pytest.raises(ValueError, match="batch 2"):
        decode_picture.kernel_bars(rows, "batch 2, context 128")


def test_the_picture_shows_peers_of_the_same_size():
    case = on_device(Size(1, 128))
    slow, fast = decode_picture.PEERS[-1], decode_picture.PEERS[0]
    rows = [
        row(case, slow, 2700.0),
        row(case, fast, 1100.0),
        row(case, "Hugging Face eager", 13000.0),
        row(on_device(Size(1, 1024)), fast, 1200.0),
    ]
    bars = decode_picture.peer_bars(rows, 1, 128)
    assert [(bar.label, bar.total) for bar in bars] == [(fast, 1100.0), (slow, 2700.0)]
