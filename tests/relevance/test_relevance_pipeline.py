import gc
import weakref

import numpy as np
import pytest
from graphkit.kernels.relevance import (
    PatchGrid,
    RelevanceBuffers,
    RelevancePipeline,
    RelevanceSettings,
    relevance_graph,
    relevance_launches,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import graphkit as gk

SIZES = {224: 196, 384: 576, 512: 1024}
WIDTH = 256


class Request:
    """An image, its features and a query, on the host and in device memory."""

    def __init__(self, height, width=None, features=WIDTH, seed=0, patch=16):
        rng = np.random.default_rng((height, seed))
        width = width or height
        patches = height // patch * (width // patch)
        self.columns = width // patch
        self.patch = patch
        # Contrast and brightness that differ from place to place, and patches like the query.
        shape = (3, height, width)
        self.image = (rng.random(shape) * np.linspace(0.1, 1, width)).astype(np.float32)
        self.query = rng.standard_normal(features).astype(np.float32)
        values = rng.standard_normal((patches, features)) * rng.uniform(0.5, 3, (patches, 1))
        values += rng.uniform(0, 1, (patches, 1)) * self.query
        self.features = values.astype(np.float32)

    def arrays(self):
        return {
            "image": gk.asarray(self.image),
            "features": gk.asarray(self.features),
            "query": gk.asarray(self.query),
        }

    def balance(self, reference):
        scores = (
            reference.entropy(self.features),
            reference.contrast(self.image, self.patch),
            reference.similarity(self.features, self.query),
        )
        return reference.balance(scores, self.columns)


@pytest.fixture
def new_pipeline(stream):
    made = []

    def make(k=32, total_tokens=4096, **options):
        made.append(RelevancePipeline(k=k, total_tokens=total_tokens, stream=stream, **options))
        return made[-1]

    yield make
    for pipeline in made:
        pipeline.close()


def check(answer, request, reference, total, least=64, most=400):
    """Compare an answer with the reference, as far as float32 can tell balances apart."""
    indices, tokens = answer.indices.get(), answer.tokens.get()
    balances = answer.balances.get()
    expected = request.balance(reference)
    np.testing.assert_allclose(balances, expected[indices], rtol=1e-3, atol=1e-3)
    order = reference.select(expected, len(expected))
    np.testing.assert_allclose(balances, expected[order][: len(indices)], rtol=1e-3, atol=1e-3)
    assert len(set(indices.tolist())) == len(indices)
    gaps = -np.diff(expected[order][: len(indices) + 1])
    if gaps.min(initial=1.0) > 1e-3:
        np.testing.assert_array_equal(indices, order[: len(indices)])
    assert tokens.sum() == total
    np.testing.assert_array_equal(tokens, reference.tokens(balances, total, least, most))
    near = reference.tokens(expected[order][: len(indices)], total, least, most)
    np.testing.assert_allclose(tokens, near, atol=2)


@pytest.mark.parametrize("way", ["graph", "eager"])
@pytest.mark.parametrize("size", SIZES)
def test_equals_the_reference(new_pipeline, stream, reference, size, way):
    request = Request(size)
    assert len(request.features) == SIZES[size]
    pipeline = new_pipeline()
    arrays = request.arrays()
    answer = pipeline(**arrays) if way == "graph" else pipeline.launch_eagerly(**arrays)
    stream.synchronize()
    check(answer, request, reference, 4096)


@settings(
    deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.integers(1, 7),
    columns=st.integers(1, 7),
    patch=st.sampled_from([3, 8, 14, 16]),
    features=st.integers(2, 70),
    share=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_equals_the_reference_at_odd_sizes(
    stream, reference, rows, columns, patch, features, share, seed
):
    request = Request(rows * patch, columns * patch, features, seed, patch)
    k = max(1, round(share * rows * columns))
    total = 64 * k + round(share * 336 * k)
    with RelevancePipeline(k=k, total_tokens=total, patch=patch, stream=stream) as pipeline:
        answer = pipeline(**request.arrays())
        stream.synchronize()
        check(answer, request, reference, total)


def test_the_scorers_stand_side_by_side(new_pipeline):
    made = new_pipeline().warm(**Request(224).arrays())
    names = {node: name for name, node in made.nodes.items()}
    edges = {(names[edge.from_node], names[edge.to_node]) for edge in made.graph.edges}
    assert edges == {
        ("patch_luminance", "local_contrast"),
        ("local_contrast", "opponent_balance"),
        ("feature_entropy", "opponent_balance"),
        ("query_similarity", "opponent_balance"),
        ("opponent_balance", "select_patches"),
        ("select_patches", "token_budget"),
    }


def test_there_is_one_exec_for_each_size_whatever_comes(new_pipeline, stream, reference):
    pipeline = new_pipeline()
    requests = [Request(size, seed=seed) for seed in range(3) for size in (224, 384)]
    for request in requests:
        answer = pipeline(**request.arrays())
        stream.synchronize()
        check(answer, request, reference, 4096)
    assert len(pipeline.execs) == 2
    narrow = Request(224, features=64)
    answer = pipeline(**narrow.arrays())
    stream.synchronize()
    check(answer, narrow, reference, 4096)
    assert len(pipeline.execs) == 3


def test_any_of_the_arrays_may_lie_elsewhere(new_pipeline, stream, reference):
    first, second = Request(224, seed=1), Request(224, seed=2)
    pipeline, arrays, others = new_pipeline(), first.arrays(), second.arrays()
    pipeline(**arrays)
    mixed = Request(224, seed=1)
    for name in arrays:
        arrays[name] = others[name]
        setattr(mixed, name, getattr(second, name))
        answer = pipeline(**arrays)
        stream.synchronize()
        check(answer, mixed, reference, 4096)


def test_launches_in_flight_keep_what_they_read(new_pipeline, stream, reference):
    pipeline = new_pipeline()
    last = None
    for seed in range(5):
        last = Request(224, seed=seed)
        answer = pipeline(**last.arrays())  # nobody else holds them
    stream.synchronize()
    check(answer, last, reference, 4096)


class LentArray:
    """Somebody's array over memory that may have been another one's before."""

    def __init__(self, array):
        self.array = array

    @property
    def __cuda_array_interface__(self):
        return self.array.__cuda_array_interface__


def test_an_array_at_the_address_of_another_one_is_kept_alive_as_well(new_pipeline, stream):
    pipeline = new_pipeline(k=2, total_tokens=200)
    arrays = Request(64).arrays()
    images = [LentArray(arrays["image"]) for _ in range(2)]
    known = [weakref.ref(image) for image in images]
    while images:
        pipeline(**{**arrays, "image": images.pop()})
    gc.collect()
    assert known[0]() is not None
    stream.synchronize()


def test_equal_patches_are_selected_in_order_and_share_alike(new_pipeline, stream):
    pipeline = new_pipeline(k=7, total_tokens=1000)
    image, features = np.full((3, 224, 224), 0.4, np.float32), np.ones((196, WIDTH), np.float32)
    answer = pipeline(
        image=gk.asarray(image), features=gk.asarray(features), query=gk.asarray(features[0])
    )
    stream.synchronize()
    assert answer.indices.get().tolist() == list(range(7))
    assert answer.tokens.get().tolist() == [143] * 6 + [142]


def test_patches_that_are_not_finite_are_never_selected(new_pipeline, stream, reference):
    request = Request(224)
    request.image[1, 3, 20] = np.nan  # patch 1
    request.features[57, 9] = np.inf
    pipeline = new_pipeline(k=196, total_tokens=196 * 100)
    answer = pipeline(**request.arrays())
    stream.synchronize()
    indices, tokens = answer.indices.get(), answer.tokens.get()
    assert set(indices[:194].tolist()) == set(range(196)) - {1, 57}
    assert indices[194:].tolist() == [-1, -1]
    assert tokens[194:].tolist() == [0, 0]
    assert tokens.sum() == 196 * 100
    balances = answer.balances.get()
    np.testing.assert_array_equal(np.isnan(balances), np.arange(196) >= 194)
    expected = request.balance(reference)
    np.testing.assert_allclose(balances[:194], expected[indices[:194]], rtol=1e-3, atol=1e-3)


def test_a_query_that_is_not_finite_selects_nothing(new_pipeline, stream):
    request = Request(224)
    request.query[0] = np.nan
    answer = new_pipeline()(**request.arrays())
    stream.synchronize()
    assert set(answer.indices.get().tolist()) == {-1}
    assert set(answer.tokens.get().tolist()) == {0}


def test_an_exec_pool_takes_the_eager_launches(new_pipeline, stream, reference):
    with gk.ExecPool(new_pipeline().launch_eagerly, stream=stream, strict=True) as pool:
        for request in (Request(224), Request(384), Request(224, seed=1)):
            answer = pool(**request.arrays())
            stream.synchronize()
            check(answer, request, reference, 4096)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"image": lambda: gk.zeros((3, 224, 225))},
            ValueError,
            r"^image: expected height and width that are multiples of the patch.*came 224 x 225$",
        ),
        (
            {"image": lambda: gk.zeros((224, 224, 3))},
            ValueError,
            r"^image: expected shape \(3, height, width\), came \(224, 224, 3\)",
        ),
        (
            {"image": lambda: gk.zeros((3, 224, 224), np.float16)},
            ValueError,
            r"^image: expected dtype float32, came float16",
        ),
        (
            {"image": lambda: np.zeros((3, 224, 224), np.float32)},
            TypeError,
            r"^image: expected an array in device memory, came ndarray",
        ),
        (
            {"image": lambda: gk.zeros((3, 224, 448))[:, :, :224]},
            ValueError,
            r"^image: expected C order without gaps, came strides",
        ),
        (
            {"features": lambda: gk.zeros((195, WIDTH))},
            ValueError,
            r"^features: expected shape \(196, width\), came \(195, 256\)",
        ),
        (
            {"features": lambda: gk.zeros((196, WIDTH), np.int32)},
            ValueError,
            r"^features: expected dtype float32, came int32",
        ),
        ({"query": lambda: gk.zeros(255)}, ValueError, r"^query: expected shape \(256\), came"),
        ({"query": lambda: None}, TypeError, r"^query: expected an array"),
        (
            {"image": lambda: gk.zeros((3, 64, 64)), "features": lambda: gk.zeros((16, WIDTH))},
            ValueError,
            r"^k: expected at most 16, the patches of the image, came 32$",
        ),
    ],
)
def test_a_bad_request_is_refused_and_nothing_is_made(new_pipeline, change, error, message):
    arrays = Request(224).arrays()
    pipeline = new_pipeline()
    bad = {name: make() for name, make in change.items()}
    for ask in (pipeline, pipeline.warm, pipeline.launch_eagerly):
        with pytest.raises(error, match=message):
            ask(**{**arrays, **bad})
    assert pipeline.execs == ()


