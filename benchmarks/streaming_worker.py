"""One contestant of the streaming part, in a process of its own: three cameras at 30 frames per second to decisions.

    python benchmarks/streaming_worker.py ours face_antispoof.pte --seconds 5
    python benchmarks/streaming_worker.py plain dense.onnx --seconds 5

The cameras are threads that hand out pictures of 640 x 480 rendered in advance; each is out of phase with the others
by --phases. "ours" is `mars_runtime.open` at a fixed rate or, with --newest, on the newest sample. "plain" is what one
would write without it: a thread per camera, the newest frame of each when the first camera has a new one, cv2 to make
it small, one dense graph in onnxruntime. "gstreamer" is the same with GStreamer between cameras and decision: appsrc,
a leaky queue, appsink. Only ours looks at the health of the sensors.
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

Frames = Mapping[str, Sequence[NDArray[Any]]]
# When the newest decision was made, and when the oldest of its samples was received.
Decided = Iterator[tuple[float, float]]


class Camera:
    """A driver that hands out a picture every 1 / 30 s from `begin_s` on; one that is not read in time is dropped."""

    def __init__(self, name: str, frames: Sequence[NDArray[Any]], begin_s: float) -> None:
        self.traits = Traits(description=f"pre-rendered {name}", rate_hz=RATE_HZ, raw=True)
        self._frames, self._begin_s, self._next = frames, begin_s, 0

    def open(self) -> None:
        """Its schedule is fixed; nothing to begin."""

    def read(self, timeout_s: float) -> Frame | None:
        """The next picture when it is due."""
        now_s = time.monotonic()
        self._next = max(self._next, int((now_s - self._begin_s) * RATE_HZ))
        ahead_s = self._begin_s + self._next / RATE_HZ - now_s
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


def ours(model: str, cameras: Mapping[str, Camera], *, newest: bool, stack: ExitStack) -> Decided:
    """`mars_runtime.open`."""
    stream = stack.enter_context(
        mars_runtime.open(model, dict(cameras), rate_hz=RATE_HZ, newest=newest, unsafe=True, threads=1)
    )
    for decision in stream:
        # A sensor without a sample yet is not part of the decision.
        used = [n for n, summary in decision.modalities.items() if summary.status != "missing"]
        stamps = [sample.at_s for n in used if (sample := stream.latest(n)) is not None]
        if stamps:
            yield time.monotonic(), min(stamps)


class Newest:
    """The newest frame of every camera, and when it was received."""

    def __init__(self, first: str) -> None:
        self._first = first
        self._held: dict[str, tuple[float, NDArray[Any]]] = {}
        self._changed = threading.Condition()
        self._fresh = False

    def put(self, name: str, frame: NDArray[Any]) -> None:
        """Called by the camera's thread."""
        with self._changed:
            self._held[name] = (time.monotonic(), frame)
            if name == self._first:
                self._fresh = True
                self._changed.notify()

    def take(self) -> dict[str, tuple[float, NDArray[Any]]]:
        """All frames there are, once the first camera has a new one."""
        with self._changed:
            self._changed.wait_for(lambda: self._fresh)
            self._fresh = False
            return dict(self._held)


def plain(model: str, cameras: Mapping[str, Camera], *, stack: ExitStack) -> Decided:
    """A thread per camera, the newest frames, cv2, onnxruntime."""
    newest, ended = Newest(next(iter(cameras))), threading.Event()

    def capture(name: str, camera: Camera) -> None:
        while not ended.is_set():
            if (frame := camera.read(0.1)) is not None:
                newest.put(name, frame.data)

    threads = [threading.Thread(target=capture, args=pair) for pair in cameras.items()]
    stack.callback(lambda: [thread.join() for thread in threads])
    stack.callback(ended.set)
    for thread in threads:
        thread.start()
    yield from _decided(model, newest.take)


