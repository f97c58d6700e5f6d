"""`mars-edge verify FILE`: whether an artifact is byte for byte what was exported."""

from __future__ import annotations

import json
from collections.abc import Sequence

from mars_edge.artifact import verify
from mars_edge.options import OneLineParser
from mars_runtime.models import find_model


def main(argv: Sequence[str]) -> int:
    """Prints format, size and digest of a whole artifact; a damaged one ends with exit code 4.

    Raises:
        UsageError: no such file.
        ModelFileError: the file is damaged or no artifact.
    """
    parser = OneLineParser(
        prog="mars-edge verify",
        description="Check that an artifact is byte for byte what was exported. Exit code 4 if it is not.",
        epilog="Example: mars-edge verify face_antispoof.pte",
    )
    parser.add_argument("files", metavar="FILE", nargs="+", help="a .pte or .onnx, or the name of a bundled model")
    parser.add_argument("--json", action="store_true", help="one JSON object per file")
    parser.add_argument("--quiet", action="store_true", help="print nothing; only the exit code tells")
    options = parser.parse_args(argv)
    for name in options.files:
        sealed = verify(find_model(name))
        facts = {"file": name, "format": sealed.format, "size_bytes": len(sealed.data), "sha256": sealed.digest}
        if options.json:
            print(json.dumps(facts))
        elif not options.quiet:
            print(f"{name}: whole, {sealed.format}, {len(sealed.data)} bytes, sha256 {sealed.digest}")
    return 0
