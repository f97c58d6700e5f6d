"""Every part of the benchmark suite on this machine: tables for docs/benchmarks.md, and where an alternative wins.

    python benchmarks/suite.py --md docs/benchmarks.md --json suite.json
    python benchmarks/suite.py --only engines --only subsets --quick --md quick.md --json quick.json

Each part runs in processes of its own, with as many threads as its title says; inside a part all contestants take
turns. Results are kept in the JSON file: with --only, the parts that were not run stay as they were there. The
Markdown is made of that file alone and put between two marker lines of FILE, at its end where it has none. Without
--run, weights are random: time does not depend on them but through the experts that they choose. About half an hour
on two cores that have nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import Part, as_markdown, losses_markdown, machine_line, note, part_from, run_json, tables_from, today

from mars_edge.errors import MarsEdgeError, UsageError
from mars_edge.options import OneLineParser

BEGIN = "<!-- benchmarks/suite.py writes what is between these lines -->"
END = "<!-- end of what benchmarks/suite.py writes -->"
_SCHEMA = 1
_FLAGS = {"work": "--work", "run": "--run", "litert": "--litert-python"}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One script's run: its options, those of a quick run, and its threads."""

    script: str
    options: Sequence[str]
    quick: Sequence[str]
    threads: int = 1
    takes: Sequence[str] = ("work", "run", "litert")
    """Which of --work, --run and --litert-python it is given."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A part of the suite: what it is called in --only, in the document, and what it runs."""

    name: str
    title: str
    steps: Sequence[Step]
    notes: Sequence[str] = ()


def _engine_steps(*more: str, rounds: int = 80) -> list[Step]:
    """Its processes, one per number of threads, take turns."""
    both = [*more, "--threads", "1", "2", "--rounds"]
    return [Step(script="engines.py", options=[*both, str(rounds)], quick=[*both, "10"])]


PLANS = (
    Plan(
        name="engines",
        title="One decision in every engine",
        steps=_engine_steps(),
        notes=[
            "From preprocessed pictures to logits, batch of 1, same weights, same samples; an engine whose answers "
            "differ is not timed. Dense: one graph, everything is computed, what is missing is masked. Gathered: one "
            "graph that gathers the weights of the chosen experts. Skipping: only encoders and experts that matter. "
            "A turn is three calls that do not count and one that does, 2 ms apart, while other pools sleep. Pools are "
            "as they are installed, but OpenMP's (PyTorch's) spins for 0.5 ms. Each number of threads has a process of "
            "its own; the two take turns round by round.",
        ],
    ),
    Plan(
        name="subsets",
        title="The same with sensors missing",
        steps=_engine_steps("--what", "subsets", rounds=50),
        notes=["Mean over the subsets of a size. A dense graph gets zeros and a mask for what is missing."],
    ),
    Plan(
        name="sizes",
        title="The paper's network and the edge network",
        steps=[
            Step(
                script="engines.py",
                options=["--what", "sizes", "--network", network, "--fp32-only", "--rounds", rounds],
                quick=["--what", "sizes", "--network", network, "--fp32-only", "--rounds", "3"],
                takes=("work", "litert"),
            )
            for network, rounds in (("casia_surf", "20"), ("face_antispoof", "100"))
        ],
        notes=[
            "Random weights, pictures of 112 x 112; each network in a process of its own. The paper's has 16 experts "
            "of which 5 run, residual stages that no graph can gather."
        ],
    ),
    Plan(
        name="footprint",
        title="Start-up, memory and size",
        steps=[Step(script="footprint.py", options=["--rounds", "5"], quick=["--rounds", "1"])],
        notes=[
            "A fresh process: imports, load, one decision. Size is that of the installed packages with all that they "
            "require; ours holds training and export code too."
        ],
    ),
    Plan(
        name="streaming",
        title="Three cameras at 30 frames per second",
        steps=[
            Step(
                script="streaming.py",
                options=["--rounds", "8", "--seconds", "5"],
                quick=["--rounds", "1", "--seconds", "1"],
            )
        ],
        notes=[
            "The age is from the moment at which the oldest picture used was due at its camera to the decision in the "
            "application's hands: its wait for the decision's turn, the capture thread's waking, making it small, the "
            "network. Not in it: exposure, transfer and decoding; pictures of 640 x 480 are rendered in advance. The "
            "wait is most of it. Cameras' clocks run free, faster apart than real ones, so that every run meets all "
            "phases, the same ones for all contestants of a round. With no work at all the median would be 23.6 ms "
            "for who decides when the first camera has a picture, as those without a pace in their name do, and 26.5 "
            "ms at a fixed rate. On the newest sample: at most 30 times a second. On all cameras: share of decisions "
            "on three pictures; a camera that is masked is in no age. Only ours looks at the health of its sensors. "
            "MediaPipe cannot host the job: its wheels hold finished tasks, not its graphs."
        ],
    ),
    Plan(
        name="scaling",
        title="More modalities, experts and faces",
        steps=[
            Step(
                script="scaling.py",
                options=["--threads", str(threads), "--rounds", "50"],
                quick=["--threads", str(threads), "--rounds", "3"],
                threads=threads,
                takes=("work",),
            )
            for threads in (1, 2)
        ],
        notes=[
            "The edge network with random weights, fp32, everything present. Several faces are one batch for the dense "
            "graph, one decision after another for the others."
        ],
    ),
)
PARTS = {plan.name: plan for plan in PLANS}