def test_after_a_bad_request_the_answer_before_stands(new_pipeline, stream, reference):
    request = Request(224)
    arrays, pipeline = request.arrays(), new_pipeline()
    answer = pipeline(**arrays)
    for bad in (gk.zeros((3, 224, 224), np.float64), np.zeros((3, 224, 224), np.float32)):
        with pytest.raises((TypeError, ValueError), match=r"^image: "):
            pipeline(**{**arrays, "image": bad})
    stream.synchronize()
    check(answer, request, reference, 4096)


def test_an_array_between_two_floats_is_refused(new_pipeline, stream):
    pipeline, arrays = new_pipeline(), Request(224).arrays()
    pipeline(**arrays)
    beside = gk.zeros(4 * WIDTH + 4, np.uint8)[1 : 4 * WIDTH + 1].view(WIDTH, np.float32)
    with pytest.raises(ValueError, match=r"^query: expected an address that is a multiple of 4"):
        pipeline(**{**arrays, "query": beside})
    stream.synchronize()


def test_a_freed_array_is_refused(new_pipeline, stream):
    pipeline = new_pipeline()
    for name in ("image", "features", "query"):
        arrays = Request(224).arrays()
        pipeline(**arrays)
        stream.synchronize()
        arrays[name].free()
        with pytest.raises(ValueError, match=f"^{name}: expected live device memory, came a freed"):
            pipeline(**arrays)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"k": 0}, ValueError, r"^k: expected 1 to 11968, came 0"),
        ({"k": 2.0}, TypeError, r"^k: expected an int, came float"),
        ({"total_tokens": 2047}, ValueError, r"^total_tokens: expected 2048 to 12800 tokens,"),
        ({"total_tokens": 12801}, ValueError, r"^total_tokens: expected 2048 to 12800 tokens,"),
        ({"least_tokens": 500}, ValueError, r"^least_tokens: expected 0 to 400, came 500"),
        ({"patch": 0}, ValueError, r"^patch: expected 1 to 46340, came 0"),
        ({"weights": (1, 2)}, ValueError, r"^weights: expected three numbers, came 2"),
        (
            {"saturation": 0},
            ValueError,
            r"^saturation: expected a finite number above 0 in float32,",
        ),
        ({"saturation": 1e-60}, ValueError, r"^saturation: expected a finite number above 0 in"),
        (
            {"weights": (10**400, 1, 1)},
            ValueError,
            r"^weights: expected a finite number in float32",
        ),
        ({"weights": (1, True, 1)}, TypeError, r"^weights: expected a number, came bool"),
        ({"stream": "x"}, TypeError, r"^stream: expected a graphkit, CuPy, .* came str"),
        ({"inhibition": None}, TypeError, r"^inhibition: expected a number, came NoneType"),
        ({"radius": -1}, ValueError, r"^radius: expected 0 to 32768, came -1"),
    ],
)
def test_bad_settings_are_refused(runtime, settings, error, message):
    with pytest.raises(error, match=message):
        RelevancePipeline(**{"k": 32, "total_tokens": 4096, **settings})


