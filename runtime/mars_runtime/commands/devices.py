"""`mars-edge devices`: the sensors of this machine, whether they work, and what --sensor takes for each."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from mars_edge.options import OneLineParser
from mars_runtime.inventory import Inventory, look
from mars_runtime.text import table

_EXAMPLE = "example: mars-edge devices"


def main(argv: Sequence[str]) -> int:
    """Prints one line per device; what could not be looked for goes to stderr; 0 also where nothing is there."""
    options = _parser().parse_args(argv)
    found = look(probe=not options.no_probe)
    if options.json:
        print(json.dumps(asdict(found), ensure_ascii=False))
        return 0
    _print(found, quiet=options.quiet)
    return 0


def _print(found: Inventory, *, quiet: bool) -> None:
    rows = [[device.source, device.kind, device.name, device.detail or "-", device.state] for device in found.devices]
    lines = table(["source", "kind", "name", "detail", "state"], rows, align="<<<<<") if rows else []
    print("\n".join(lines) if lines else "no camera and no microphone found")
    if not quiet:
        for note in found.notes:
            print(f"mars-edge: {note}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="mars-edge devices", description=__doc__, epilog=_EXAMPLE)
    parser.add_argument("--no-probe", action="store_true", help="only list: open no device")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--quiet", action="store_true", help="do not say what could not be looked for")
    return parser
