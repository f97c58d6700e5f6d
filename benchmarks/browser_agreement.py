"""An .onnx in a browser beside the same file in Python's onnxruntime: where answers differ, how long each takes.

    python benchmarks/browser_agreement.py face_antispoof.onnx --samples 500 --inputs samples.npz

Needs `pip install playwright` and Debian's chromium. The page's own engine answers, in WebAssembly; held-out rendered
samples are preprocessed here and asked under every subset, as in `agreement.py`. Then both take turns in whole
decisions, every modality new, from raw frames: preprocessing and inference, each in its own implementation.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from agreement import Answers, Difference, Samples, add_sample_options, ask, compare, load_samples, table
from numpy.typing import NDArray

from mars_edge import rig, subsets
from mars_edge.errors import MarsEdgeError, UsageError
from mars_edge.manifest import Manifest
from mars_edge.options import OneLineParser, positive
from mars_runtime.engines import open_engine
from mars_runtime.engines.protocol import Engine
from mars_runtime.models import find_model
from mars_runtime.services.access import Address
from mars_runtime.web.assets import Asset
from mars_runtime.web.site import WebSite, contents

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from contract.encoding import array  # noqa: E402
from docs.make_web_screenshot import browser  # noqa: E402

_BLOCK = 20
# Asked in the page: every function gets what it needs and returns plain JSON.
_OPEN = """async () => {
    const { openModel, preprocess, PLACES } = await import('./mars-edge.js');
    const model = new Uint8Array(await (await fetch('./model')).arrayBuffer());
    const { engine } = await openModel(model, 'the model', PLACES);
    window.bench = { engine, preprocess };
    return [navigator.userAgent, PLACES.threads];
}"""
_ASK = """async ([block, count, wanted]) => {
    const { engine } = window.bench;
    const { modalities } = engine.manifest;
    const found = [];
    const shapes = await (await fetch('./shapes')).json();
    const data = new Float32Array(await (await fetch(`./samples/${block}`)).arrayBuffer());
    let at = 0;
    for (let i = 0; i < count; i += 1) {
        const samples = {};
        for (const { name } of modalities) {
            const size = shapes[name].reduce((a, b) => a * b, 1);
            samples[name] = { shape: shapes[name], data: data.slice(at, at + size) };
            at += size;
        }
        const { features } = await engine.infer(samples, {});
        for (const subset of wanted) {
            const kept = Object.fromEntries(subset.map((name) => [name, features[name]]));
            const { logits, experts } = await engine.infer({}, kept);
            found.push([[...logits], experts.map(({ id }) => id)]);
        }
    }
    return found;
}"""
_TIME = """async ([frames, count]) => {
    const { engine, preprocess } = window.bench;
    const types = { uint8: Uint8Array, uint16: Uint16Array, float32: Float32Array };
    const raw = {};
    for (const { name, dtype, shape, data } of frames) {
        raw[name] = { dtype, shape, data: new types[dtype](Uint8Array.from(atob(data), c => c.charCodeAt(0)).buffer) };
    }
    const took = [];
    for (let i = 0; i < count; i += 1) {
        const begin = performance.now();
        const samples = Object.fromEntries(engine.manifest.modalities.map((m) => [m.name, preprocess(m, raw[m.name])]));
        const { latencyMs } = await engine.infer(samples, {});
        took.push([performance.now() - begin, latencyMs.graph]);
    }
    return took;
}"""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Milliseconds of one whole decision: median and 95th percentile; `graph_ms` is the median of the graph alone."""

    p50_ms: float
    p95_ms: float
    graph_ms: float


def main() -> int:
    """Prints the agreement by subset, then how long a decision takes in each."""
    options = _parser().parse_args()
    try:
        path = find_model(options.artifact)
        engine = open_engine(path, threads=1)
        try:
            if engine.manifest.logit_step is None:
                raise UsageError(f"{path.name} has a float output: there are no output steps to count in")
            samples = load_samples(engine.manifest, options.samples, options.inputs)
            with _page(path, engine.manifest, samples) as (page, about):
                rows = _agreement(engine, page, samples)
                paces = _paces(engine, page, options.decisions)
        finally:
            engine.close()
    except MarsEdgeError as error:
        print(f"browser_agreement: {error}", file=sys.stderr)
        return 2
    if not options.quiet:
        print(about, file=sys.stderr)
    print(_as_json(rows, paces) if options.json else "\n\n".join([table(rows, "subset"), _pace_table(paces)]))
    return 0


