"""One contestant of the streaming part, in a process of its own: three cameras at 30 frames per second to decisions.

    python benchmarks/streaming_worker.py ours face_antispoof.pte --seconds 5
    python benchmarks/streaming_worker.py plain dense.onnx --seconds 5

The cameras are threads that hand out pictures of 640 x 480 rendered in advance, each from its own moment on (--phases)
and at its own rate (--rates). "ours" is `mars_runtime.open` at a fixed rate or, with --pace newest, on the newest
sample, at most 30 times a second. "plain" is what one would write without it: a thread per camera, the newest frame of
each when the first camera has a new one or, with --pace fixed, 30 times a second, cv2 to make it small, one dense graph
in onnxruntime. "gstreamer" is the same with GStreamer between cameras and decision: appsrc, a leaky queue, appsink.
Only ours looks at the health of the sensors. The age of a decision is from the moment at which its oldest picture was
due at its camera to the decision in the hands of this script.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / folder) for folder in (".", "runtime")]

import mars_runtime  # noqa: E402
from mars_edge.errors import MarsEdgeError, UsageError  # noqa: E402
from mars_edge.options import OneLineParser, positive  # noqa: E402
from mars_edge.rig import Rig, modalities  # noqa: E402
from mars_runtime.sensors.driver import Frame, Traits  # noqa: E402

RATE_HZ = 30.0
_SIZE = (640, 480)
_RENDERED = 60
_WARM_UP_S = 1.5
_SYSTEM_PACKAGES = "/usr/lib/python3/dist-packages"
_GST_FORMATS = {"rgb": "RGB", "depth": "GRAY16_LE", "ir": "GRAY8"}

# Of every decision when it was there, and the number of the frame that it used of each camera.
Decided = Iterator[tuple[float, Mapping[str, int]]]


class Camera:
    """A driver that hands out `rate_hz` pictures a second from `begin_s` on; one that is not read in time is dropped.

    It says that its rate is `RATE_HZ`, as a camera does whose clock is a little off.
    """

    def __init__(self, name: str, frames: Sequence[NDArray[Any]], begin_s: float, rate_hz: float = RATE_HZ) -> None:
        self.traits = Traits(description=f"pre-rendered {name}", rate_hz=RATE_HZ, raw=True)
        self._frames, self._begin_s, self._rate_hz, self._next = frames, begin_s, rate_hz, 0

    def due_s(self, sequence: int) -> float:
        """When the frame of that number was there to be read."""
        return self._begin_s + (sequence - 1) / self._rate_hz

    def open(self) -> None:
        """Its schedule is fixed; nothing to begin."""

    def read(self, timeout_s: float) -> Frame | None:
        """The next picture when it is due."""
        now_s = time.monotonic()
        self._next = max(self._next, int((now_s - self._begin_s) * self._rate_hz))
        ahead_s = self.due_s(self._next + 1) - now_s
        if ahead_s > timeout_s:
            time.sleep(timeout_s)
            return None
        time.sleep(max(0.0, ahead_s))
        self._next += 1
        return Frame(data=self._frames[self._next % len(self._frames)], sequence=self._next)

    def close(self) -> None:
        """Nothing is held."""


def rendered() -> dict[str, list[NDArray[Any]]]:
    """The rig's pictures at the size of an ordinary camera."""
    rig = Rig(seed=0, rate_hz=RATE_HZ)
    return {
        m.name: [
            cv2.resize(rig.frame(m.name, i / RATE_HZ), _SIZE, interpolation=cv2.INTER_NEAREST) for i in range(_RENDERED)
        ]
        for m in modalities()
    }


def ours(model: str, cameras: Mapping[str, Camera], pace: str, *, stack: ExitStack) -> Decided:
    """`mars_runtime.open`."""
    stream = stack.enter_context(
        mars_runtime.open(model, dict(cameras), rate_hz=RATE_HZ, newest=pace == "newest", unsafe=True, threads=1)
    )
    for decision in stream:
        now_s = time.monotonic()
        # A sensor that is masked is not part of the decision: it is missing from the numbers, and counted as such.
        used = [n for n, summary in decision.modalities.items() if summary.status != "missing"]
        samples = {n: sample for n in used if (sample := stream.latest(n)) is not None}
        if samples:
            yield now_s, {n: _numbered(sample.frame) for n, sample in samples.items()}


def _numbered(frame: Frame) -> int:
    assert frame.sequence is not None, "these cameras number their frames"
    return frame.sequence