def test_settings_may_be_numbers_of_numpys(runtime):
    one = np.float32(1)
    settings = RelevanceSettings(2, 200, weights=(one, one, np.int64(1)), saturation=np.float32(1))
    assert settings == RelevanceSettings(2, 200, saturation=1.0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("x", 2), TypeError, r"^grid: expected a PatchGrid, came str"),
        (((2, 2), 2), TypeError, r"^grid: expected a PatchGrid, came tuple"),
        ((PatchGrid("a", 2), 2), TypeError, r"^grid.rows: expected an int, came str"),
        ((PatchGrid(2, 0), 2), ValueError, r"^grid.columns: expected 1 to 11968, came 0"),
        ((PatchGrid(2, 2), "2"), TypeError, r"^k: expected an int, came str"),
        ((PatchGrid(2, 2), 0), ValueError, r"^k: expected 1 to 11968, came 0"),
    ],
)
def test_bad_buffers_are_refused(runtime, arguments, error, message):
    before = gk.live_handles()
    with pytest.raises(error, match=message):
        RelevanceBuffers(*arguments)
    assert gk.live_handles() == before


def test_launches_of_other_types_are_refused(runtime):
    arrays, settings = Request(224).arrays(), RelevanceSettings(2, 200)
    for change, message in (
        ({"settings": {"k": 2}}, r"^settings: expected a RelevanceSettings, came dict"),
        ({"buffers": None}, r"^buffers: expected a RelevanceBuffers, came NoneType"),
    ):
        given = {"settings": settings, **arrays, "buffers": RelevanceBuffers(PatchGrid(14, 14), 2)}
        with pytest.raises(TypeError, match=message):
            relevance_launches(**{**given, **change})
    with pytest.raises(ValueError, match=r"^buffers: expected those of k 2, came 3"):
        relevance_launches(settings, **arrays, buffers=RelevanceBuffers(PatchGrid(14, 14), 3))
    for launches in (5, [5]):
        with pytest.raises(TypeError, match=r"^launches: expected a .*, came int"):
            relevance_graph(launches)


def test_a_closed_pipeline_refuses(new_pipeline):
    arrays, pipeline = Request(224).arrays(), new_pipeline()
    pipeline(**arrays)
    pipeline.close()
    pipeline.close()
    with pytest.raises(ValueError, match=r"^pipeline: expected an open one, came one that was"):
        pipeline(**arrays)


@pytest.mark.parametrize("warm", [False, True])
def test_a_request_during_a_capture_is_refused_and_the_capture_lives(new_pipeline, stream, warm):
    arrays, pipeline = Request(224).arrays(), new_pipeline()
    if warm:
        pipeline(**arrays)
        pipeline.stream.synchronize()
    with gk.capture(stream) as graph:
        with pytest.raises(ValueError, match=r"^pipeline: expected no live capture of this thread"):
            pipeline(**arrays)
        gk.memset_async(arrays["query"], 0, stream)
    assert len(graph.nodes) == 1
    pipeline(**arrays)
    pipeline.stream.synchronize()
