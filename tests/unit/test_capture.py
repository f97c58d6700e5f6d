"""The capture thread's body without a thread, the mailbox with many, and the facts about samples."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mars_edge.errors import SensorError
from mars_runtime.capture import Backoff, Capture, Connection, Doorbell, Mailbox, Sample
from mars_runtime.facts import FactFinder
from mars_runtime.health import Ended, ReadFailed, SampleSeen
from mars_runtime.sensors.driver import Frame, SourceEndedError, Traits

TRAITS = Traits(description="script", rate_hz=10.0)


def frame(value: int = 0, **rest: Any) -> Frame:
    return Frame(data=np.full((8, 8), value, np.uint8), **rest)


def sample(value: int) -> Sample:
    return Sample(frame=frame(value % 256), at_s=float(value))


def seen(at_s: float) -> SampleSeen:
    return SampleSeen(at_s=at_s)


class Clock:
    """Made-up time that also serves as the thread's stop event."""

    def __init__(self, until_s: float = 1e9) -> None:
        self.now_s = 0.0
        self.until_s = until_s
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def is_set(self) -> bool:
        return self.now_s >= self.until_s

    def wait(self, timeout: float) -> bool:
        self.waits.append(timeout)
        self.now_s += timeout
        return self.is_set()


class Script:
    """A driver that plays a list of results, one per read; the clock advances by a period each time."""

    traits = TRAITS

    def __init__(self, clock: Clock, reads: Callable[[float], object], opens: Callable[[float], object]) -> None:
        self.clock = clock
        self.reads = reads
        self.opens = opens
        self.open_times_s: list[float] = []
        self.close_count = 0

    def open(self) -> None:
        self.open_times_s.append(self.clock())
        result = self.opens(self.clock())
        if isinstance(result, Exception):
            raise result

    def read(self, timeout_s: float) -> Frame | None:
        result = self.reads(self.clock())
        self.clock.now_s += 0.1
        if isinstance(result, Exception):
            raise result
        assert result is None or isinstance(result, Frame)
        return result

    def close(self) -> None:
        self.close_count += 1


def play(
    reads: Callable[[float], object], *, opens: Callable[[float], object] = lambda t: None, until_s: float = 10.0
) -> tuple[Script, Mailbox, Clock]:
    clock = Clock(until_s)
    driver, mailbox = Script(clock, reads, opens), Mailbox(Doorbell())
    Connection(
        driver,
        mailbox,
        FactFinder("colour"),
        clock,
        lost_after_s=lambda traits: 10.0 * traits.period_s,
        clock=clock,
        uniform=lambda: 0.5,
    ).run()
    return driver, mailbox, clock


def test_a_frame_is_never_handed_out_twice() -> None:
    mailbox = Mailbox(Doorbell())
    mailbox.put(sample(1), seen(1.0))
    assert mailbox.take().sample is not None
    assert mailbox.take().sample is None


def test_a_newer_frame_replaces_an_older_one_and_the_loss_is_counted() -> None:
    mailbox = Mailbox(Doorbell())
    for value in range(5):
        mailbox.put(sample(value), seen(value))
    delivery = mailbox.take()
    assert delivery.sample is not None
    assert delivery.sample.at_s == 4.0
    assert [event.at_s for event in delivery.events] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert (mailbox.received, mailbox.dropped) == (5, 4)


def test_what_a_source_says_it_lost_is_counted_even_where_the_sample_is_replaced() -> None:
    mailbox = Mailbox(Doorbell())
    for flags in (frozenset({"overflow"}), frozenset(), frozenset({"overflow"})):
        mailbox.put(Sample(frame=frame(flags=flags), at_s=1.0), seen(1.0))
    mailbox.put(None, seen(2.0))
    assert mailbox.overflows == 2


