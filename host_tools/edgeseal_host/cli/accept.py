"""`edgeseal accept`: acceptance vectors, recorded on the workstation and held against the model on every device."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from edgeseal.errors import UsageError
from edgeseal_host import accept
from edgeseal_host.cli import output
from edgeseal_host.sources import collect


@click.group()
def group() -> None:
    """Record what a model must answer on every device."""


@group.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option(
    "--inputs",
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Samples: .npz with inputs/<name>, one case per entry of the first axis, or .json. Outputs are replaced.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The .json to write.")
@click.option("--atol", type=click.FloatRange(min=0), help="Absolute tolerance (0.0001).")
@click.option("--rtol", type=click.FloatRange(min=0), help="Relative tolerance (0.001).")
@click.option("--top1", is_flag=True, default=None, help="Hold only the index of the largest value against it.")
@click.option("--warmup", type=click.IntRange(0, 1000), help="Inferences before the latency counts (0).")
@click.option("--latency-ms", type=click.FloatRange(min=0), help="Most that the median inference may take there.")
@click.option("--memory-mb", type=click.IntRange(min=0), help="Most MiB that loading and answering may take there.")
@output.json_option
def record(paths: tuple[Path, ...], inputs: Path, out: Path, **settings: float | bool | None) -> None:
    """Run the model in PATHS (as for `bundle build`) on samples and write what it answers.

    Give the file to `bundle build --accept`: a device serves the release only if it reproduces these answers.
    """
    if out.suffix != ".json":
        raise UsageError(f"--out is {out.name}; vectors are written as .json")
    cases, given = accept.read_cases(inputs)
    chosen = {name: value for name, value in settings.items() if value is not None}
    with tempfile.TemporaryDirectory(prefix="edgeseal-accept-") as directory:
        accept.lay_out(collect(paths), Path(directory))
        vectors = accept.record(Path(directory), cases, {**given, **chosen})
    accept.write(vectors, out)
    about = accept.describe(accept.to_table(vectors))
    output.emit({"out": str(out), "acceptance": about}, f"recorded {len(vectors.cases)} cases in {out}")
