"""Recordings: everything comes back exactly, decisions are made again bit for bit, a kill costs one chunk."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mcap_protobuf")

from mars_edge.errors import MarsEdgeError, SensorError, UsageError
from mars_edge.manifest import Policy
from mars_edge.modality import Modality
from mars_runtime import decision as decisions
from mars_runtime.capture import Delivery, Sample
from mars_runtime.health import Ended, Health, ReadFailed, SampleSeen, Summary
from mars_runtime.recording import flight, open_channel, payload
from mars_runtime.recording.flight import Bounds, FlightRecorder
from mars_runtime.recording.injection import inject
from mars_runtime.recording.plain import from_plain, to_plain
from mars_runtime.recording.playback import first_difference, replay, settings_of
from mars_runtime.recording.reader import RecordedTick, open_recording
from mars_runtime.recording.recorder import Recorder
from mars_runtime.recording.session import Session
from mars_runtime.recording.writer import PARTIAL, RecordingWriter
from mars_runtime.region import RegionSettings
from mars_runtime.sensors.driver import Frame, SourceEndedError, Traits
from tests.fake_engine import FakeEngine, manifest
from tests.helpers.recorded_run import MODALITIES, NAMES, RATE_HZ, WildRun, record


@pytest.mark.parametrize("seed", range(6))
def test_decisions_of_wild_sensors_are_made_again_bit_for_bit(tmp_path: Path, seed: int) -> None:
    run, made = record(tmp_path / "run.mcap", seed, 150, latch_s=0.4, policy=Policy(require=("rgb|depth",)))
    recording = open_recording(tmp_path / "run.mcap")
    again = list(replay(FakeEngine(run.engine.manifest), recording, settings_of(recording, run.engine)))
    assert [each.difference for each in again] == [None] * 150
    assert [replace(each.decision, latency_ms={}) for each in again] == [replace(d, latency_ms={}) for d in made]
    assert len({decision.subset for decision in made}) > 3


def test_a_region_of_interest_is_found_again_where_it_was(tmp_path: Path) -> None:
    settings = {"region": RegionSettings(every_s=0.1, to_reference={"depth": ((1, 0, 0.5), (0, 1, 0), (0, 0, 1))})}
    run, _ = record(tmp_path / "run.mcap", 14, 60, **settings)
    recording = open_recording(tmp_path / "run.mcap")
    assert recording.session.settings == run.settings
    again = list(replay(FakeEngine(run.engine.manifest), recording, settings_of(recording, run.engine)))
    assert [each.difference for each in again] == [None] * 60


def test_a_decision_that_was_recorded_otherwise_is_found_with_its_field(tmp_path: Path) -> None:
    run, _ = record(tmp_path / "run.mcap", 1, 20)
    recording = open_recording(tmp_path / "run.mcap")
    other = FakeEngine(run.engine.manifest)
    other.logits = np.array([3.0, 0.0], np.float32)
    differences = [each.difference for each in replay(other, recording, settings_of(recording, other))]
    assert any(
        each is not None and each.startswith("outcome.label was 'bona_fide', is 'attack'") for each in differences
    )


def test_one_bit_of_one_pixel_is_a_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = record(tmp_path / "run.mcap", 2, 10)
    recording = open_recording(tmp_path / "run.mcap")
    decode = payload.decode

    def off_by_one(schema: str, content: bytes, shape: Any = None) -> Any:
        data = decode(schema, content, shape)
        if data.dtype == np.uint16:
            data.flat[data.size // 2] ^= 1 << 8
        return data

    monkeypatch.setattr(payload, "decode", off_by_one)
    again = list(replay(FakeEngine(run.engine.manifest), recording, settings_of(recording, run.engine)))
    assert any(each.difference and each.difference.startswith("outcome.score") for each in again)


def test_a_replay_reads_no_clock_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = record(tmp_path / "run.mcap", 3, 10)
    recording = open_recording(tmp_path / "run.mcap")
    for name in ("monotonic", "time"):
        monkeypatch.setattr(time, name, lambda: pytest.fail("a clock was read"))
    again = list(replay(FakeEngine(run.engine.manifest), recording, settings_of(recording, run.engine)))
    assert not any(each.difference for each in again)


def test_what_a_slow_disk_drops_is_counted_and_the_rest_is_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    write = RecordingWriter.tick

    def slow(self: RecordingWriter, tick: Any, *, state: bool) -> None:
        gate.wait(10.0)
        write(self, tick, state=state)

    monkeypatch.setattr(RecordingWriter, "tick", slow)
    run = WildRun(4)
    recorder = Recorder(tmp_path / "run.mcap", run.session(), queue_bytes=100_000)
    run.witnesses.append(recorder.tick)
    run.decisions(60)
    gate.set()
    time.sleep(0.2)
    run.decisions(5)
    kept = recorder.close()
    assert kept.dropped > 20
    assert kept.written + kept.dropped == 65
    recording = open_recording(kept.path)
    again = list(replay(FakeEngine(run.engine.manifest), recording, settings_of(recording, run.engine)))
    assert [each.difference for each in again] == [None] * kept.written
    assert again[-1].decision.seq == 64


def test_a_full_disk_never_stops_a_decision_and_is_told_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = WildRun(5)
    recorder = Recorder(tmp_path / "run.mcap", run.session())
    run.witnesses.append(recorder.tick)
    run.decisions(5)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RecordingWriter, "tick", full)
    assert len(run.decisions(20)) == 20
    with pytest.raises(MarsEdgeError, match=r"run.mcap: No space left on device; recorded up to decision \d+"):
        recorder.close()
    assert not (tmp_path / "run.mcap").exists()
    assert (tmp_path / f"run.mcap{PARTIAL}").exists()


def test_a_bug_in_the_writing_thread_reaches_whoever_closes_the_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RecordingWriter, "tick", lambda *_, **__: 1 // 0)
    run = WildRun(5)
    recorder = Recorder(tmp_path / "run.mcap", run.session())
    run.witnesses.append(recorder.tick)
    run.decisions(3)
    with pytest.raises(ZeroDivisionError):
        recorder.close()


def test_a_recording_has_its_name_only_when_it_is_complete_and_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run.mcap"
    run = WildRun(6)
    recorder = Recorder(path, run.session())
    assert [each.name for each in tmp_path.iterdir()] == [f"run.mcap{PARTIAL}"]
    with pytest.raises(UsageError) as caught:
        Recorder(path, run.session())
    assert str(caught.value) == f"{path}{PARTIAL}: exists already; a recording does not replace a file"
    recorder.close()
    recorder.close()
    assert [each.name for each in tmp_path.iterdir()] == ["run.mcap"]
    with pytest.raises(UsageError, match=r"run\.mcap: exists already"):
        Recorder(path, run.session())


def test_a_killed_recording_is_readable_up_to_its_last_chunk(tmp_path: Path) -> None:
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from tests.helpers.recorded_run import WildRun\n"
        "from mars_runtime.recording.recorder import Recorder\n"
        "run = WildRun(7)\n"
        "recorder = Recorder(Path(sys.argv[1]), run.session())\n"
        "run.witnesses.append(recorder.tick)\n"
        "run.decisions(600)\n"
        "time.sleep(2.5)\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    path = tmp_path / "run.mcap"
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
    recording = open_recording(path.with_name(f"run.mcap{PARTIAL}"))
    again = list(replay(FakeEngine(manifest(MODALITIES)), recording, settings_of(recording, FakeEngine(manifest()))))
    assert recording.cut
    assert 100 < len(again) <= 600
    assert not any(each.difference for each in again)


@pytest.mark.parametrize("share", [0.3, 0.7, 0.999])
def test_a_cut_file_gives_what_comes_before_the_cut(tmp_path: Path, share: float) -> None:
    record(tmp_path / "run.mcap", 8, 200)
    content = (tmp_path / "run.mcap").read_bytes()
    (tmp_path / "cut.mcap").write_bytes(content[: int(len(content) * share)])
    recording = open_recording(tmp_path / "cut.mcap")
    ticks = list(recording.entries())
    assert recording.cut
    assert len(ticks) <= 200


def test_a_flipped_byte_is_refused_in_one_line(tmp_path: Path) -> None:
    record(tmp_path / "run.mcap", 9, 100)
    content = bytearray((tmp_path / "run.mcap").read_bytes())
    content[len(content) // 2] ^= 0x40
    (tmp_path / "bad.mcap").write_bytes(content)
    with pytest.raises(UsageError, match=r"bad.mcap: damaged at byte \d+ "):
        list(open_recording(tmp_path / "bad.mcap").entries())


def test_faults_injected_into_a_damaged_recording_leave_no_part_of_a_file(tmp_path: Path) -> None:
    record(tmp_path / "run.mcap", 9, 100)
    content = bytearray((tmp_path / "run.mcap").read_bytes())
    content[len(content) // 2] ^= 0x40
    (tmp_path / "bad.mcap").write_bytes(content)
    with pytest.raises(UsageError, match=r"damaged at byte"):
        inject(open_recording(tmp_path / "bad.mcap"), tmp_path / "new.mcap", [], seed=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.mcap", "run.mcap"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "none.mcap: no such recording"),
        (b"not a recording at all", "none.mcap: not an MCAP recording"),
        (b"", "none.mcap: was not recorded by mars-edge"),
    ],
)
def test_what_is_no_recording_is_refused_in_one_line(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "none.mcap"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        open_recording(path)
    assert str(caught.value) == f"{tmp_path}/{message}"


def test_viewers_see_pictures_sound_decisions_and_health_with_their_schemas(tmp_path: Path) -> None:
    from mcap.reader import make_reader
    from mcap_protobuf.decoder import DecoderFactory

    _, made = record(tmp_path / "run.mcap", 10, 60)
    found: dict[str, list[Any]] = {}
    with (tmp_path / "run.mcap").open("rb") as file:
        reader = make_reader(file, decoder_factories=[DecoderFactory()], validate_crcs=True)
        for schema, channel, message, image in reader.iter_decoded_messages(topics=["/sensors/depth", "/sensors/rgb"]):
            assert schema is not None and schema.name == "foxglove.RawImage"
            assert image.timestamp.ToNanoseconds() == message.log_time
            found.setdefault(channel.topic, []).append(image)
        for schema, channel, message in reader.iter_messages():
            assert schema is not None
            if schema.encoding == "jsonschema":
                assert json.loads(schema.data)["type"] == "object"
                found.setdefault(channel.topic, []).append(json.loads(message.data))
            else:
                found.setdefault(channel.topic, [])
    assert {image.encoding for image in found["/sensors/depth"]} == {"16UC1"}
    assert {(image.encoding, image.step) for image in found["/sensors/rgb"]} == {("rgb8", 30)}
    assert found["/decision"] == [json.loads(json.dumps(decision.to_dict())) for decision in made]
    assert {entry["sensor"] for entry in found["/health"]} == set(NAMES)
    assert "/sensors/voice/audio" in found


def session(**modalities: Modality) -> Session:
    traits = {name: Traits(description="made", rate_hz=RATE_HZ, raw=True) for name in modalities}
    return Session(modalities=modalities, traits=traits, utc_offset_s=0.0)


@pytest.mark.parametrize(
    "data",
    [
        np.arange(60, dtype=np.uint16).reshape(6, 10) * 1000,
        np.arange(60, dtype=np.uint16).reshape(6, 10, 1) * 1000,
        np.arange(180, dtype=np.uint8).reshape(6, 10, 3),
        np.arange(60, dtype=np.uint8).reshape(6, 10),
        np.arange(300, dtype=np.uint8).reshape(6, 10, 5),
        np.linspace(-1, 1, 60, dtype=np.float32).reshape(6, 10),
        np.array([np.nan, np.inf, -0.0, 5e-324]),
        np.zeros((0, 4), np.float32),
        np.arange(60, dtype=">u2").reshape(6, 10)[::2, ::-1],
    ],
    ids=lambda data: f"{data.dtype}-{data.shape}",
)
def test_any_array_comes_back_as_it_was(data: np.ndarray[Any, Any]) -> None:
    content = payload.encode(data, 0, "depth")
    back = payload.decode(payload.schema_of(data), content, data.shape)
    assert back.shape == data.shape
    assert back.dtype == data.dtype.newbyteorder("=")
    assert back.tobytes() == data.astype(data.dtype.newbyteorder("=")).tobytes()


@pytest.mark.parametrize(
    "value",
    [
        Health(started_s=0.1 + 0.2, held_until_s=-math.inf, changes_s=(1e-300, 3.0)),
        SampleSeen(at_s=math.pi, dark=1.0 / 3.0),
        {"rgb": (1, 2.5, None, True), "ir": frozenset({"overflow"})},
        (math.inf, -math.inf),
    ],
)
def test_a_value_comes_back_equal_through_json(value: Any) -> None:
    assert from_plain(json.loads(json.dumps(to_plain(value), allow_nan=False))) == value


def test_a_file_can_make_nothing_but_our_own_records() -> None:
    for tag in ("os.system", "subprocess.Popen", "mars_edge.cli.main", "mars_runtime.nonsense.X"):
        with pytest.raises(UsageError, match="in a form this version does not know"):
            from_plain({"!": tag, "command": "true"})


def test_the_first_difference_names_its_place() -> None:
    assert first_difference({"a": [1, {"b": 2}]}, {"a": [1, {"b": 2}]}) is None
    assert first_difference({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}) == "a.1.b was 2, is 3"
    assert first_difference({"a": 1}, {"a": 1.0}) == "a was 1, is 1.0"
    assert first_difference({}, {"a": 1}) == "a was None, is 1"


@dataclass
class Slept:
    """A clock that only sleeping moves."""

    now_s: float = 0.0

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def deliver(path: Path, entries: list[tuple[float, Any]]) -> None:
    """A recording of one sensor, "depth": frames by number, or events, at their times."""
    depth = Modality(name="depth", kind="image", size=(2, 2), dtype="uint16", range=(0, 9))
    recorder = Recorder(path, session(depth=depth))
    for at_s, what in entries:
        sample, events = None, (what,)
        if isinstance(what, int):
            frame = Frame(data=np.full((2, 2), what, np.uint16), sequence=what)
            sample, events = Sample(frame=frame, at_s=at_s), (SampleSeen(at_s=at_s),)
        traits = Traits(description="made", rate_hz=RATE_HZ, raw=True)
        recorder.delivery("depth", Delivery(sample=sample, events=events), traits, at_s)
    recorder.close()


def test_a_channel_of_a_recording_plays_with_its_own_timing_and_failures(tmp_path: Path) -> None:
    entries = [
        (50.0, 1),
        (50.1, 2),
        (50.9, ReadFailed(at_s=50.9, gone=True, message="unplugged")),
        (52.0, 3),
        (52.5, Ended(at_s=52.5)),
    ]
    deliver(tmp_path / "run.mcap", entries)
    time_ = Slept(7.0)
    driver = open_channel(tmp_path / "run.mcap", "depth", clock=time_.clock, sleep=time_.sleep)
    assert driver.traits.description == f"recording {tmp_path}/run.mcap#depth"
    assert (driver.traits.rate_hz, driver.traits.raw, driver.traits.finite) == (RATE_HZ, True, True)
    driver.open()
    came: list[tuple[float, Any]] = []
    while True:
        try:
            frame = driver.read(0.3)
        except SourceEndedError:
            break
        except SensorError as error:
            assert str(error) == f"recording {tmp_path}/run.mcap#depth: unplugged (recorded)"
            came.append((round(time_.now_s - 7.0, 6), error.gone))
            driver.close()
            driver.open()
            continue
        if frame is not None:
            came.append((round(time_.now_s - 7.0, 6), frame.sequence))
            assert frame.last == (frame.sequence == 3)
    assert came == [(0.0, 1), (0.1, 2), (0.9, True), (2.0, 3)]


def test_a_late_reader_of_a_channel_gets_the_newest_frame_that_is_due(tmp_path: Path) -> None:
    deliver(tmp_path / "run.mcap", [(index * 0.1, index) for index in range(20)])
    time_ = Slept()
    driver = open_channel(tmp_path / "run.mcap", "depth", clock=time_.clock, sleep=time_.sleep)
    driver.open()
    time_.now_s += 1.05
    frame = driver.read(0.1)
    assert frame is not None
    assert frame.sequence == 10


def test_channels_of_one_recording_share_their_time(tmp_path: Path) -> None:
    record(tmp_path / "run.mcap", 11, 40)
    time_ = Slept()
    opened = [open_channel(tmp_path / "run.mcap", n, clock=time_.clock, sleep=time_.sleep) for n in ("rgb", "depth")]
    opened[0].open()
    time_.now_s += 0.5
    opened[1].open()
    frames = [driver.read(0.0) for driver in opened]
    assert all(frame is not None and frame.sequence is not None and frame.sequence > 3 for frame in frames)


def test_an_unknown_channel_names_those_there_are(tmp_path: Path) -> None:
    deliver(tmp_path / "run.mcap", [(0.0, 1)])
    with pytest.raises(UsageError) as caught:
        open_channel(tmp_path / "run.mcap", "thermal")
    assert str(caught.value) == f"{tmp_path}/run.mcap: has no sensor 'thermal'; its sensors: depth"


def test_sensors_alone_are_decided_on_at_any_speed_alike(tmp_path: Path) -> None:
    depth = replace(MODALITIES[1], size=(2, 2))
    deliver(tmp_path / "run.mcap", [(3.0 + index / RATE_HZ, 300 + index) for index in range(30)])
    model = manifest((depth,))
    recording = open_recording(tmp_path / "run.mcap")
    settings = settings_of(recording, FakeEngine(model))
    first, second = (list(replay(FakeEngine(model), recording, settings)) for _ in range(2))
    assert [replace(r.decision, latency_ms={}) for r in first] == [replace(r.decision, latency_ms={}) for r in second]
    assert len(first) == 30
    assert {each.decision.subset for each in first} == {"depth"}


def test_a_recording_without_a_sensor_of_the_model_is_refused(tmp_path: Path) -> None:
    deliver(tmp_path / "run.mcap", [(0.0, 1)])
    other = FakeEngine(manifest((MODALITIES[2],)))
    recording = open_recording(tmp_path / "run.mcap")
    with pytest.raises(UsageError) as caught:
        next(replay(other, recording, settings_of(recording, other)))
    assert str(caught.value) == f"{tmp_path}/run.mcap: has depth; fake takes voice"


class Calm:
    """A wild run whose sensors are well until `break_` says otherwise."""

    def __init__(self, folder: Path, **bounds: Any) -> None:
        self.said: list[str] = []
        self.run = WildRun(1)
        for feed in self.run.feeds.values():
            feed.take = self._calm(feed)  # type: ignore[method-assign]
        self.broken: set[str] = set()
        self.flight = FlightRecorder(folder, self.run.session, bounds=Bounds(**bounds), say=self.said.append)
        self.run.witnesses.append(self.flight.tick)

    def _calm(self, feed: Any) -> Callable[[], Delivery]:
        def take() -> Delivery:
            if feed._modality.name in self.broken:
                return Delivery(sample=None, events=())
            now_s = self.run.clock()
            frame = Frame(data=feed.data())
            return Delivery(sample=Sample(frame=frame, at_s=now_s), events=(SampleSeen(at_s=now_s),))

        return take

    def seconds(self, seconds: float) -> None:
        self.run.decisions(round(seconds * RATE_HZ))


def span_s(path: Path) -> float:
    ticks = [entry for entry in open_recording(path).entries() if isinstance(entry, RecordedTick)]
    return ticks[-1].readings.end_s - ticks[0].readings.end_s


def test_the_flight_recorder_keeps_10_s_before_and_5_s_after_a_fault_and_replays_exactly(tmp_path: Path) -> None:
    calm = Calm(tmp_path)
    calm.seconds(25.0)
    assert list(tmp_path.iterdir()) == []
    calm.broken.add("depth")
    calm.seconds(12.0)
    calm.flight.close()
    (path,) = tmp_path.iterdir()
    assert path.name.endswith("-depth-stale.mcap")
    assert calm.said == [f"flight recorder: {path} ({len(list(open_recording(path).entries()))} decisions)"]
    # Stale is followed by lost: one incident, 5 s from the first of them.
    assert 14.8 < span_s(path) < 16.5
    recording = open_recording(path)
    assert recording.session.note == "depth-stale"
    again = list(replay(FakeEngine(calm.run.engine.manifest), recording, settings_of(recording, calm.run.engine)))
    assert not any(each.difference for each in again)
    assert again[0].decision.seq > 100


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (("ok", "skew", "stale", "lost"), [None, None, "ir-stale", None]),
        (("ok", "recovering", "frozen"), [None, None, "ir-frozen"]),
        (("starting", "absent", "absent"), [None, "ir-absent", None]),
        (("ok", "stale", "recovering", "ok"), [None, "ir-stale", None, None]),
    ],
)
def test_a_fault_that_follows_a_quiet_reason_begins_an_incident(
    steps: tuple[str, ...], expected: list[str | None]
) -> None:
    bench = WildRun(2)
    decision = bench.decide()
    before, found = None, []
    for reason in steps:
        status: Any = "ok" if reason == "ok" else "missing"
        told = {"ir": Summary(status=status, reason=None if reason == "ok" else reason, age_s=0.1)}
        now = replace(decision, modalities=told, alarm=())
        found.append(flight._fault(before, now))
        before = now
    assert found == expected


def test_the_flight_recorder_is_bounded_in_memory_length_and_number(tmp_path: Path) -> None:
    calm = Calm(tmp_path, ring_bytes=400_000, longest_s=6.0, after_s=1.0, per_hour=2)
    calm.seconds(20.0)
    assert calm.flight._ring_bytes <= 400_000
    for _ in range(4):
        calm.broken.add("depth")
        calm.seconds(3.0)
        calm.broken.clear()
        calm.seconds(3.0)
    calm.flight.close()
    assert len(list(tmp_path.iterdir())) == 2
    assert calm.flight.suppressed >= 1
    assert all(span_s(path) < 8.0 for path in tmp_path.iterdir())


def test_every_line_is_valid_by_the_schema_that_is_shipped() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = decisions.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    run = WildRun(12, latch_s=0.5, policy=Policy(require=("rgb",), on_missing="fail_closed"), deadline_s=0.001)
    lines = [json.loads(json.dumps(d.to_dict(), allow_nan=False)) for d in [*run.decisions(200), *maps(5)]]
    for line in lines:
        validator.validate(line)
        assert set(line) == set(schema["properties"])
    assert {line["verdict"] for line in lines} >= {"reject", "map"}
    broken = {**lines[0], "late_ms": -1.0}
    assert not validator.is_valid(broken)


def maps(count: int) -> list[Any]:
    model = manifest(MODALITIES, task="segmentation", labels=("sky", "sea"), positive_label=None)
    run = WildRun(13, model=model)
    run.engine.logits = np.random.default_rng(0).normal(size=(2, 8, 8)).astype(np.float32)
    return run.decisions(count)


def test_maps_are_recorded_and_compared(tmp_path: Path) -> None:
    model = manifest(MODALITIES, task="segmentation", labels=("sky", "sea"), positive_label=None)
    logits = np.random.default_rng(0).normal(size=(2, 8, 8)).astype(np.float32)
    run = WildRun(13, model=model)
    run.engine.logits = logits
    recorder = Recorder(tmp_path / "run.mcap", run.session())
    run.witnesses.append(recorder.tick)
    run.decisions(5)
    recorder.close()
    recording = open_recording(tmp_path / "run.mcap")
    engine = FakeEngine(model)
    engine.logits = logits
    assert not any(each.difference for each in replay(engine, recording, settings_of(recording, engine)))
    # One pixel turned against another: the shares stay.
    sky, sea = (np.argwhere(logits.argmax(0) == index)[0] for index in (0, 1))
    engine.logits = logits.copy()
    engine.logits[:, *sky], engine.logits[:, *sea] = logits[:, *sea], logits[:, *sky]
    found = [each.difference for each in replay(engine, recording, settings_of(recording, engine))]
    assert all(each is not None and each.startswith("map_crc32 was ") for each in found)