def test_every_frame_is_handed_out_once_or_counted_as_dropped_across_threads() -> None:
    mailbox, taken, total = Mailbox(Doorbell()), [], 3000

    def write() -> None:
        for value in range(total):
            mailbox.put(sample(value), seen(value))

    writer = threading.Thread(target=write)
    writer.start()
    while writer.is_alive() or mailbox.waiting:
        delivery = mailbox.take()
        if delivery.sample is not None:
            taken.append(delivery.sample.at_s)
    writer.join()
    assert taken == sorted(set(taken))
    assert len(taken) + mailbox.dropped == total


def test_the_exception_that_ends_a_capture_thread_reaches_the_reader() -> None:
    class Buggy:
        traits = TRAITS

        def open(self) -> None:
            raise ZeroDivisionError("a bug in a driver")

        def read(self, timeout_s: float) -> Frame | None:
            raise AssertionError

        def close(self) -> None:
            pass

    doorbell = Doorbell()
    capture = Capture("x", Buggy(), doorbell, finder=FactFinder("colour"), lost_after_s=lambda traits: 1.0)
    capture.start()
    assert doorbell.wait(5.0)
    with pytest.raises(ZeroDivisionError, match="a bug in a driver"):
        capture.take()
    assert capture.join(5.0)


def test_a_hung_driver_does_not_hold_up_the_shutdown() -> None:
    release = threading.Event()

    class Hung:
        traits = TRAITS

        def open(self) -> None:
            pass

        def read(self, timeout_s: float) -> Frame | None:
            release.wait()
            return None

        def close(self) -> None:
            pass

    capture = Capture("x", Hung(), Doorbell(), finder=FactFinder("colour"), lost_after_s=lambda traits: 1.0)
    capture.start()
    capture.request_stop()
    begin_s = time.monotonic()
    assert not capture.join(0.05)
    assert time.monotonic() - begin_s < 1.0
    release.set()
    assert capture.join(5.0)


def test_a_doorbell_remembers_one_ring() -> None:
    doorbell = Doorbell()
    doorbell.ring()
    doorbell.ring()
    assert doorbell.wait(0.0)
    assert not doorbell.wait(0.0)


def test_back_off_doubles_from_one_second_to_thirty() -> None:
    backoff, delays_s = Backoff(), []
    for _ in range(8):
        delays_s.append(backoff.delay_s(lambda: 0.5))
        backoff = backoff.next()
    assert delays_s == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert Backoff(attempts=9999).delay_s(lambda: 1.0) == pytest.approx(36.0)
    assert Backoff().delay_s(lambda: 0.0) == pytest.approx(0.8)


def test_a_device_that_cannot_be_opened_is_tried_again_after_1_2_4_seconds() -> None:
    error = SensorError("no such device", gone=True)
    driver, mailbox, _ = play(lambda t: None, opens=lambda t: error, until_s=100.0)
    assert driver.open_times_s == [0.0, 1.0, 3.0, 7.0, 15.0, 31.0, 61.0, 91.0]
    events = mailbox.take().events
    assert len(events) == 8
    assert all(isinstance(event, ReadFailed) and event.gone for event in events)


def test_a_vanished_device_is_reopened_and_its_back_off_starts_anew_after_a_frame() -> None:
    def reads(t_s: float) -> object:
        return SensorError("unplugged", gone=True) if 2.0 <= t_s < 2.05 or 20.0 <= t_s < 20.05 else frame()

    driver, _, _ = play(reads, until_s=30.0)
    assert driver.open_times_s == [pytest.approx(t) for t in (0.0, 3.1, 21.1)]


@pytest.mark.parametrize(("errors", "opens"), [(2, 1), (3, 4)])
def test_three_errors_in_a_row_reopen_the_device_but_two_do_not(errors: int, opens: int) -> None:
    results = itertools.cycle([*[SensorError("no frame")] * errors, frame()])
    driver, mailbox, _ = play(lambda t: next(results), until_s=5.0)
    assert len(driver.open_times_s) == opens
    assert any(isinstance(event, SampleSeen) for event in mailbox.take().events)


