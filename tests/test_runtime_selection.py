"""Which runtime is chosen, what is said when there is none, what of CUDA works without one."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest

import graphkit.runtime as selection
from graphkit.errors import CudaError, GraphkitError, RuntimeUnavailableError
from graphkit.runtime import Capabilities, Feature, current, probe, use
from graphkit.runtime.protocol import (
    EdgeData,
    HostNodeParams,
    KernelNodeParams,
    KernelSource,
    LaunchAttribute,
    LaunchAttributeID,
    LaunchConfig,
    MemcpyKind,
    MemcpyNodeParams,
    MemsetNodeParams,
)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch):
    """Start with no choice made; put back whatever the session had chosen."""
    monkeypatch.setattr(selection, "_current", None)
    monkeypatch.setattr(selection, "_cuda", None)
    monkeypatch.delenv("GRAPHKIT_RUNTIME", raising=False)


@pytest.fixture
def cudart(monkeypatch):
    """cuda.bindings' runtime as graphkit.runtime.cuda sees it, answering what a test puts there."""
    import graphkit.runtime.cuda as module

    answers = SimpleNamespace(
        cudaGetDeviceCount=lambda: (0, 1),
        cudaGetLastError=lambda: (0,),
        cudaRuntimeGetVersion=lambda: (0, 13030),
    )
    monkeypatch.setattr(module, "cudart", answers)
    return answers


@pytest.fixture
def supported(monkeypatch):
    """Set the CUDA version that the driver says it supports; None is no driver."""
    from graphkit.runtime import cuda_driver

    def set_version(version):
        monkeypatch.setattr(cuda_driver, "driver_version", lambda: version)

    set_version(13000)
    return set_version


# --- choosing ------------------------------------------------------------------------------------


def test_use_sim_is_current_until_the_next_use():
    first = use("sim")
    assert first.name == "sim"
    assert current() is first
    second = use("sim")
    assert second is not first
    assert current() is second


def test_use_passes_options_to_the_simulator():
    from graphkit.runtime.sim import SimOptions

    assert use("sim", options=SimOptions(order_seed=7)).options == SimOptions(order_seed=7)


@pytest.mark.parametrize("value", ["sim", " SIM "])
def test_environment_chooses(monkeypatch, value):
    monkeypatch.setenv("GRAPHKIT_RUNTIME", value)
    assert current().name == "sim"
    assert current() is current()


def test_use_wins_over_the_environment(monkeypatch, cudart):
    monkeypatch.setenv("GRAPHKIT_RUNTIME", "sim")
    assert use("cuda").name == "cuda"
    assert current().name == "cuda"


def test_cuda_is_the_default_where_there_is_a_device(cudart):
    assert current().name == "cuda"
    assert use("cuda") is current()


def test_an_empty_variable_is_no_choice(monkeypatch, cudart):
    monkeypatch.setenv("GRAPHKIT_RUNTIME", "")
    assert current().name == "cuda"


def test_unknown_names_are_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"name: expected \"cuda\" or \"sim\", came 'gpu'"):
        use("gpu")
    monkeypatch.setenv("GRAPHKIT_RUNTIME", "gpu")
    with pytest.raises(ValueError, match=r"GRAPHKIT_RUNTIME: expected .* came 'gpu'"):
        current()


def test_options_are_the_simulators():
    from graphkit.runtime.sim import SimOptions

    with pytest.raises(TypeError, match=r"options: .* simulator"):
        use("cuda", options=SimOptions())
    with pytest.raises(TypeError, match="options: expected SimOptions, came dict"):
        use("sim", options={"order_seed": 1})


# --- no CUDA -------------------------------------------------------------------------------------


def assert_shows_the_simulator(error):
    assert 'gk.use("sim")' in str(error.value)
    assert "GRAPHKIT_RUNTIME=sim" in str(error.value)


def test_no_driver(cudart, supported):
    supported(None)
    cudart.cudaGetDeviceCount = lambda: (35, None)
    with pytest.raises(
        RuntimeUnavailableError, match=r"no NVIDIA driver: .* cannot be loaded"
    ) as e:
        current()
    assert_shows_the_simulator(e)


def test_driver_too_old_names_both_versions(cudart, supported):
    supported(12080)
    cudart.cudaGetDeviceCount = lambda: (35, None)
    with pytest.raises(RuntimeUnavailableError) as e:
        current()
    assert "driver supports CUDA 12.8" in str(e.value)
    assert "cuda-bindings are for CUDA 13.3" in str(e.value)
    assert "pip install -e '.[cu12]'" in str(e.value)
    assert_shows_the_simulator(e)


@pytest.mark.parametrize("answer", [(100, None), (0, 0)])
def test_no_device(monkeypatch, cudart, supported, answer):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    cudart.cudaGetDeviceCount = lambda: answer
    with pytest.raises(
        RuntimeUnavailableError, match=r"no device.*CUDA_VISIBLE_DEVICES is '7'"
    ) as e:
        current()
    assert_shows_the_simulator(e)


