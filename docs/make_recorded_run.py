"""A run of the simulated rig with a fault: recorded, made again bit for bit, and decided anew by a stricter policy.

    python docs/make_recorded_run.py -o recorded

Prints the commands with their answers and both streams of decisions next to each other, as Markdown, and leaves the
recording and the streams in the folder. It fails where the replay differs by a bit, where a stricter policy decided
what the model's own did not, or where it changed nothing.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

FAULT = "depth=off@1s+2s"
SECONDS = "6"
STRICTER = ("--require", "depth", "--latch", "1")

Decisions = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One decision by both policies."""

    at_s: float
    missing: str
    recorded: str
    replayed: str

    def what(self) -> tuple[str, str, str]:
        """All but its time."""
        return self.missing, self.recorded, self.replayed


def main() -> int:
    """Writes run.mcap, recorded.jsonl and replayed.jsonl; 0, or 2 for a folder that exists."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="face_antispoof.pte", metavar="FILE", help="default: the bundled one")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="a new folder")
    options = parser.parse_args()
    if options.output.exists():
        print(f"make_recorded_run: {options.output} exists already; give a new folder", file=sys.stderr)
        return 2
    options.output.mkdir(parents=True)
    print(document(options.model, options.output))
    return 0


def document(model: str, folder: Path) -> str:
    """Record, verify and decide anew; the text of it.

    Raises:
        RuntimeError: a command failed, or the decisions are not what a recording promises.
    """
    run = ["run", "--model", model, "--record", "run.mcap", "--inject", FAULT, "--max-seconds", SECONDS, "--quiet"]
    verify = ["replay", "run.mcap", "--model", model, "--verify"]
    anew = ["replay", "run.mcap", "--model", model, "--fast", *STRICTER]
    recorded = decisions(ask(run, folder, keep="recorded.jsonl"))
    said = ask(verify, folder)
    replayed = decisions(ask(anew, folder, keep="replayed.jsonl"))
    check(json.loads(said), recorded, replayed)
    commands = [shown(run, "recorded.jsonl"), f"{shown(verify)}\n{said.strip()}", shown(anew, "replayed.jsonl")]
    return "\n".join(["```console", *commands, "```", "", table(recorded, replayed)])


def ask(arguments: Sequence[str], folder: Path, *, keep: str | None = None) -> str:
    """What a command of mars-edge prints, also as the file `keep`."""
    command = [sys.executable, "-m", "mars_edge", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        raise RuntimeError(f"mars-edge {arguments[0]}: exit code {done.returncode}: {done.stderr.strip()}")
    if keep is not None:
        (folder / keep).write_text(done.stdout)
    return done.stdout


def decisions(text: str) -> Decisions:
    """The lines of `run` or `replay`."""
    return [json.loads(line) for line in text.splitlines()]


def shown(arguments: Sequence[str], into: str | None = None) -> str:
    """A command as somebody types it."""
    return f"$ mars-edge {shlex.join(arguments)}{f' > {into}' if into else ''}"


def check(verified: dict[str, Any], recorded: Decisions, replayed: Decisions) -> None:
    """What must hold of a run decided anew by a stricter policy.

    Raises:
        RuntimeError: it does not.
    """
    if verified["equal"] != verified["decisions"] or verified["decisions"] != len(recorded):
        raise RuntimeError(f"{len(recorded)} decisions were printed, the replay says {verified}")
    if [one["seq"] for one in recorded] != [one["seq"] for one in replayed]:
        raise RuntimeError(f"{len(recorded)} decisions were recorded, {len(replayed)} made anew")
    for old, new in zip(recorded, replayed, strict=True):
        if old["modalities"] != new["modalities"]:
            raise RuntimeError(f"decision {old['seq']}: a policy changed what is known of the sensors")
        if new["verdict"] not in ("abstain", old["verdict"]):
            raise RuntimeError(f"decision {old['seq']}: was {old['verdict']}, by a stricter policy {new['verdict']}")
    if all(old["verdict"] == new["verdict"] for old, new in zip(recorded, replayed, strict=True)):
        raise RuntimeError("the stricter policy changed no decision: the fault was not seen")


def table(recorded: Decisions, replayed: Decisions) -> str:
    """Both streams as Markdown: one line per stretch in which nothing changed."""
    begin_s = seconds(recorded[0])
    rows = [
        Row(at_s=seconds(old) - begin_s, missing=missing(old), recorded=answer(old), replayed=answer(new))
        for old, new in zip(recorded, replayed, strict=True)
    ]
    lines = [
        f"| from s | decisions | missing | as recorded | `{' '.join(STRICTER)}` |",
        "|---:|---:|---|---|---|",
    ]
    for _, group in groupby(rows, key=Row.what):
        same = list(group)
        first = same[0]
        cells = (f"{first.at_s:.2f}", str(len(same)), first.missing, first.recorded, first.replayed)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def seconds(decision: dict[str, Any]) -> float:
    """The wall clock at a decision."""
    return datetime.fromisoformat(decision["t_utc"]).timestamp()


def missing(decision: dict[str, Any]) -> str:
    """The sensors a decision was made without, and why."""
    found = {name: each["reason"] for name, each in decision["modalities"].items() if each["status"] == "missing"}
    return ", ".join(f"{name} ({reason})" for name, reason in found.items()) or "-"


def answer(decision: dict[str, Any]) -> str:
    """What was decided on what, or why nothing was."""
    if decision["verdict"] == "abstain":
        return f"abstain: {decision['reason']}"
    return f"{decision['verdict']} on {decision['subset']}"


if __name__ == "__main__":
    raise SystemExit(main())
