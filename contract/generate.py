"""Write what the Python implementation answers to contract/vectors, for every other implementation to reproduce.

    python -m contract.generate
    python -m contract.generate --check

Run it after a change of preprocessing, facts, health or policy; `--check` only says whether it is needed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contract.encoding import read_array
from contract.facts_cases import facts_cases
from contract.health_cases import health_cases, limits_cases
from contract.loop_cases import loop_cases
from contract.manifest_cases import artifact_cases, manifest_cases
from contract.policy_cases import critical_cases, gates_cases, model_cases, policy_cases, skew_cases
from contract.preprocess_cases import preprocess_cases

FOLDER = Path(__file__).parent / "vectors"
VECTORS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "preprocess": preprocess_cases,
    "facts": facts_cases,
    "limits": limits_cases,
    "health": health_cases,
    "gates": gates_cases,
    "skew": skew_cases,
    "critical": critical_cases,
    "models": model_cases,
    "policy": policy_cases,
    "loop": loop_cases,
    "manifest": manifest_cases,
    "artifact": artifact_cases,
}
# Other processors round sums and exponentials differently.
TOLERANCE = 1e-6


def document(cases: list[dict[str, Any]]) -> str:
    """One case a line, so that a change shows as the lines that changed."""
    return "[\n" + ",\n".join(json.dumps(case, allow_nan=False) for case in cases) + "\n]\n"


def difference(given: Any, wanted: Any, where: str = "") -> str | None:
    """The first place where two documents differ by more than `TOLERANCE`; None where they are alike."""
    if isinstance(given, dict) and isinstance(wanted, dict):
        if set(given) != set(wanted):
            return f"{where}: has {sorted(given)}, expected {sorted(wanted)}"
        if set(given) == {"dtype", "shape", "data"}:
            return _array_difference(given, wanted, where)
        return _first(difference(given[key], wanted[key], f"{where}.{key}") for key in wanted)
    if isinstance(given, list) and isinstance(wanted, list):
        if len(given) != len(wanted):
            return f"{where}: has {len(given)} entries, expected {len(wanted)}"
        return _first(difference(a, b, f"{where}[{i}]") for i, (a, b) in enumerate(zip(given, wanted, strict=True)))
    if type(given) is float and type(wanted) is float:
        alike = math.isclose(given, wanted, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
        return None if alike else f"{where}: is {given!r}, expected {wanted!r}"
    alike = type(given) is type(wanted) and given == wanted
    return None if alike else f"{where}: is {given!r:.80}, expected {wanted!r:.80}"


def _array_difference(given: dict[str, Any], wanted: dict[str, Any], where: str) -> str | None:
    if (given["dtype"], given["shape"]) != (wanted["dtype"], wanted["shape"]):
        return f"{where}: is {given['dtype']} {given['shape']}, expected {wanted['dtype']} {wanted['shape']}"
    if given["data"] == wanted["data"]:
        return None
    apart = abs(read_array(given).astype(float) - read_array(wanted).astype(float))
    return None if (apart <= TOLERANCE).all() else f"{where}: differs by up to {apart.max():.3g}"


def _first(found: Any) -> str | None:
    return next((each for each in found if each is not None), None)


def _write(path: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    Path(temporary).chmod(0o644)
    Path(temporary).replace(path)


def main() -> int:
    """0, or 1 where `--check` finds a vector that the implementation no longer answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where a vector is out of date")
    check = parser.parse_args().check
    FOLDER.mkdir(exist_ok=True)
    stale = 0
    for name, make in VECTORS.items():
        path, text = FOLDER / f"{name}.json", document(make())
        old = json.loads(path.read_text("utf-8")) if path.exists() else None
        differs = difference(old, json.loads(text), name)
        if differs and check:
            print(f"{path.name} is out of date: {differs}", file=sys.stderr)
            stale = 1
        elif differs:
            _write(path, text)
    return stale


if __name__ == "__main__":
    raise SystemExit(main())