def test_any_other_status_is_explained(cudart, supported):
    cudart.cudaGetDeviceCount = lambda: (803, None)
    with pytest.raises(RuntimeUnavailableError, match="cudaGetDeviceCount returned 803"):
        use("cuda")


def test_a_failed_use_keeps_the_choice_before(cudart, supported):
    sim = use("sim")
    cudart.cudaGetDeviceCount = lambda: (100, None)
    with pytest.raises(RuntimeUnavailableError):
        use("cuda")
    assert current() is sim


def test_a_failure_is_not_remembered(cudart, supported):
    cudart.cudaGetDeviceCount = lambda: (100, None)
    with pytest.raises(RuntimeUnavailableError):
        current()
    cudart.cudaGetDeviceCount = lambda: (0, 1)
    assert current().name == "cuda"


# --- without the packages: a fresh interpreter, in which they cannot be imported -----------------

BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {packages}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
"""


def run_without(packages, code, **environment):
    script = BLOCK.format(packages=packages) + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "GRAPHKIT_RUNTIME": "", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_everything_imports_without_cuda_and_cupy():
    out = run_without(
        ("cuda", "cupy", "cupy_backends"),
        """
        import graphkit
        import graphkit.runtime.probe, graphkit.runtime.sim, graphkit.runtime.cuda_driver
        assert not {"cuda", "cupy", "graphkit.runtime.cuda"} & set(sys.modules)
        from graphkit.runtime import current, use
        assert use("sim") is current()
        print(current().name)
        """,
    )
    assert out.strip() == "sim"


def test_importing_graphkit_imports_neither_cuda_nor_cupy():
    run_without(
        (),
        """
        import graphkit
        assert not {"cuda.bindings.runtime", "cupy"} & set(sys.modules)
        """,
    )


@pytest.mark.parametrize(
    ("version", "words"),
    [
        (13000, "pip install -e '.[cu13]' in the checkout (the driver supports CUDA 13.0)"),
        (12090, "pip install -e '.[cu12]' in the checkout (the driver supports CUDA 12.9)"),
        (None, "pip install -e '.[cu13]' or '.[cu12]', whichever fits the driver"),
    ],
)
def test_without_bindings_the_extra_to_install_is_named(version, words):
    out = run_without(
        ("cuda",),
        f"""
        from graphkit.errors import RuntimeUnavailableError
        from graphkit.runtime import cuda_driver, current
        cuda_driver.driver_version = lambda: {version}
        try:
            current()
        except RuntimeUnavailableError as error:
            print(error)
        """,
    )
    # Without a driver the packages would be of no use, so that is what is missing first.
    reason = "no NVIDIA driver" if version is None else "cuda-bindings is not installed"
    assert out.startswith(reason)
    assert words in out
    assert 'gk.use("sim")' in out


def test_without_cupy_only_loading_a_kernel_fails(monkeypatch, cudart):
    runtime = use("cuda")
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setitem(sys.modules, "cupy.cuda", None)
    source = KernelSource("", "f", (), (), None)
    with pytest.raises(RuntimeUnavailableError, match=r"CuPy.*pip install -e '\.\[cu1[23]\]'"):
        runtime.function_load(source)


def test_without_cupy_a_launch_goes_through_the_bindings(monkeypatch, cudart):
    seen = []
    cudart.cudaGraphLaunch = lambda exec_, stream: (seen.append((exec_, stream)) or 0,)
    cudart.cudaGraphExec_t = cudart.cudaStream_t = int
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setitem(sys.modules, "cupy.cuda", None)
    runtime = use("cuda")
    runtime.graph_launch(5, 6)
    runtime.graph_launcher(SimpleNamespace(value=7), 8)()
    assert seen == [(5, 6), (7, 8)]


def test_an_exception_of_cupy_becomes_a_cuda_error(monkeypatch, cudart):
    class CUDARuntimeError(RuntimeError):
        status = 400

    def refuse(exec_, stream):
        raise CUDARuntimeError

    cupy_runtime = SimpleNamespace(graphLaunch=refuse, CUDARuntimeError=CUDARuntimeError)
    cupy_cuda = SimpleNamespace(runtime=cupy_runtime)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cupy_cuda))
    monkeypatch.setitem(sys.modules, "cupy.cuda", cupy_cuda)
    runtime = use("cuda")
    launcher = runtime.graph_launcher(SimpleNamespace(value=5), 6)
    for launch in (launcher, lambda: runtime.graph_launch(5, 6)):
        with pytest.raises(CudaError) as e:
            launch()
        assert (e.value.call, e.value.code) == ("cudaGraphLaunch", 400)
        assert e.value.__suppress_context__


# --- probe ---------------------------------------------------------------------------------------


def test_probe_of_the_simulator():
    runtime = use("sim")
    found = probe()
    assert found == probe(runtime)
    assert isinstance(found, Capabilities)
    assert found.runtime == "sim"
    assert found.programmatic_edges
    assert found.exec_update_report
    assert found.conditional_nodes
    assert set(found.features()) == {
        "programmatic_edges",
        "cluster_launch",
        "device_launch",
        "exec_update_report",
        "conditional_nodes",
        "memory_nodes",
        "node_ids",
        "node_get_params",
    }
    for feature in found.features().values():
        assert bool(feature.reason) is not feature.present


def test_features_read_as_answers():
    assert Feature(True)
    assert str(Feature(True)) == "yes"
    assert not Feature(False, "too old")
    assert str(Feature(False, "too old")) == "no: too old"


# --- the structs of cuda.bindings, which need no device -------------------------------------------

KERNEL = KernelNodeParams(11, (1, 2, 3), (4, 5, 6), 7, 88, 99)
ATTRIBUTES = [
    LaunchAttribute(LaunchAttributeID.CLUSTER_DIMENSION, (2, 3, 4)),
    LaunchAttribute(LaunchAttributeID.COOPERATIVE, (1,)),
    LaunchAttribute(LaunchAttributeID.PRIORITY, (-2,)),
    LaunchAttribute(LaunchAttributeID.PROGRAMMATIC_STREAM_SERIALIZATION, (1,)),
]


def test_a_block_is_laid_out_as_the_bindings_read_it():
    from graphkit.runtime.cuda_params import KernelBlock

    block = KernelBlock()
    for params in (KERNEL, KERNEL._replace(function=2**63, grid=(2**31 - 1, 1, 1), extra=0)):
        struct = block.fill(params)
        read = KernelNodeParams(
            int(struct.func),
            (struct.gridDimX, struct.gridDimY, struct.gridDimZ),
            (struct.blockDimX, struct.blockDimY, struct.blockDimZ),
            struct.sharedMemBytes,
            struct.kernelParams,
            struct.extra,
        )
        assert read == params
        assert not int(struct.kern)
        assert not int(struct.ctx)


def test_memcpy_params_come_back_and_positions_become_addresses():
    from graphkit.runtime.cuda_params import memcpy_struct, read_memcpy

    params = MemcpyNodeParams(1000, 16, 4, 2000, 32, 5, 10, 2, 3, MemcpyKind.DEVICE_TO_DEVICE)
    struct = memcpy_struct(params)
    assert read_memcpy(struct) == params
    struct.srcPos.x, struct.srcPos.y, struct.srcPos.z = 1, 2, 3
    struct.dstPos.x = 7
    moved = params._replace(src=2000 + 1 + 2 * 32 + 3 * 32 * 5, dst=1007)
    assert read_memcpy(struct) == moved


def test_a_copy_with_a_cuda_array_is_refused():
    from cuda.bindings import runtime

    from graphkit.runtime.cuda_params import read_memcpy

    struct = runtime.cudaMemcpy3DParms()
    struct.srcArray = 5
    with pytest.raises(GraphkitError, match="CUDA array"):
        read_memcpy(struct)


def test_memset_and_host_params_come_back():
    from graphkit.runtime.cuda_params import host_struct, memset_struct, read_memset

    params = MemsetNodeParams(1, 2, 3, 4, 5, 6)
    assert read_memset(memset_struct(params)) == params
    struct = host_struct(HostNodeParams(5, 6))
    assert (int(struct.fn), struct.userData) == (5, 6)


@pytest.mark.parametrize("attribute", ATTRIBUTES, ids=lambda attribute: attribute.id.name)
def test_attributes_come_back(attribute):
    from cuda.bindings import driver

    from graphkit.runtime.cuda_params import launch_attribute, write_attribute

    value = write_attribute(driver.CUkernelNodeAttrValue(), attribute)
    assert launch_attribute(attribute.id, value) == attribute


def test_launch_config():
    from graphkit.runtime.cuda_params import launch_attribute, launch_config

    struct = launch_config(LaunchConfig((1, 2, 3), (4, 5, 6), 7, 8, tuple(ATTRIBUTES)))
    assert (struct.gridDimX, struct.blockDimZ, struct.sharedMemBytes) == (1, 6, 7)
    assert int(struct.hStream) == 8
    assert struct.numAttrs == len(ATTRIBUTES)
    read = [launch_attribute(LaunchAttributeID(int(a.id)), a.value) for a in struct.attrs]
    assert read == ATTRIBUTES


def test_edges_carry_data_only_where_there_is_some(monkeypatch):
    from graphkit.runtime import cuda_bindings
    from graphkit.runtime.protocol import Edge

    calls = []
    monkeypatch.setattr(cuda_bindings, "_add_dependencies", lambda *a: calls.append(a) or (0,))
    cuda_bindings.connect(1, [Edge(2, 3), Edge(3, 4)])
    cuda_bindings.connect(1, [Edge(2, 3), Edge(3, 4, EdgeData(1, 0, 1))])
    (_, froms, tos, data, count), plain, annotated = calls
    assert ([int(n) for n in froms], [int(n) for n in tos], count) == ([2, 3], [3, 4], 2)
    assert data is None
    # A call for each kind of edge data: one call for both gave every edge the first one's.
    assert (int(plain[1][0]), plain[3]) == (2, None)
    assert int(annotated[1][0]) == 3
    assert [(d.from_port, d.to_port, d.type) for d in annotated[3]] == [(1, 0, 1)]