class Newest:
    """The newest frame of every camera, taken when the first camera has a new one or at a fixed rate."""

    def __init__(self, first: str, pace: str) -> None:
        self._first, self._pace = first, pace
        self._due_s = time.monotonic()
        self._held: dict[str, Frame] = {}
        self._changed = threading.Condition()
        self._fresh = False

    def put(self, name: str, frame: Frame) -> None:
        """Called by the camera's thread."""
        with self._changed:
            self._held[name] = frame
            if name == self._first:
                self._fresh = True
                self._changed.notify()

    def take(self) -> dict[str, Frame]:
        """All frames there are, once it is time; at a fixed rate a period that has passed is left out."""
        if self._pace == "fixed":
            self._due_s += (1 + max(0, int((time.monotonic() - self._due_s) * RATE_HZ))) / RATE_HZ
            time.sleep(max(0.0, self._due_s - time.monotonic()))
        with self._changed:
            self._changed.wait_for(lambda: self._fresh if self._pace == "first" else bool(self._held))
            self._fresh = False
            return dict(self._held)


def plain(model: str, cameras: Mapping[str, Camera], pace: str, *, stack: ExitStack) -> Decided:
    """A thread per camera, the newest frames, cv2, onnxruntime."""
    newest, ended = Newest(next(iter(cameras)), pace), threading.Event()

    def capture(name: str, camera: Camera) -> None:
        while not ended.is_set():
            if (frame := camera.read(0.1)) is not None:
                newest.put(name, frame)

    threads = [threading.Thread(target=capture, args=pair) for pair in cameras.items()]
    stack.callback(lambda: [thread.join() for thread in threads])
    stack.callback(ended.set)
    for thread in threads:
        thread.start()
    yield from _decided(model, newest.take)


