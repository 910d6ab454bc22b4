"""Imports run one way, and `import graphkit` needs neither CUDA nor CuPy."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A module may import from the layers before its own, and from its own without a circle.
LAYERS = (
    ("statuses", "errors", "counts", "host_memory"),
    ("runtime", "lifetime", "turn", "device_array", "arrays"),
    ("culprit", "call_hooks"),
    ("stream", "c_signature", "launch_config", "params", "node", "host_port"),
    ("conditional_handle",),
    ("accesses", "hazards"),
    ("copying", "kernel", "capture_watch", "memory_nodes", "node_groups", "fork"),
    ("adopted", "graph_dot", "kernel_attributes"),
    ("readback", "conditional", "touched", "races", "derived_edges"),
    ("node_records", "inner_graphs", "conditional_nodes", "graph_limits"),
    ("update_report", "exec_nodes"),
    ("graph_exec",),
    ("graph",),
    ("capture",),
    ("signature", "buckets", "lattice", "frameworks", "staging", "topology", "pipeline_copies"),
    ("cost_model", "exec_memory", "snapshot", "compared", "scalar_codes", "differences", "buffers"),
    ("pool_policy", "retarget", "returned", "user_function", "arena", "in_flight", "request_shape"),
    ("unset_bytes", "forensics"),
    ("recapture", "bound", "rebind", "baked", "pipeline_function"),
    ("pool_graph", "rebound_capture"),
    ("pool_exec", "pool_request", "pool_stats", "pipeline_slot", "pipeline_request"),
    ("rebound_inputs",),
    ("bucket_capture",),
    ("trial", "pool_manifest"),
    ("bucket_graphs", "pool_execs", "warm_report", "warm_requests"),
    ("byte_size", "ladder"),
    ("warm_up",),
    ("exec_pool", "pipeline", "profile"),
    ("pool_metrics", "pool_table"),
    ("",),  # graphkit/__init__.py itself
    ("cli",),
    ("__main__",),
)
LAYER = {name: depth for depth, names in enumerate(LAYERS) for name in names}

# Importing these at import time would make graphkit need a GPU's software.
CUDA_PACKAGES = {"cuda", "cupy", "cupyx", "numba", "torch", "triton", "warp", "jax", "tensorflow"}


class Import(NamedTuple):
    """One import statement of one module."""

    importer: str
    imported: str
    for_types: bool
    inside_function: bool
    line: int

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def module_name(path: Path, folder: Path, package: str) -> str:
    parts = path.relative_to(folder).with_suffix("").parts
    return ".".join((package, *(part for part in parts if part != "__init__")))


def sources(folder: str, package: str) -> dict[str, Path]:
    return {
        module_name(path, ROOT / folder, package): path
        for path in sorted((ROOT / folder).rglob("*.py"))
    }


MODULES = {**sources("graphkit", "graphkit"), **sources("kernels", "graphkit.kernels")}


def imports_of(name: str, path: Path) -> Iterator[Import]:
    """Yield what a module imports, each name as the deepest module that it stands for."""

    def visit(node: ast.AST, for_types: bool, inside: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                yield from visit(child, True, inside)
            for child in node.orelse:
                yield from visit(child, for_types, inside)
            return
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(name, alias.name, for_types, inside, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            package = name if path.stem == "__init__" else name.rpartition(".")[0]
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1])
            module = node.module or ""
            source = module if node.level == 0 else f"{base}.{module}".rstrip(".")
            for alias in node.names:
                deeper = f"{source}.{alias.name}"
                imported = deeper if deeper in MODULES else source
                yield Import(name, imported, for_types, inside, node.lineno)
        inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, for_types, inside)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), False, False)


IMPORTS = [found for name, path in MODULES.items() for found in imports_of(name, path)]


def room(module: str) -> str:
    """Return the part of graphkit that a module belongs to: graphkit.runtime.sim -> runtime."""
    return module.split(".")[1] if "." in module else ""


def is_kernels(module: str) -> bool:
    return f"{module}.".startswith("graphkit.kernels.")


def is_graphkit(module: str) -> bool:
    return f"{module}.".startswith("graphkit.") and not is_kernels(module)


def test_every_module_of_graphkit_has_its_layer():
    rooms = {room(name) for name in MODULES if is_graphkit(name)}
    assert rooms - set(LAYER) == set()


def test_imports_run_one_way():
    against = [
        str(found)
        for found in IMPORTS
        if is_graphkit(found.importer)
        and is_graphkit(found.imported)
        and not found.for_types
        and LAYER.get(room(found.importer), 0) < LAYER.get(room(found.imported), len(LAYERS))
    ]
    assert against == []


def test_imports_have_no_circles():
    edges: dict[str, set[str]] = {name: set() for name in MODULES}
    for found in IMPORTS:
        if not found.for_types and found.imported in MODULES:
            edges[found.importer].add(found.imported)
    while leaves := {name for name, needs in edges.items() if not needs & edges.keys()}:
        for name in leaves:
            del edges[name]
    assert sorted(edges) == []


def test_graphkit_imports_its_kernels_in_commands_only():
    found = [
        str(found)
        for found in IMPORTS
        if is_graphkit(found.importer)
        and is_kernels(found.imported)
        and not (found.importer == "graphkit.cli" and found.inside_function)
    ]
    assert found == []


def test_only_the_cuda_runtime_imports_cuda_packages():
    found = [
        str(found)
        for found in IMPORTS
        if found.imported.split(".")[0] in CUDA_PACKAGES
        and not found.for_types
        and not found.importer.startswith("graphkit.runtime.cuda")
        # A script that trains or compares is no part of what `import graphkit.kernels` runs.
        and '"__main__"' not in MODULES[found.importer].read_text(encoding="utf-8")
    ]
    assert found == []


def test_the_cuda_runtime_is_not_imported_with_graphkit():
    found = [
        str(found)
        for found in IMPORTS
        if found.imported.startswith("graphkit.runtime.cuda")
        and not found.importer.startswith("graphkit.runtime.cuda")
        and not found.inside_function
        and not found.for_types
    ]
    assert found == []


def test_nothing_imports_a_bare_kernels():
    assert [str(found) for found in IMPORTS if found.imported.split(".")[0] == "kernels"] == []


BLOCKED = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

sys.meta_path.insert(0, Block())
"""


def run_blocked(code: str) -> subprocess.CompletedProcess[str]:
    program = BLOCKED.format(blocked=CUDA_PACKAGES) + code
    return subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)


@pytest.mark.parametrize("module", ["graphkit", "graphkit.cli", "graphkit.kernels"])
def test_it_imports_with_cuda_and_cupy_blocked(module):
    run = run_blocked(f"import {module}")
    assert run.returncode == 0, run.stderr


def test_the_simulator_works_with_cuda_and_cupy_blocked():
    run = run_blocked(
        "import graphkit as gk\n"
        "gk.use('sim')\n"
        "x = gk.zeros((4,), 'float32')\n"
        "print(x.get().tolist())"
    )
    assert run.stdout.split() == ["[0.0,", "0.0,", "0.0,", "0.0]"], run.stderr


def test_without_cuda_the_cuda_runtime_says_what_to_install():
    run = run_blocked(
        "import graphkit as gk\n"
        "try:\n"
        "    gk.use('cuda')\n"
        "except gk.RuntimeUnavailableError as error:\n"
        "    print(error)"
    )
    assert "pip install -e '.[cu1" in run.stdout, run.stdout + run.stderr
    assert "sim" in run.stdout