@contextmanager
def _page(path: Path, manifest: Manifest, samples: Samples) -> Iterator[tuple[Any, str]]:
    """A page with the model open, served with the samples beside it."""
    shapes = {m.name: list(m.shape) for m in manifest.modalities}
    files = dict(contents(path.read_bytes(), path.name, None))
    files["/shapes"] = lambda: Asset(stored=json.dumps(shapes).encode(), content_type="application/json")
    for block in range(0, _count(samples), _BLOCK):
        files[f"/samples/{block}"] = lambda block=block: _block(samples, manifest, block)  # type: ignore[misc]
    site = WebSite(Address(host="127.0.0.1", port=0), files)
    try:
        with browser() as found:
            page = found.new_page()
            # Any file of the site: the page itself would decide beside what is timed.
            page.goto(f"{site.url}icon.svg")
            agent, threads = page.evaluate(_OPEN)
            yield page, f"{agent.split(' ')[-2]}, {threads} thread, beside onnxruntime with 1 thread"
    finally:
        site.close()


def _block(samples: Samples, manifest: Manifest, begin: int) -> Asset:
    rows = range(begin, min(begin + _BLOCK, _count(samples)))
    values = b"".join(samples[name][row].astype("<f4").tobytes() for row in rows for name in manifest.names)
    return Asset(stored=values, content_type="application/octet-stream")


def _count(samples: Samples) -> int:
    return len(next(iter(samples.values())))


def _agreement(engine: Engine, page: Any, samples: Samples) -> dict[str, Difference]:
    """By subset label, the browser beside Python."""
    manifest = engine.manifest
    wanted = subsets.all_subsets(manifest.names)
    reference = ask(engine, samples, wanted)
    given = _asked(page, samples, wanted)
    assert manifest.logit_step is not None
    return {subsets.label(s, manifest.names): compare(given[s], reference[s], manifest.logit_step) for s in wanted}


def _asked(page: Any, samples: Samples, wanted: Sequence[subsets.Subset]) -> dict[subsets.Subset, Answers]:
    found: list[tuple[list[float], list[int]]] = []
    for block in range(0, _count(samples), _BLOCK):
        count = min(_BLOCK, _count(samples) - block)
        found += page.evaluate(_ASK, [block, count, [list(subset) for subset in wanted]])
    rows = {subset: found[index :: len(wanted)] for index, subset in enumerate(wanted)}
    return {
        subset: Answers(
            logits=np.array([logits for logits, _ in each], np.float32),
            experts=np.array([sorted(experts) for _, experts in each], np.int64),
        )
        for subset, each in rows.items()
    }


def _paces(engine: Engine, page: Any, decisions: int) -> dict[str, Pace]:
    """Both take turns, so that a busy moment of the machine meets both."""
    live = rig.Rig(seed=2)
    frames = {name: live.frame(name, 0.0) for name in engine.manifest.names}
    stored = [{"name": name, **array(frame)} for name, frame in frames.items()]
    turns = max(1, decisions // 50)
    _time(engine, frames, 20)
    page.evaluate(_TIME, [stored, 20])
    took: dict[str, list[Any]] = {"python onnxruntime": [], "browser": []}
    for _ in range(turns):
        took["python onnxruntime"] += _time(engine, frames, 50)
        took["browser"] += page.evaluate(_TIME, [stored, 50])
    return {name: _pace(np.array(each)) for name, each in took.items()}


def _time(engine: Engine, frames: Mapping[str, NDArray[Any]], count: int) -> list[list[float]]:
    took = []
    for _ in range(count):
        begin = time.perf_counter()
        samples = {m.name: m.preprocess(frames[m.name]) for m in engine.manifest.modalities}
        latency_ms = engine.infer(samples, {}).latency_ms
        took.append([1e3 * (time.perf_counter() - begin), latency_ms["graph"]])
    return took


def _pace(took: NDArray[np.float64]) -> Pace:
    whole, graph = took.T
    return Pace(
        p50_ms=float(np.median(whole)), p95_ms=float(np.percentile(whole, 95)), graph_ms=float(np.median(graph))
    )


def _pace_table(paces: Mapping[str, Pace]) -> str:
    first = next(iter(paces.values()))
    lines = [
        f"| {name} | {p.p50_ms:.2f} | {p.p95_ms:.2f} | {p.graph_ms:.2f} | {p.p50_ms / first.p50_ms:.2f} |"
        for name, p in paces.items()
    ]
    return "\n".join(
        ["| decision | p50 ms | p95 ms | graph p50 ms | of Python's p50 |", "|---|---|---|---|---|", *lines]
    )


def _as_json(rows: Mapping[str, Difference], paces: Mapping[str, Pace]) -> str:
    return json.dumps(
        {
            "subsets": {name: asdict(row) for name, row in rows.items()},
            "decisions": {name: asdict(pace) for name, pace in paces.items()},
        }
    )


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python benchmarks/browser_agreement.py face_antispoof.onnx --samples 100",
    )
    parser.add_argument("artifact", metavar="FILE", help="an int8 .onnx, or the name of a bundled one")
    add_sample_options(parser, samples=500)
    parser.add_argument("--decisions", type=positive(int), default=500, help="timed in each; default: 500")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