def _decided(model: str, take: Callable[[], Mapping[str, tuple[float, NDArray[Any]]]]) -> Decided:
    """Decides on what `take` gives."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    while True:
        frames = take()
        present = np.array([[m.name in frames for m in modalities()]])
        tensors = {
            f"x_{m.name}": small(frames[m.name][1], m.size, m.range)
            if m.name in frames
            else np.zeros((1, *m.shape), np.float32)
            for m in modalities()
        }
        logits = session.run(None, {"present": present, **tensors})[0]
        assert np.isfinite(logits).all()
        yield time.monotonic(), min(stamp for stamp, _ in frames.values())


def small(picture: NDArray[Any], size: tuple[int, int], limits: tuple[float, float]) -> NDArray[np.float32]:
    """A picture as a tensor (1, C, H, W) in 0..1; zeros of depth stay out of its averages by taking nearest pixels."""
    how = cv2.INTER_NEAREST if picture.dtype == np.uint16 else cv2.INTER_AREA
    made = cv2.resize(picture, size[::-1], interpolation=how).astype(np.float32)
    scaled = np.clip((made - limits[0]) / (limits[1] - limits[0]), 0.0, 1.0)
    planes = scaled[None] if scaled.ndim == 2 else scaled.transpose(2, 0, 1)
    return np.ascontiguousarray(planes[None], np.float32)


def gstreamer(model: str, cameras: Mapping[str, Camera], *, stack: ExitStack) -> Decided:
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
                buffer.offset = time.monotonic_ns()
                source.emit("push-buffer", buffer)

    threads = [threading.Thread(target=push, args=pair) for pair in cameras.items()]
    stack.callback(lambda: pipeline.set_state(Gst.State.NULL))
    stack.callback(lambda: [thread.join() for thread in threads])
    stack.callback(ended.set)
    for thread in threads:
        thread.start()
    yield from _decided(model, _puller(pipeline, list(cameras), Gst))


def _puller(pipeline: Any, names: Sequence[str], gst: Any) -> Callable[[], Mapping[str, tuple[float, NDArray[Any]]]]:
    sinks = {name: pipeline.get_by_name(f"out_{name}") for name in names}
    held: dict[str, tuple[float, NDArray[Any]]] = {}
    kinds = {m.name: (np.dtype(m.dtype), m.channels) for m in modalities()}

    def take() -> Mapping[str, tuple[float, NDArray[Any]]]:
        for position, (name, sink) in enumerate(sinks.items()):
            # The first camera sets the pace; of the others whatever is there.
            sample = sink.emit("try-pull-sample", gst.SECOND if position == 0 else 0)
            if sample is not None:
                buffer = sample.get_buffer()
                dtype, channels = kinds[name]
                shape = (_SIZE[1], _SIZE[0], channels) if channels > 1 else (_SIZE[1], _SIZE[0])
                data = buffer.extract_dup(0, buffer.get_size())
                held[name] = (buffer.offset / 1e9, np.frombuffer(data, dtype).reshape(shape))
        return held

    return take


def measure(who: str, model: str, *, newest: bool, phases_ms: Sequence[float], seconds: float) -> dict[str, float]:
    """Ages, processor load and rate of `seconds` after a warm-up."""
    frames = rendered()
    begin_s = time.monotonic() + 0.2
    cameras = {
        name: Camera(name, pictures, begin_s + phase / 1e3)
        for (name, pictures), phase in zip(frames.items(), phases_ms, strict=True)
    }
    ages: list[float] = []
    began: tuple[float, float] | None = None
    with ExitStack() as stack:
        decided = {"plain": plain, "gstreamer": gstreamer}.get(who)
        found = decided(model, cameras, stack=stack) if decided else ours(model, cameras, newest=newest, stack=stack)
        for now_s, oldest_s in found:
            if began is None:
                began = (now_s, time.process_time()) if now_s >= begin_s + _WARM_UP_S else None
                continue
            ages.append(1e3 * (now_s - oldest_s))
            if now_s - began[0] >= seconds:
                cpu_s, wall_s = time.process_time() - began[1], now_s - began[0]
                break
    return {
        "age_ms": float(np.median(ages)),
        "age_p95_ms": float(np.quantile(ages, 0.95)),
        "cpu_percent": 100.0 * cpu_s / wall_s,
        "rate_hz": len(ages) / wall_s,
    }


def main() -> int:
    """Print one JSON object."""
    parser = OneLineParser(
        prog="benchmarks/streaming_worker.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python benchmarks/streaming_worker.py ours face_antispoof.pte --seconds 5",
    )
    parser.add_argument("who", choices=("ours", "plain", "gstreamer"))
    parser.add_argument(
        "model", metavar="FILE", help="of ours an artifact, else a dense graph of benchmarks/networks.py"
    )
    parser.add_argument("--newest", action="store_true", help="ours: decide on the newest sample")
    parser.add_argument(
        "--phases", nargs=3, type=float, default=[0.0, 11.0, 22.0], metavar="MS", help="default: 0 11 22"
    )
    parser.add_argument("--seconds", type=positive(float), default=5.0, help="measured after a warm-up; default: 5")
    parser.add_argument("--json", action="store_true", help="accepted for the suite: it always prints JSON")
    try:
        options = parser.parse_args()
        found = measure(
            options.who, options.model, newest=options.newest, phases_ms=options.phases, seconds=options.seconds
        )
    except MarsEdgeError as error:
        print(f"streaming: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
