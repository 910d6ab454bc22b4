"""The command line, in this process and, where the process matters, in one of its own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from graphkit.kernels import llama
from llama.reference import byte_model, config, tensors, write_model
from typer.testing import CliRunner

import graphkit as gk
from graphkit import cli
from graphkit.errors import RuntimeUnavailableError

BUILDS = ["eager", "capture", "manual"]
FUSED = [*BUILDS, "programmatic", "loop"]


@pytest.fixture
def graphkit(runtime):
    """Call the command line on the runtime of this test run."""

    def call(*arguments, status=0):
        result = CliRunner().invoke(
            cli.app, [str(a) for a in arguments], env={"GRAPHKIT_RUNTIME": runtime.name}
        )
        assert result.exit_code == status, result.output
        return result

    return call


@pytest.fixture
def model(tmp_path):
    return byte_model(tmp_path / "model")


def rows(output):
    """The rows of the table that `generate` prints, by build."""
    lines = [line.split() for line in output.splitlines()]
    header = next(line for line in lines if line[:2] == ["build", "nodes"])
    return {
        line[0]: dict(zip(header, line, strict=True))
        for line in lines
        if line[:1] and line[0] in FUSED
    }


# --- generate ------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", BUILDS)
def test_generate(graphkit, model, build):
    output = graphkit("generate", "--model", model, "--tokens", 6, "--build", build).stdout
    assert output.splitlines()[0].startswith(("SIMULATOR:", "device:"))
    assert output.splitlines()[1].startswith("def ")
    found = rows(output)
    assert next(iter(found)) == build
    assert found["eager"]["nodes"] == "-"
    assert found["capture"]["nodes"] == found["manual"]["nodes"] == "33"
    assert found["eager"]["launches"] == str(9 * 33)
    assert found["capture"]["launches"] == "9"
    assert {row["tokens"] for row in found.values()} == {"6"}
    assert "same tokens from all builds: yes" in output


def test_generate_says_milliseconds_on_a_device_alone(graphkit, model, runtime):
    output = graphkit("generate", "--model", model, "--tokens", 3).stdout
    assert ("ms/token" in output) == (runtime.name == "cuda")


def test_generate_uses_the_bundled_model(graphkit):
    arguments = ("--tokens", 4, "--no-compare", "--kernels", "simple")
    output = graphkit("generate", "--prompt", "import ", *arguments).stdout
    assert output.splitlines()[1].startswith("import ")
    assert list(rows(output)) == ["capture"]
    assert "same tokens" not in output


def test_generate_says_which_kernels_and_why(graphkit, model, runtime):
    on_device = runtime.name == "cuda"
    said = graphkit("generate", "--tokens", 2, "--no-compare").stdout
    fits = "fused, the default where they fit"
    assert f"kernels: {fits if on_device else 'simple, the default on the simulator'}" in said
    said = graphkit("generate", "--model", model, "--tokens", 2, "--no-compare").stdout
    assert "kernels: simple, " in said
    assert ("head_dim: expected a multiple of 8" in said) == on_device


def text_of(output):
    return output.partition("\n")[2].partition("\nbuild")[0]


@pytest.mark.parametrize("sampled", [(), ("--temperature", 0.8, "--seed", 3)])
def test_fused_kernels_write_the_same_text_in_every_build(graphkit, sampled):
    arguments = ("generate", "--prompt", "def f", "--tokens", 20, *sampled)
    simple = graphkit(*arguments, "--kernels", "simple", "--no-compare").stdout
    output = graphkit(*arguments, "--kernels", "fused").stdout
    assert "same tokens from all builds: yes" in output
    found = rows(output)
    assert list(found) == ["programmatic", "eager", "capture", "manual", "loop"]
    nodes = 5 * 5 + 2 + bool(sampled)
    assert found["capture"]["nodes"] == found["programmatic"]["nodes"] == str(nodes)
    assert found["loop"]["nodes"] == str(nodes + 3)  # both ends of the loop, and its condition
    assert found["programmatic"]["launches"] == "24"
    assert found["eager"]["launches"] == str(24 * nodes)
    assert found["loop"]["launches"] == "1"
    if not sampled:  # the last bit of a logit may decide what is drawn
        assert text_of(output) == text_of(simple)


def test_the_loop_on_the_device_writes_the_same_text(graphkit):
    arguments = ("generate", "--prompt", "import ", "--tokens", 12)
    host = graphkit(*arguments, "--kernels", "fused", "--no-compare").stdout
    device = graphkit(*arguments, "--loop", "device").stdout
    assert next(iter(rows(device))) == "loop"
    assert text_of(host) == text_of(device)
    assert "same tokens from all builds: yes" in device


def test_the_loop_ends_where_the_model_ends_its_text(graphkit, tmp_path):
    folder = tmp_path / "ends"
    shutil.copytree(llama.BUNDLED_MODEL, folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"eos_token_id": [300, ord("\n")]}))
    arguments = ("generate", "--model", folder, "--prompt", "def f(x", "--tokens", 40)
    outputs = [
        graphkit(*arguments, "--kernels", "fused", "--loop", loop).stdout
        for loop in ("host", "device")
    ]
    assert text_of(outputs[0]) == text_of(outputs[1])
    for output in outputs:
        assert "same tokens from all builds: yes" in output
        counts = {row["tokens"] for row in rows(output).values()}
        assert len(counts) == 1
        assert int(counts.pop()) < 40


def test_the_bundled_model_has_learnt_its_python(graphkit):
    output = graphkit("generate", "--prompt", "import ", "--tokens", 12, "--no-compare").stdout
    text = output.partition("import ")[2]
    module = text.split()[0]
    assert module.isidentifier()
    assert module in sys.stdlib_module_names


def test_generate_samples_the_same_from_the_same_seed(graphkit, model):
    def text(seed):
        arguments = ("--temperature", 1.5, "--top-p", 0.9, "--top-k", 100, "--seed", seed)
        output = graphkit("generate", "--model", model, "--tokens", 8, *arguments).stdout
        assert "same tokens from all builds: yes" in output
        return output

    assert text(1) == text(1) or gk.current().name == "cuda"  # there the times differ
    assert text(1).splitlines()[1] != text(2).splitlines()[1]


def test_control_characters_do_not_reach_the_terminal(graphkit, model):
    output = graphkit("generate", "--model", model, "--prompt", "a\x1b[2J\tb", "--tokens", 40)
    assert output.stdout.splitlines()[1].startswith("a\\x1b[2J\tb")
    assert "\x1b[2J" not in output.stdout


def test_builds_that_disagree_are_an_exit_status(graphkit, model, monkeypatch):
    whole = llama.generate

    def disagreeing(*args, **kwargs):
        for piece in whole(*args, **kwargs):
            if isinstance(piece, str):
                yield piece
            else:
                yield llama.Summary(piece.text, piece.prompt_tokens, piece.runs, False)

    monkeypatch.setattr(llama, "generate", disagreeing)
    output = graphkit("generate", "--model", model, "--tokens", 2, status=2).stdout
    assert "same tokens from all builds: no" in output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--prompt", ""), "--prompt: expected at least one token, came an empty prompt"),
        (("--prompt", "x" * 64), "prompt: expected at most 63 tokens"),
        (("--tokens", 0), "--tokens: expected 1 or more, came 0"),
        (("--tokens", 61), "tokens: expected at most 60 after a prompt of 4"),
        (("--temperature", -1, "--tokens", 4), "temperature: expected 0 or more"),
        (("--top-p", 2, "--tokens", 4), "--top-p: expected 0 to 1"),
        (("--kernels", "fused", "--tokens", 4), "head_dim: expected a multiple of 8"),
        (("--loop", "device", "--tokens", 4), "head_dim: expected a multiple of 8"),
        (("--loop", "device", "--kernels", "simple"), "loop: expected host with a build or"),
        (("--loop", "device", "--build", "manual"), "loop: expected host with a build or"),
        (
            ("--build", "programmatic", "--kernels", "simple", "--tokens", 4),
            "build: expected one of eager, capture, manual of the simple kernels",
        ),
        (("--loop", "device", "--prompt", "a", "--prompt", "b"), "loop: expected the default"),
        (("--kernels", "fused", "--prompt", "a", "--prompt", "b"), "kernels: expected the default"),
        (("--top-k", 2, "--prompt", "a", "--prompt", "b"), "--top-k: expected the default"),
        (
            ("--tokens", 4, "--prompt", "a", "--prompt", ""),
            "--prompt[1]: expected at least one token",
        ),
    ],
)
def test_generate_refuses_in_one_message(graphkit, model, arguments, says):
    result = graphkit("generate", "--model", model, *arguments, status=1)
    assert result.stderr.startswith("graphkit: error: ")
    assert says in result.stderr
    assert "Traceback" not in result.output


def test_a_bad_model_is_one_message(graphkit, tmp_path):
    result = graphkit("generate", "--model", tmp_path / "none", status=1)
    assert "expected a model folder" in result.stderr
    values = config(vocab_size=256)
    weights = tensors(values)
    del weights["model.norm.weight"]
    folder = write_model(tmp_path / "model", values, weights)
    result = graphkit("generate", "--model", folder, status=1)
    assert "model.norm.weight: expected shape (24,), it is missing" in result.stderr
    (folder / "config.json").write_text(json.dumps(values | {"architectures": ["GPT2"]}))
    result = graphkit("generate", "--model", folder, status=1)
    assert "architectures: expected ['LlamaForCausalLM'], came ['GPT2']" in result.stderr


def test_an_unknown_build_is_a_usage_error(graphkit):
    result = graphkit("generate", "--build", "fast", status=2)
    assert "'fast' is not one of" in result.stderr


# --- which runtime -------------------------------------------------------------------------------


def without_device(monkeypatch):
    use = gk.use

    def refusing(name, *args):
        if name == "cuda":
            raise RuntimeUnavailableError("no NVIDIA driver", "Try something else.")
        return use(name, *args)

    monkeypatch.setattr(gk, "use", refusing)


@pytest.mark.parametrize("command", ["generate", "info"])
def test_without_a_device_the_first_line_names_the_simulator(runtime, model, monkeypatch, command):
    without_device(monkeypatch)
    arguments = ["--model", str(model), "--tokens", "2"] if command == "generate" else []
    result = CliRunner().invoke(cli.app, [command, *arguments], env={"GRAPHKIT_RUNTIME": ""})
    assert result.exit_code == 0, result.output
    first = result.output.splitlines()[0]
    assert first.startswith("SIMULATOR: no CUDA device here")
    assert "no NVIDIA driver" in first


def test_cuda_is_never_replaced_when_it_was_asked_for(runtime, monkeypatch):
    without_device(monkeypatch)
    result = CliRunner().invoke(cli.app, ["info", "--runtime", "cuda"])
    assert result.exit_code == 1
    assert result.stderr.startswith("graphkit: error: no NVIDIA driver")


# --- info, bench, inspect ------------------------------------------------------------------------


def test_info(graphkit, runtime):
    output = graphkit("info").stdout
    assert gk.__version__ in output
    assert "conditional nodes" in output
    assert "compute capability" in output


def test_bench_lists_the_scripts_of_a_checkout(graphkit):
    output = graphkit("bench").stdout
    assert "launch_overhead" in output
    assert "provenance" not in output


def test_bench_runs_a_script_with_what_follows(graphkit, tmp_path, monkeypatch):
    bench = tmp_path / "bench"
    bench.mkdir()
    seen = tmp_path / "seen.json"
    (bench / "ask.py").write_text(
        '"""What is asked?"""\nimport json, pathlib, sys\n'
        'if __name__ == "__main__":\n'
        f"    pathlib.Path({str(seen)!r}).write_text(json.dumps(sys.argv[1:]))\n"
        "    sys.exit(3)\n"
    )
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "graphkit" / "cli.py"))
    assert "What is asked?" in graphkit("bench").stdout
    graphkit("bench", "ask", "--n", 5, status=3)
    assert json.loads(seen.read_text()) == ["--n", "5"]
    result = graphkit("bench", "other", status=1)
    assert "name: expected all or one of ask, came 'other'" in result.stderr


def test_bench_all_goes_on_and_says_at_the_end_which_did_not_run(graphkit, tmp_path, monkeypatch):
    bench = tmp_path / "bench"
    bench.mkdir()
    ran = tmp_path / "ran"
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "graphkit" / "cli.py"))

    def write(name, status, head=""):
        (bench / f"{name}.py").write_text(
            f'"""What?"""\n{head}\nimport sys\nif __name__ == "__main__":\n'
            f"    print({name!r}, *sys.argv[1:], file=open({str(ran)!r}, 'a'))\n"
            f"    sys.exit({status})\n"
        )

    write("a_needs_more", 2)
    write("helper", 1, head="\n# Not a benchmark: it draws.\n")
    assert "helper" not in graphkit("bench").stdout
    graphkit("bench", "all", status=2)  # nothing ran
    write("c_works", 0)
    output = graphkit("bench", "all", "--quick").stdout
    assert output.splitlines()[-1] == "did not run, as said above: a_needs_more"
    write("b_fails", 1)
    output = graphkit("bench", "all", status=1).stdout
    assert output.splitlines()[-1] == "failed: b_fails"
    assert ran.read_text().splitlines() == [
        "a_needs_more",
        *("a_needs_more --quick", "c_works --quick"),
        *("a_needs_more", "b_fails", "c_works"),
    ]


def test_bench_lists_no_script_that_measures_nothing(graphkit):
    listed = graphkit("bench").stdout.split()
    assert "decode" in listed
    assert not {"decode_join", "decode_picture"} & set(listed)


def test_bench_needs_a_checkout(graphkit, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "graphkit" / "cli.py"))
    assert "expected a checkout" in graphkit("bench", status=1).stderr


def test_inspect_shows_the_decode(graphkit):
    output = graphkit("inspect").stdout
    assert "75 nodes" in output
    assert "matvec_bfloat16" in output
    lines = [line.split() for line in output.splitlines() if line[:1].isdigit()][:-1]
    assert [line[:2] for line in lines] == [[str(n), "kernel"] for n in range(75)]
    assert lines[0][2] == "embedding_bfloat16"
    # q, k and v wait for the norm and for nothing else.
    assert [line[-1] for line in lines[2:5]] == ["1", "1", "1"]


def test_inspect_writes_dot(graphkit):
    output = graphkit("inspect", "--dot").stdout
    first, second, *_ = output.splitlines()
    assert first.startswith(("// SIMULATOR: as asked for", "// device:"))
    assert second.startswith("digraph")


def test_inspect_dot_without_a_device_says_so_in_a_comment(runtime, monkeypatch):
    without_device(monkeypatch)
    result = CliRunner().invoke(cli.app, ["inspect", "--dot"], env={"GRAPHKIT_RUNTIME": ""})
    assert result.stdout.startswith("// SIMULATOR")


@pytest.fixture
def graphs(tmp_path):
    path = tmp_path / "graphs.py"
    path.write_text(
        "import graphkit as gk\n"
        "def empty():\n"
        "    graph = gk.Graph()\n"
        "    first = graph.add_empty_node()\n"
        "    graph.add_empty_node(deps=[first])\n"
        "    return graph\n"
        "def captured(stream):\n"
        "    stream.launch_host_func(print)\n"
        "def number():\n"
        "    return 3\n"
        "def failing():\n"
        "    error = ValueError('no graph today')\n"
        "    error.add_note('it is Sunday')\n"
        "    raise error\n"
        "def nested():\n"
        "    child = empty()\n"
        "    graph = gk.Graph()\n"
        "    handle = graph.conditional_handle(default=1)\n"
        "    with graph.if_(handle, else_=True) as (then, otherwise):\n"
        "        then.add_empty_node()\n"
        "        otherwise.add_child_graph_node(child)\n"
        "    handle = graph.conditional_handle(default=0)\n"
        "    with graph.while_(handle) as body:\n"
        "        body.add_empty_node()\n"
        "    return graph\n"
    )
    return path


def test_inspect_a_function_that_returns_a_graph(graphkit, graphs):
    output = graphkit("inspect", f"{graphs}:empty").stdout
    assert "2 nodes, 1 edge (0 programmatic *)" in output


def test_inspect_lists_the_nodes_inside_of_nodes(graphkit, graphs):
    lines = [line.split() for line in graphkit("inspect", f"{graphs}:nested").stdout.splitlines()]
    nodes = [(line[0], line[1], line[2:]) for line in lines[2:-1]]
    assert nodes == [
        ("0", "if", []),
        ("0.then.0", "empty", []),
        ("0.else.0", "graph", []),
        ("0.else.0.0", "empty", []),
        ("0.else.0.1", "empty", ["0"]),
        ("1", "while", []),
        ("1.0", "empty", []),
    ]
    assert " ".join(lines[-1]) == "7 nodes, 1 edge (0 programmatic *)"


def test_an_error_is_printed_with_its_notes(graphkit, graphs):
    result = graphkit("inspect", f"{graphs}:failing", status=1)
    assert result.stderr == "graphkit: error: no graph today\nit is Sunday\n"


def test_inspect_a_module(graphkit, graphs, monkeypatch):
    monkeypatch.syspath_prepend(graphs.parent)
    monkeypatch.delitem(sys.modules, "graphs", raising=False)
    assert "2 nodes" in graphkit("inspect", "graphs:empty").stdout


def test_inspect_captures_a_function_that_takes_a_stream(graphkit, graphs):
    output = graphkit("inspect", f"{graphs}:captured").stdout
    assert "host" in output
    assert "1 node, 0 edges" in output


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("nothing", "expected module:function or FILE.py:function"),
        ("{graphs}:missing", "expected a function 'missing'"),
        ("{graphs}:number", "expected a function that returns a graphkit.Graph, came int"),
        ("no_such_module_here:f", "No module named"),
        ("/no/such/file.py:f", "No such file"),
    ],
)
def test_inspect_refuses_in_one_message(graphkit, graphs, target, says):
    result = graphkit("inspect", target.format(graphs=graphs), status=1)
    assert says in result.stderr


# --- as a process --------------------------------------------------------------------------------


def test_the_command_is_installed_and_streams(runtime, model):
    environment = os.environ | {"GRAPHKIT_RUNTIME": runtime.name}
    command = [sys.executable, "-m", "graphkit.cli", "generate", "--model", str(model)]
    done = subprocess.run(
        [*command, "--tokens", "3"], env=environment, capture_output=True, timeout=120, check=True
    )
    assert b"same tokens from all builds: yes" in done.stdout
    assert done.stderr == b""


def test_a_reader_that_leaves_early_causes_no_traceback(runtime, model):
    environment = os.environ | {"GRAPHKIT_RUNTIME": runtime.name, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "graphkit.cli", "generate", "--model", str(model)]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.read(10)
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


def test_importing_the_command_line_imports_no_kernels():
    code = "import sys, graphkit.cli; print([m for m in sys.modules if 'graphkit.kernels' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"


def test_nothing_of_the_decode_is_left_behind(graphkit, model):
    graphkit("generate", "--model", model, "--tokens", 2)
    # The fixture checks the handles; the arrays of the model must be gone as well.
    assert np.sum([1 for kind in gk.live_handles() if kind == "device memory"]) == 0
    assert Path(model).is_dir()


def test_a_stdout_that_was_closed_before_is_no_error():
    command = f"{sys.executable} -m graphkit.cli generate --runtime sim --tokens 1 --no-compare >&-"
    done = subprocess.run(command, shell=True, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
