"""The command line: ``graphkit info | generate | bench | inspect | pool``."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect as inspection
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from graphkit.counts import counted
from graphkit.errors import GraphkitError, RuntimeUnavailableError

__all__ = ["app"]

app = typer.Typer(
    help="CUDA Graphs for Python pipelines that change.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class RuntimeChoice(StrEnum):
    """Which runtime a command uses."""

    AUTO = "auto"
    CUDA = "cuda"
    SIM = "sim"


class BuildChoice(StrEnum):
    """How a decode step is made."""

    EAGER = "eager"
    CAPTURE = "capture"
    MANUAL = "manual"
    PROGRAMMATIC = "programmatic"


class KernelsChoice(StrEnum):
    """Which kernels a decode step is made of."""

    SIMPLE = "simple"
    FUSED = "fused"


class LoopChoice(StrEnum):
    """Who launches the next decode step."""

    HOST = "host"
    DEVICE = "device"


RuntimeOption = Annotated[
    RuntimeChoice,
    typer.Option(
        "--runtime",
        envvar="GRAPHKIT_RUNTIME",
        help="auto: the device, or the simulator where there is none.",
    ),
]


@contextmanager
def _clear_errors(context: typer.Context | None = None) -> Iterator[None]:
    """Print an expected error as its message and notes alone, and exit with status 1.

    With the context of a command, an argument of its name is called as the option is.
    """
    try:
        yield
    except BrokenPipeError:
        # The reader of the text has seen enough; Python would complain again at exit.
        sys.stdout = None
        raise typer.Exit(0) from None
    except (GraphkitError, ValueError, TypeError, OSError, ImportError) as error:
        if sys.stdout is not None:  # it was closed before we began
            sys.stdout.flush()
        message = str(error) if context is None else _name_option(str(error), context)
        text = "\n".join([message, *getattr(error, "__notes__", ())])
        typer.echo(f"graphkit: error: {_printable(text)}", err=True)
        raise typer.Exit(1) from None


def _name_option(message: str, context: typer.Context) -> str:
    """Return a message about an argument as one about the option that it was given by."""
    argument = re.match(r"(\w+)(?=(\[\d+\])?: )", message)
    for option in context.command.params:
        # An option that is repeated, such as --prompt, is an argument in the plural.
        if argument and argument[1] in (option.name, f"{option.name}s"):
            return f"{option.opts[0]}{message[argument.end() :]}"
    return message


def _choose_runtime(choice: RuntimeChoice, say: Callable[[str], None] = typer.echo) -> Any:
    """Make a runtime the current one; say in the first line when it is the simulator."""
    import graphkit as gk

    why = "as asked for"
    if choice is not RuntimeChoice.SIM:
        try:
            runtime = gk.use("cuda")
        except RuntimeUnavailableError as error:
            if choice is RuntimeChoice.CUDA:
                raise
            why = f"no CUDA device here ({error.reason})"
        else:
            say(f"device: {runtime.get_device_name(runtime.get_device())}")
            return runtime
    say(f"SIMULATOR: {why}, NumPy runs the kernels")
    return gk.use("sim")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    return table


def _printable(text: str) -> str:
    """Make control characters visible: a model or a file may hold those that steer a terminal."""
    return "".join(
        char if char in "\n\t" or char.isprintable() else f"\\x{ord(char):02x}" for char in text
    )


@app.command()
def info(runtime: RuntimeOption = RuntimeChoice.AUTO) -> None:
    """Show the runtime, the versions, and what the driver can do."""
    with _clear_errors():
        chosen = _choose_runtime(runtime)
        import graphkit as gk
        from graphkit.runtime import probe

        table = _table("", "")
        table.show_header = False
        table.columns[1].justify = "left"
        table.add_row("graphkit", gk.__version__)
        table.add_row("python", sys.version.split()[0])
        capabilities: Any = probe(chosen)
        for name, value in vars(capabilities).items():
            table.add_row(name.replace("_", " "), _show(value))
        Console(highlight=False).print(table)


def _show(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ".".join(map(str, value))  # a version or a compute capability
    return "-" if value is None else str(value)


@app.command()
def generate(
    context: typer.Context,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="The text to continue; repeated, the texts are served at once through an exec "
            "pool.",
            show_default="def ",
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(help="How many tokens to append.")] = 64,
    build: Annotated[
        BuildChoice | None,
        typer.Option(
            help="How the decode step is made that writes the text; programmatic edges need the "
            "fused kernels.",
            show_default="capture, or programmatic with the fused kernels",
        ),
    ] = None,
    kernels: Annotated[
        KernelsChoice | None,
        typer.Option(
            help="simple: one for each operation, for any model; fused: a few for each layer, for "
            "bfloat16 and compute capability 9.0 or more.",
            show_default="fused on a device that they fit, else simple",
        ),
    ] = None,
    loop: Annotated[
        LoopChoice,
        typer.Option(
            help="host: a launch for each token; device: one launch for the whole text, of a graph "
            "with a loop in it, of the fused kernels."
        ),
    ] = LoopChoice.HOST,
    model: Annotated[
        Path | None,
        typer.Option(help="A Llama in Hugging Face format; the bundled one by default."),
    ] = None,
    temperature: Annotated[
        float, typer.Option(help="0 takes the most likely token; above, tokens are drawn.")
    ] = 0.0,
    top_k: Annotated[int, typer.Option(help="Draw among so many tokens; 0 means all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw among this share of probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    compare: Annotated[
        bool, typer.Option(help="Run the other builds too, and compare their tokens.")
    ] = True,
    runtime: RuntimeOption = RuntimeChoice.AUTO,
) -> None:
    """Let a Llama write text, one graph launch per token or one for all; compare the ways."""
    with _clear_errors(context):
        chosen = _choose_runtime(runtime)
        # The only place that knows of the kernels: graphkit itself never imports them.
        from graphkit.kernels import llama

        model = llama.BUNDLED_MODEL if model is None else model
        prompts = prompt or ["def "]
        if len(prompts) > 1:
            for what, refused in (
                ("build", build not in (None, BuildChoice.CAPTURE)),
                ("kernels", kernels is KernelsChoice.FUSED),
                ("loop", loop is not LoopChoice.HOST),
                ("temperature", temperature != 0.0),
                ("seed", seed != 0),
                ("top_k", top_k != 0),
                ("top_p", top_p != 1.0),
            ):
                if refused:
                    raise ValueError(
                        f"{what}: expected the default with several prompts, since they are "
                        "captured, of simple kernels, and take the likeliest tokens"
                    )
            _serve(model, prompts, tokens, compare)
            return
        on_device = chosen.name == "cuda"
        text = prompts[0]
        pieces = llama.generate(
            model,
            text,
            tokens,
            build=build and build.value,
            kernels=kernels and kernels.value,
            loop=loop.value,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            compare=compare,
            timed=on_device,
        )
        typer.echo(_printable(text), nl=False)
        summary: Any = None
        for piece in pieces:
            if isinstance(piece, str):
                typer.echo(_printable(piece), nl=False)  # and flush it
            else:
                summary = piece
        typer.echo("\n")
        table = _table("build", "nodes", "launches", "tokens", *(["ms/token"] if on_device else []))
        for run in summary.runs:
            times = [f"{run.ms_per_token:.3f}"] if on_device else []
            nodes = str(run.nodes) if run.nodes else "-"
            table.add_row(run.build, nodes, str(run.launches), str(len(run.tokens)), *times)
        Console(highlight=False).print(table)
        typer.echo(f"kernels: {_printable(summary.kernels)}")
        if summary.same_tokens is not None:
            verdict = "yes" if summary.same_tokens else "no"
            typer.echo(f"same tokens from all builds: {verdict}")
        if summary.same_tokens is False:
            raise typer.Exit(2)


def _serve(model: Path, prompts: list[str], tokens: int, compare: bool) -> None:
    """Let the model continue several texts at once, and show what the exec pool did."""
    import graphkit as gk
    from graphkit.kernels import llama
    from graphkit.pool_table import stats_table

    stats: list[gk.PoolStats] = []

    @contextmanager
    def pooled(decoder: Any) -> Iterator[gk.ExecPool]:
        batch = gk.Buckets.powers_of_two(decoder.max_batch)
        names = ("tokens", "positions", "slots", "next_tokens")
        with gk.ExecPool(
            decoder.step,
            dict.fromkeys(names, batch),
            outputs=["next_tokens"],
            fill=decoder.padding,
        ) as pool:
            yield pool
            stats.append(pool.stats())

    served = llama.serve(model, prompts, tokens, prepare=pooled, compare=compare)
    table = _table("prompt", "tokens", "finished", "steps")
    same: list[bool | None] = []
    for item in served:
        if not isinstance(item, llama.Served):
            continue  # pieces of several texts would be told apart by nobody
        typer.echo(_printable(prompts[item.prompt] + item.text) + "\n")
        steps = f"{item.steps.start} to {item.steps.stop - 1}"
        table.add_row(str(item.prompt), str(len(item.tokens)), item.finished, steps)
        same.append(item.same_tokens)
    console = Console(highlight=False)
    console.print(table)
    console.print()
    console.print(stats_table(stats[0]))
    if compare:
        typer.echo(f"same tokens as each prompt alone: {'yes' if all(same) else 'no'}")
        if not all(same):
            raise typer.Exit(2)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(help="The script to run, or all of them; what follows goes to it."),
    ] = None,
) -> None:
    """List the benchmarks of a checkout, or run one, or all."""
    with _clear_errors():
        scripts = _benchmarks(Path(__file__).parent.parent / "bench")
        if name is None:
            table = _table("benchmark", "question")
            table.columns[1].justify = "left"
            for stem, path in scripts.items():
                docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
                table.add_row(stem, docstring.partition("\n")[0])
            Console(highlight=False).print(table)
            return
        if name == "all":
            raise typer.Exit(_run_all(scripts, context.args))
        if name not in scripts:
            raise ValueError(f"name: expected all or one of {', '.join(scripts)}, came {name!r}")
        raise typer.Exit(_run(scripts[name], context.args))


def _run(script: Path, arguments: list[str]) -> int:
    return subprocess.run([sys.executable, str(script), *arguments], check=False).returncode


def _run_all(scripts: dict[str, Path], arguments: list[str]) -> int:
    """Run the scripts one by one, whatever becomes of each; return the status of all.

    A script returns 2 when it lacks what it measures with: a device, or PyTorch. It says so itself.
    """
    statuses: dict[str, int] = {}
    for name, script in scripts.items():
        typer.echo(f"{name}:")
        statuses[name] = _run(script, arguments)
    absent = [name for name, status in statuses.items() if status == 2]
    failed = [name for name, status in statuses.items() if status not in (0, 2)]
    for names, what in ((absent, "did not run, as said above"), (failed, "failed")):
        if names:
            typer.echo(f"{what}: {', '.join(names)}")
    if failed:
        return 1
    return 2 if len(absent) == len(scripts) else 0


def _benchmarks(folder: Path) -> dict[str, Path]:
    """Return the scripts of bench/ by name, without what they share and what reads results only."""
    scripts = {}
    for path in sorted(folder.glob("*.py")):
        text = path.read_text()
        if '__name__ == "__main__"' in text and "\n# Not a benchmark:" not in text:
            scripts[path.stem] = path
    if not scripts:
        raise ValueError(
            "bench: expected a checkout of graphkit with a folder bench/, came an installed "
            "package; the benchmarks are not part of it"
        )
    return scripts


@app.command()
def inspect(
    target: Annotated[
        str | None,
        typer.Argument(
            help="module:function or FILE.py:function. Without a parameter it must return a "
            "graphkit.Graph; with one it is captured and given the stream. By default the decode "
            "step of the bundled model."
        ),
    ] = None,
    dot: Annotated[bool, typer.Option("--dot", help="Print Graphviz text instead.")] = False,
    runtime: RuntimeOption = RuntimeChoice.AUTO,
) -> None:
    """Show the nodes of a graph, those inside of others too, and what each waits for."""
    with _clear_errors():
        # Graphviz text is a language of its own: what is said there must be a comment in it.
        say = _say_in_dot if dot else typer.echo
        _choose_runtime(runtime, say=say)
        graph = _decode_graph() if target is None else _graph_of(_load_function(target))
        if dot:
            typer.echo(graph.dot())
            return
        _print_nodes(graph)


def _say_in_dot(line: str) -> None:
    typer.echo(f"// {line}")


def _decode_graph() -> Any:
    from graphkit.kernels import llama

    checkpoint = llama.Checkpoint.load(llama.BUNDLED_MODEL)
    return llama.Decoder(checkpoint).build("manual").graph


def _load_function(target: str) -> Callable[..., Any]:
    place, _, name = target.rpartition(":")
    if not place or not name:
        raise ValueError(f"target: expected module:function or FILE.py:function, came {target!r}")
    if place.endswith(".py"):
        spec = importlib.util.spec_from_file_location(Path(place).stem, place)
        if spec is None or spec.loader is None:
            raise ValueError(f"target: expected a Python file, came {place!r}")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(place)
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"target: expected a function {name!r} in {place}, there is none")
    found: Callable[..., Any] = function
    return found


def _graph_of(function: Callable[..., Any]) -> Any:
    import graphkit as gk

    if inspection.signature(function).parameters:
        stream = gk.Stream()
        with gk.capture(stream) as graph:
            function(stream)
        return graph
    made = function()
    if not isinstance(made, gk.Graph):
        came = type(made).__name__
        raise TypeError(f"target: expected a function that returns a graphkit.Graph, came {came}")
    return made


def _print_nodes(graph: Any) -> None:
    table = _table("node", "type", "kernel", "grid", "block", "shared", "after")
    for column in (1, 2, 6):
        table.columns[column].justify = "left"
    nodes, edges, programmatic = _add_rows(table, graph, "")
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"{counted(nodes, 'node')}, {counted(edges, 'edge')} ({programmatic} programmatic *)"
    )


def _add_rows(table: Table, graph: Any, place: str) -> tuple[int, int, int]:
    """Add a graph's nodes, and behind each those inside of it; count nodes and edges of all."""
    number = {node: index for index, node in enumerate(graph.nodes)}
    edges = graph.edges
    waits: dict[int, list[str]] = {index: [] for index in number.values()}
    for edge in edges:
        mark = "*" if edge.programmatic else ""
        waits[number[edge.to_node]].append(f"{number[edge.from_node]}{mark}")
    counts = len(number), len(edges), sum(edge.programmatic for edge in edges)
    for node, index in number.items():
        values = graph.values(node)
        kernel = hasattr(values, "grid")
        conditional = graph.conditionals.nodes.get(node.ptr)
        table.add_row(
            f"{place}{index}",
            (node if conditional is None else conditional).type.name.lower(),
            values.name if kernel else "",
            "x".join(map(str, values.grid)) if kernel else "",
            "x".join(map(str, values.block)) if kernel else "",
            str(values.shared_mem) if kernel else "",
            " ".join(waits[index]),
        )
        for name, inner in _inside(graph, node, conditional):
            below = _add_rows(table, inner, f"{place}{index}.{name}")
            counts = counts[0] + below[0], counts[1] + below[1], counts[2] + below[2]
    return counts


def _inside(graph: Any, node: Any, conditional: Any) -> Iterator[tuple[str, Any]]:
    """Yield the graphs inside of a node, with what their nodes' places begin with."""
    if node.type.name == "GRAPH":
        yield "", graph.child_graph(node)
    elif conditional is not None:
        for index, body in enumerate(conditional.bodies):
            several = len(conditional.bodies) > 1
            yield (f"{conditional.body_name(index)}.".replace(" ", "") if several else ""), body


@app.command()
def pool(
    manifest: Annotated[Path, typer.Argument(help="The file that ExecPool.save_manifest wrote.")],
) -> None:
    """Show the keys of an exec pool's manifest, the most valuable first."""
    with _clear_errors():
        from graphkit.pool_manifest import Manifest
        from graphkit.pool_table import manifest_table

        Console(highlight=False).print(manifest_table(Manifest.load(manifest)))


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