def _decided(model: str, take: Callable[[], Mapping[str, Frame]]) -> Decided:
    """Decides on what `take` gives."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    while True:
        frames = take()
        present = np.array([[m.name in frames for m in modalities()]])
        tensors = {
            f"x_{m.name}": small(frames[m.name].data, m.size, m.range)
            if m.name in frames
            else np.zeros((1, *m.shape), np.float32)
            for m in modalities()
        }
        logits = session.run(None, {"present": present, **tensors})[0]
        assert np.isfinite(logits).all()
        yield time.monotonic(), {name: _numbered(frame) for name, frame in frames.items()}


def small(picture: NDArray[Any], size: tuple[int, int], limits: tuple[float, float]) -> NDArray[np.float32]:
    """A picture as a tensor (1, C, H, W) in 0..1; zeros of depth stay out of its averages by taking nearest pixels."""
    how = cv2.INTER_NEAREST if picture.dtype == np.uint16 else cv2.INTER_AREA
    made = cv2.resize(picture, size[::-1], interpolation=how).astype(np.float32)
    scaled = np.clip((made - limits[0]) / (limits[1] - limits[0]), 0.0, 1.0)
    planes = scaled[None] if scaled.ndim == 2 else scaled.transpose(2, 0, 1)
    return np.ascontiguousarray(planes[None], np.float32)


def gstreamer(model: str, cameras: Mapping[str, Camera], pace: str, *, stack: ExitStack) -> Decided:
    """Frames go through GStreamer's threads and queues; its appsink holds the newest of each camera.

    Raises:
        UsageError: GStreamer or its Python binding is not here.
    """
    # Where Debian's python3-gi is, which has no wheel; at the end, so that nothing else is taken from there.
    sys.path.append(_SYSTEM_PACKAGES)
    try:
        import gi

        gi.require_version("Gst", "1.0")
        gi.require_version("GstApp", "1.0")
        from gi.repository import Gst, GstApp  # noqa: F401 - gives appsink its methods
    except (ImportError, ValueError) as error:
        raise UsageError(f"GStreamer's Python binding is not here: {error}") from None
    Gst.init(None)
    lines = [
        f"appsrc name=in_{n} is-live=true do-timestamp=true format=time "
        f"caps=video/x-raw,format={_GST_FORMATS[n]},width={_SIZE[0]},height={_SIZE[1]},framerate=30/1 "
        f"! queue leaky=downstream max-size-buffers=1 ! appsink name=out_{n} max-buffers=1 drop=true sync=false"
        for n in cameras
    ]
    pipeline = Gst.parse_launch("  ".join(lines))
    pipeline.set_state(Gst.State.PLAYING)
    ended = threading.Event()

    def push(name: str, camera: Camera) -> None:
        source = pipeline.get_by_name(f"in_{name}")
        while not ended.is_set():
            if (frame := camera.read(0.1)) is not None:
                buffer = Gst.Buffer.new_wrapped(frame.data.tobytes())
                buffer.offset = _numbered(frame)
                source.emit("push-buffer", buffer)

    threads = [threading.Thread(target=push, args=pair) for pair in cameras.items()]
    stack.callback(lambda: pipeline.set_state(Gst.State.NULL))
    stack.callback(lambda: [thread.join() for thread in threads])
    stack.callback(ended.set)
    for thread in threads:
        thread.start()
    yield from _decided(model, _puller(pipeline, list(cameras), Gst))


def _puller(pipeline: Any, names: Sequence[str], gst: Any) -> Callable[[], Mapping[str, Frame]]:
    sinks = {name: pipeline.get_by_name(f"out_{name}") for name in names}
    held: dict[str, Frame] = {}
    kinds = {m.name: (np.dtype(m.dtype), m.channels) for m in modalities()}

    def take() -> Mapping[str, Frame]:
        for position, (name, sink) in enumerate(sinks.items()):
            # The first camera sets the pace; of the others whatever is there.
            sample = sink.emit("try-pull-sample", gst.SECOND if position == 0 else 0)
            if sample is not None:
                buffer = sample.get_buffer()
                dtype, channels = kinds[name]
                shape = (_SIZE[1], _SIZE[0], channels) if channels > 1 else (_SIZE[1], _SIZE[0])
                data = np.frombuffer(buffer.extract_dup(0, buffer.get_size()), dtype).reshape(shape)
                held[name] = Frame(data=data, sequence=buffer.offset)
        return held

    return take


CONTESTANTS = {"ours": ours, "plain": plain, "gstreamer": gstreamer}
# The first is the default.
PACES = {"ours": ("fixed", "newest"), "plain": ("first", "fixed"), "gstreamer": ("first",)}


def measure(
    who: str, model: str, *, pace: str, phases_ms: Sequence[float], rates_hz: Sequence[float], seconds: float
) -> dict[str, float]:
    """Ages, processor load, rate and share of decisions on all cameras, of `seconds` after a warm-up.

    Raises:
        UsageError: `who` knows no such pace.
    """
    if pace not in PACES[who]:
        raise UsageError(f"--pace {pace}: {who} has {' or '.join(PACES[who])}")
    # OpenCV's own pool would be a second thread for everyone's pictures.
    cv2.setNumThreads(1)
    pictures_of = rendered()
    begin_s = time.monotonic() + 0.2
    cameras = {
        name: Camera(name, pictures, begin_s + phase_ms / 1e3, rate_hz)
        for (name, pictures), phase_ms, rate_hz in zip(pictures_of.items(), phases_ms, rates_hz, strict=True)
    }
    decided: list[tuple[float, Mapping[str, int]]] = []
    cpu_s = 0.0
    with ExitStack() as stack:
        for now_s, used in CONTESTANTS[who](model, cameras, pace, stack=stack):
            if not decided and now_s < begin_s + _WARM_UP_S:
                continue
            cpu_s = cpu_s or time.process_time()
            decided.append((now_s, used))
            if now_s - decided[0][0] >= seconds:
                cpu_s = time.process_time() - cpu_s
                break
    # The first decision only begins the time.
    return _summary(decided[1:], cameras, cpu_s, decided[-1][0] - decided[0][0])


def _summary(
    decided: Sequence[tuple[float, Mapping[str, int]]], cameras: Mapping[str, Camera], cpu_s: float, wall_s: float
) -> dict[str, float]:
    ages_ms = [1e3 * (now_s - min(cameras[name].due_s(used[name]) for name in used)) for now_s, used in decided]
    return {
        "age_ms": float(np.median(ages_ms)),
        "age_p95_ms": float(np.quantile(ages_ms, 0.95)),
        "cpu_percent": 100.0 * cpu_s / wall_s,
        "rate_hz": len(decided) / wall_s,
        "whole_percent": 100.0 * sum(len(used) == len(cameras) for _, used in decided) / len(decided),
    }


def main() -> int:
    """Print one JSON object."""
    parser = OneLineParser(
        prog="benchmarks/streaming_worker.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python benchmarks/streaming_worker.py ours face_antispoof.pte --seconds 5",
    )
    parser.add_argument("who", choices=list(CONTESTANTS))
    parser.add_argument(
        "model", metavar="FILE", help="of ours an artifact, else a dense graph of benchmarks/networks.py"
    )
    parser.add_argument(
        "--pace",
        choices=("fixed", "newest", "first"),
        help="at a fixed rate, on the newest sample or on the first camera's (default: ours fixed, others first)",
    )
    parser.add_argument(
        "--phases", nargs=3, type=float, default=[0.0, 11.0, 22.0], metavar="MS", help="default: 0 11 22"
    )
    parser.add_argument(
        "--rates", nargs=3, type=positive(float), default=[RATE_HZ] * 3, metavar="HZ", help="default: 30"
    )
    parser.add_argument("--seconds", type=positive(float), default=5.0, help="measured after a warm-up; default: 5")
    parser.add_argument("--json", action="store_true", help="accepted for the suite: it always prints JSON")
    try:
        options = parser.parse_args()
        found = measure(
            options.who,
            options.model,
            pace=options.pace or PACES[options.who][0],
            phases_ms=options.phases,
            rates_hz=options.rates,
            seconds=options.seconds,
        )
    except MarsEdgeError as error:
        print(f"streaming: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
