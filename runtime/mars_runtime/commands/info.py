"""`mars-edge info FILE` and `mars-edge info --engines`: what an artifact says, and what can run it here."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mars_edge.artifact import Sealed, verify
from mars_edge.errors import UsageError
from mars_edge.manifest import Manifest
from mars_edge.options import OneLineParser
from mars_runtime.engines import engine_status, read_manifest
from mars_runtime.models import find_model


def main(argv: Sequence[str]) -> int:
    """Prints an artifact's digest and manifest, or the engines of this machine.

    Raises:
        UsageError: no such file, or neither FILE nor --engines is given.
        ModelFileError: the file is damaged or no artifact.
    """
    options = _parser().parse_args(argv)
    if options.engines == (options.file is not None):
        raise UsageError("give either a model file or --engines")
    if options.engines:
        _print_engines(as_json=options.json)
        return 0
    sealed = verify(find_model(options.file))
    manifest = read_manifest(sealed)
    if options.json:
        print(json.dumps(_document(sealed, manifest), ensure_ascii=False))
    else:
        print("\n".join(_lines(sealed, manifest)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="mars-edge info",
        description="Print what an artifact says about itself, or which engines are on this machine.",
        epilog="Example: mars-edge info face_antispoof.pte",
    )
    parser.add_argument("file", metavar="FILE", nargs="?", help="a .pte or .onnx, or the name of a bundled model")
    parser.add_argument("--engines", action="store_true", help="the engines of this machine, and why one is not there")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    return parser


def _print_engines(*, as_json: bool) -> None:
    statuses = engine_status()
    if as_json:
        print(json.dumps([asdict(status) for status in statuses]))
        return
    for status in statuses:
        print(f"{status.name:<20}{'yes' if status.available else 'no':<5}{status.detail}")


def _document(sealed: Sealed, manifest: Manifest) -> dict[str, Any]:
    file = {"format": sealed.format, "size_bytes": len(sealed.data), "sha256": sealed.digest}
    return {"file": file, "manifest": json.loads(manifest.to_json())}


def _lines(sealed: Sealed, manifest: Manifest) -> Iterator[str]:
    yield f"{manifest.name}: {manifest.task} into {', '.join(manifest.labels)}"
    yield f"file        {sealed.format}, {len(sealed.data)} bytes, {manifest.precision}"
    yield f"sha256      {sealed.digest}"
    for modality in manifest.modalities:
        yield f"modality    {modality.name}: {modality.kind} {modality.shape}, {modality.rate_hz:g} Hz"
    shared = " and the shared one" if manifest.shared_expert else ""
    yield f"experts     {manifest.active_experts} of {manifest.experts} run per decision{shared}"
    for subset, point in manifest.operating_points.items():
        certified = "" if point.certified else ", not certified: abstains"
        yield (
            f"subset      {subset}: {point.metric} {point.value:.4f} "
            f"(95 % {point.low:.4f} to {point.high:.4f}, n {point.n}), threshold {point.threshold:g}{certified}"
        )
    policy = manifest.policy
    yield f"policy      on missing: {policy.on_missing}; requires: {', '.join(policy.require) or 'nothing'}"
    yield from _provenance("provenance", manifest.provenance)
    if manifest.parity is not None:
        yield from _provenance("parity", manifest.parity)
    yield f"self-test   {'golden input inside' if manifest.golden else 'no golden input'}"


def _provenance(title: str, table: Mapping[str, Any]) -> Iterator[str]:
    for key, value in table.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield f"{title:<12}{key}: {text}"
