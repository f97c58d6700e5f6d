"""`mars-edge info FILE` and `mars-edge info --engines`: what an artifact says, and what can run it here."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mars_edge.artifact import verify
from mars_edge.errors import UsageError
from mars_edge.manifest import Manifest
from mars_edge.options import OneLineParser
from mars_runtime.description import Section, document, sections
from mars_runtime.engines import engine_status, read_manifest
from mars_runtime.models import find_model
from mars_runtime.text import heading
from mars_runtime.toml_writer import as_toml


def main(argv: Sequence[str]) -> int:
    """Prints what an artifact says about itself, or the engines of this machine.

    Raises:
        UsageError: no such file, neither FILE nor --engines is given, or there is no recipe to print.
        ModelFileError: the file is damaged or no artifact.
    """
    options = _parser().parse_args(argv)
    if options.engines == (options.file is not None):
        raise UsageError("give either a model file or --engines")
    if options.recipe and (options.engines or options.json):
        raise UsageError("--recipe prints TOML; give it without --json and --engines")
    if options.engines:
        _print_engines(as_json=options.json)
        return 0
    sealed = verify(find_model(options.file))
    manifest = read_manifest(sealed)
    if options.recipe:
        print(as_toml(_recipe(options.file, manifest)))
    elif options.json:
        print(json.dumps(document(sealed, manifest), ensure_ascii=False))
    else:
        print_sections(sections(options.file, sealed, manifest))
    return 0


def print_sections(parts: Iterable[Section]) -> None:
    """The sections on stdout, an empty line between two."""
    for index, section in enumerate(parts):
        if index:
            print()
        print(heading(section.title, sys.stdout))
        print("\n".join(section.lines))


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="mars-edge info",
        description="Print what an artifact says about itself, or which engines are on this machine.",
        epilog="Example: mars-edge info face_antispoof.pte",
    )
    parser.add_argument("file", metavar="FILE", nargs="?", help="a .pte or .onnx, or the name of a bundled model")
    parser.add_argument("--engines", action="store_true", help="the engines of this machine, and why one is not there")
    parser.add_argument("--json", action="store_true", help="one JSON object, with the whole manifest")
    parser.add_argument("--recipe", action="store_true", help="only the recipe it was trained by, as the TOML to reuse")
    return parser


def _recipe(name: str, manifest: Manifest) -> Mapping[str, Any]:
    recipe = manifest.provenance.get("recipe")
    if not isinstance(recipe, Mapping):
        raise UsageError(f"{name} does not hold the recipe it was trained by")
    return recipe


def _print_engines(*, as_json: bool) -> None:
    statuses = engine_status()
    if as_json:
        print(json.dumps([asdict(status) for status in statuses]))
        return
    for status in statuses:
        print(f"{status.name:<20}{'yes' if status.available else 'no':<5}{status.detail}")
