"""What may be asked of `mars-edge profile`."""

from __future__ import annotations

import argparse
from pathlib import Path

from mars_edge.errors import UsageError
from mars_edge.files import require_place
from mars_edge.options import OneLineParser, positive
from mars_runtime.commands.options import MOST_THREADS, RATE_HZ
from mars_runtime.profiling.schedule import DEFAULT_WARMUP, MODES

_EXAMPLE = "example: mars-edge profile --model face_antispoof.pte --mode quick --md profile.md"
_SUFFIXES = {"--json": (".json",), "--md": (".md",), "--picture": (".svg", ".png")}


def profile_parser() -> argparse.ArgumentParser:
    """All but `--NAME FILE`, whose names come from the model."""
    parser = OneLineParser(
        prog="mars-edge profile",
        description=(
            "Measure decisions of one artifact on this device: every subset of its sensors in turn, every stage, with "
            "95 % intervals; start-up and memory in processes of their own. Samples are generated, or --NAME FILE."
        ),
        epilog=_EXAMPLE,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", required=True, metavar="FILE", help="a .pte or .onnx file, or the name of a bundled model")
    add("--engine", metavar="NAME", help="executorch-native, executorch-python or onnxruntime; default: the best there")
    add(
        "--threads",
        type=positive(int, most=MOST_THREADS),
        metavar="N",
        help="threads of the engine, 1 to 256; default: by MACs",
    )
    beside = parser.add_mutually_exclusive_group()
    beside.add_argument(
        "--beside", metavar="FILE", help="another artifact of the same inputs, measured in turn; default: its fp32 twin"
    )
    beside.add_argument("--no-beside", action="store_true", help="measure the one artifact alone")
    add("--mode", choices=MODES, default="standard", help="quick: 100 rounds; standard: 1024, 60 s; sustained: minutes")
    warmup = f"rounds of each process first (default {DEFAULT_WARMUP})"
    add("--warmup", type=positive(int, zero=True, most=10_000), default=DEFAULT_WARMUP, metavar="N", help=warmup)
    add("--runs", type=positive(int, most=10_000_000), metavar="N", help="rounds at least")
    add("--min-seconds", type=positive(float, zero=True), metavar="S", help="seconds at least")
    add("--processes", type=positive(int, most=1000), metavar="N", help="one after the other; default 10, sustained 5")
    add("--subsets", default="all", metavar="LIST", help="all, or e.g. 'rgb,rgb+ir'")
    add(
        "--rate-hz",
        type=RATE_HZ,
        metavar="HZ",
        help="a decision longer than 1/HZ counts as missed",
    )
    add(
        "--pause-ms",
        type=positive(float, zero=True, most=10_000),
        default=0.0,
        metavar="MS",
        help="before each decision",
    )
    add("--picture-size", type=_size, default=(480, 640), metavar="WxH", help="of generated pictures (default 640x480)")
    add("--seed", type=positive(int, zero=True), default=0, help="of generated samples (default 0)")
    add("--ops", action="store_true", help="per-operator detail where the runtime gives it")
    add("--no-processes", action="store_true", help="leave the stream, start-up and memory out")
    add("--compare", type=Path, metavar="BASE.json", help="an earlier report; refused when the runs are unlike")
    add("--force", action="store_true", help="compare unlike runs all the same, and say so")
    add("--slo", metavar="LIST", help="objectives, e.g. 'p90<=15ms,p99@rgb+ir<=20ms,rss<=200MB'; missed: exit 5")
    add("--json", type=Path, metavar="FILE", help="write everything as one JSON object")
    add("--md", type=Path, metavar="FILE", help="write tables in Markdown")
    add("--picture", type=Path, metavar="FILE", help="write a picture, .svg or .png")
    add("--quiet", action="store_true", help="nothing on stderr but errors")
    return parser


def require_places(options: argparse.Namespace) -> None:
    """Everything that is to be written has a place and a name that fits, before anything is measured.

    Raises:
        UsageError: it has not, or --force is given without --compare.
    """
    if options.force and options.compare is None:
        raise UsageError("--force has no meaning without --compare")
    for flag, suffixes in _SUFFIXES.items():
        path = getattr(options, flag[2:])
        if path is None:
            continue
        require_place(path, flag)
        if path.suffix not in suffixes:
            raise UsageError(f"{flag} {path}: ends in {path.suffix!r}; allowed: {', '.join(suffixes)}")


def _size(text: str) -> tuple[int, int]:
    """(height, width) of WIDTHxHEIGHT."""
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit() and 8 <= int(width) <= 8192 and 8 <= int(height) <= 8192):
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT of 8 to 8192 pixels, e.g. 640x480")
    return int(height), int(width)