def run_part(plan: Plan, options: argparse.Namespace, work: Path, command: str) -> Part:
    """All steps of a part, one after another.

    Raises:
        UsageError: a script failed.
    """
    machine, tables = machine_line(), []
    for step in plan.steps:
        arguments = list(step.quick if options.quick else step.options)
        given = {"work": work, "run": options.run, "litert": options.litert_python}
        for name in step.takes:
            arguments += [_FLAGS[name], str(given[name])] if given[name] else []
        tables += tables_from(run_json(step.script, arguments, threads=step.threads))
    return Part(
        name=plan.name,
        title=plan.title,
        command=command,
        machine=machine,
        date=today(),
        quick=options.quick,
        notes=plan.notes,
        tables=tables,
    )


def run_all(options: argparse.Namespace, command: str, keep: Callable[[Part], None]) -> None:
    """Every part that was asked for, each kept as soon as it is there."""
    chosen = [PARTS[name] for name in PARTS if not options.only or name in options.only]
    with tempfile.TemporaryDirectory(prefix="mars-edge-") as folder:
        for number, plan in enumerate(chosen, 1):
            note(f"[{number}/{len(chosen)}] {plan.name}")
            began_s = time.monotonic()
            keep(run_part(plan, options, Path(folder), command))
            note(f"[{number}/{len(chosen)}] {plan.name}: {time.monotonic() - began_s:.0f} s")


def load(path: Path) -> dict[str, Part]:
    """The parts that a results file holds; none where there is no file.

    Raises:
        UsageError: it is no results file of this suite.
    """
    if not path.exists():
        return {}
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if found["schema"] != _SCHEMA:
            raise ValueError(f"schema {found['schema']}, expected {_SCHEMA}")
        return {part["name"]: part_from(part) for part in found["parts"]}
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is no results file of this suite: {error!r}") from None


def save(path: Path, parts: dict[str, Part]) -> None:
    """Writes the parts in the order of the suite."""
    ordered = [parts[name].to_dict() for name in PARTS if name in parts]
    _replace(path, json.dumps({"schema": _SCHEMA, "parts": ordered}, indent=1) + "\n")


def document(parts: Sequence[Part], before: str) -> str:
    """`before` with the parts' tables between the markers, which are put at its end where it has none.

    Raises:
        UsageError: one marker is there without the other, or they stand in the wrong order.
    """
    body = "\n".join([BEGIN, "", *(as_markdown(part) for part in parts), losses_markdown(parts), END])
    if BEGIN not in before and END not in before:
        return f"{before.rstrip()}\n\n{body}\n".lstrip()
    head, begin, rest = before.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise UsageError(f"the document needs both markers, in this order: {BEGIN!r} and {END!r}")
    return f"{head}{body}{tail}"


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.tmp")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="benchmarks/suite.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python benchmarks/suite.py --only engines --quick --md quick.md --json quick.json",
    )
    add = parser.add_argument
    add("--only", action="append", choices=list(PARTS), metavar="NAME", help=f"may repeat; {', '.join(PARTS)}")
    add("--quick", action="store_true", help="a few rounds, to see that it works; the tables say so")
    add("--run", type=Path, metavar="DIR", help="weights of this run of face_antispoof.toml, in place of random ones")
    add("--litert-python", type=Path, metavar="FILE", help="see benchmarks/to_litert.py")
    add("--md", type=Path, required=True, metavar="FILE", help="document that gets the tables")
    add("--json", type=Path, required=True, metavar="FILE", help="results; parts that are not run are kept")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run, and write both files after every part."""
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        options = _parser().parse_args(given)
        parts = load(options.json)
        before = options.md.read_text(encoding="utf-8") if options.md.exists() else ""
        document([], before)

        def keep(part: Part) -> None:
            parts[part.name] = part
            save(options.json, parts)
            _replace(options.md, document([parts[name] for name in PARTS if name in parts], before))

        run_all(options, " ".join(["python benchmarks/suite.py", *given]), keep)
    except MarsEdgeError as error:
        print(f"suite: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