def test_silence_reopens_the_device_and_then_listens_longer_each_time() -> None:
    driver, _, _ = play(lambda t: None, until_s=20.0)
    # 10 periods, then 2, 4, 8 s of listening; never closed in between.
    assert driver.open_times_s == [pytest.approx(t, abs=0.25) for t in (0.0, 1.1, 3.2, 7.3, 15.4)]


def test_a_silent_device_is_heard_as_soon_as_it_speaks_again() -> None:
    _, mailbox, _ = play(lambda t: None if 1.0 <= t < 8.0 else frame(), until_s=9.0)
    times_s = [event.at_s for event in mailbox.take().events if isinstance(event, SampleSeen)]
    assert min(t for t in times_s if t > 2.0) < 8.35


def test_the_end_of_a_file_ends_the_thread_with_its_last_sample_in_the_same_delivery() -> None:
    driver, mailbox, clock = play(lambda t: frame(int(t * 10), last=t >= 0.45))
    assert clock.now_s < 1.0
    delivery = mailbox.take()
    assert delivery.sample is not None
    assert delivery.sample.frame.last
    assert isinstance(delivery.events[-1], Ended)
    assert driver.close_count >= 1


def test_a_source_read_past_its_end_ends_the_thread() -> None:
    _, mailbox, clock = play(lambda t: SourceEndedError("at its end"))
    assert mailbox.take().events == (Ended(at_s=pytest.approx(0.1)),)
    assert clock.now_s < 1.0


def facts(first: Frame, second: Frame, *, depth: bool = False, **traits: Any) -> SampleSeen:
    finder = FactFinder("depth" if depth else "colour")
    about = Traits(description="x", rate_hz=10.0, **traits)
    finder.facts(first, about, 0.0)
    return finder.facts(second, about, 1.0)


@pytest.mark.parametrize(
    ("first", "second", "traits", "repeated"),
    [
        (frame(1), frame(1), {"raw": True}, True),
        (frame(1), frame(2), {"raw": True}, False),
        (frame(1), frame(1), {"raw": False}, False),
        (frame(1), frame(1), {"raw": True, "static": True}, False),
        (frame(1, sequence=4), frame(2, sequence=4), {}, True),
        (frame(1, sequence=4), frame(2, sequence=5), {"raw": True}, False),
    ],
)
def test_repetition_is_told_by_payload_of_raw_sensors_and_by_frame_number(
    first: Frame, second: Frame, traits: dict[str, Any], repeated: bool
) -> None:
    assert facts(first, second, **traits).repeated is repeated


def test_a_still_scene_seen_by_a_noisy_raw_sensor_is_not_frozen() -> None:
    generator, finder = np.random.default_rng(0), FactFinder("colour")
    scene = np.full((64, 64), 100.0)
    about = Traits(description="x", rate_hz=15.0, raw=True)
    for index in range(200):
        noisy = np.clip(scene + generator.normal(0.0, 0.7, scene.shape), 0, 255).astype(np.uint8)
        assert not finder.facts(Frame(data=noisy), about, float(index)).repeated


def test_pixel_shares_are_the_plain_means() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (40, 40, 3), np.uint8)
    fact = facts(frame(0), Frame(data=picture))
    sparse = picture[::4, ::4]
    assert fact.dark == pytest.approx(np.mean(sparse <= 25))
    assert fact.saturated == pytest.approx(np.mean(sparse >= 250))
    depth = np.full((40, 40), 900, np.uint16)
    depth[:28] = 0
    fact = facts(frame(0), Frame(data=depth), depth=True)
    assert fact.invalid_depth == pytest.approx(np.mean(depth[::4, ::4] == 0))
    assert (fact.dark, fact.saturated) == (0.0, 0.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_unusable(value: float) -> None:
    sound = np.zeros(100, np.float32)
    assert facts(frame(0), Frame(data=sound)).usable
    sound[50] = value
    assert not facts(frame(0), Frame(data=sound)).usable
