"""Prints the text block of runtime/README.md in which a run is recorded, replayed and compared.

    python docs/make_recorded_run.py

It records the simulated rig with a fault, makes every decision again and proves them equal, then decides once more by
a stricter policy and compares the two streams decision by decision.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from typing import Any

from mars_edge.cli import main

MODEL = "--model face_antispoof.pte"
RUN = f"run {MODEL} --record run.mcap --inject depth=off@4s+4s --max-seconds 16"
VERIFY = f"replay run.mcap {MODEL} --verify"
STRICTER = f"replay run.mcap {MODEL} --fast --require depth"
SEEN = ("verdict", "reason")

Lines = list[dict[str, Any]]


def mars_edge(command: str) -> tuple[Lines, list[str]]:
    """The JSON lines and the remarks of a command that has to succeed."""
    out, remarks = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(remarks):
        code = main(command.split())
    if code != 0:
        raise SystemExit(f"mars-edge {command}: exit code {code}: {remarks.getvalue().strip()}")
    return [json.loads(line) for line in out.getvalue().splitlines()], remarks.getvalue().splitlines()


def block() -> Iterator[str]:
    """The lines of the block."""
    lines, remarks = mars_edge(RUN)
    yield f"$ mars-edge {RUN} > then.jsonl"
    yield from remarks
    yield f"$ mars-edge {VERIFY}"
    (summary,), _ = mars_edge(VERIFY)
    yield json.dumps(summary)
    again, _ = mars_edge(STRICTER)
    yield f"$ mars-edge {STRICTER} > stricter.jsonl"
    yield from compared(lines, again)


def compared(then: Sequence[dict[str, Any]], now: Sequence[dict[str, Any]]) -> Iterator[str]:
    """How often each subset was decided on, and what became of it; decisions are paired by their number."""
    assert [line["seq"] for line in then] == [line["seq"] for line in now]
    pairs = Counter((was["subset"], was["verdict"], become["verdict"]) for was, become in zip(then, now, strict=True))
    yield f"{'decided on':<14}{'then':<10}{'stricter':<10}{'decisions':>9}"
    for (subset, was, become), count in sorted(pairs.items(), key=lambda each: (-len(each[0][0]), each[0])):
        yield f"{subset:<14}{was:<10}{become:<10}{count:>9}"
    changed = [(was, become) for was, become in zip(then, now, strict=True) if any(was[k] != become[k] for k in SEEN)]
    reasons = sorted({become["reason"] for _, become in changed})
    yield f"{len(changed)} of {len(then)} differ: {'; '.join(map(str, reasons))}"


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        print("\n".join(block()))
