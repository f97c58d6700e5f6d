"""Prometheus metrics of a stream: what was decided, on which sensors, how fast; text at /metrics.

Design decision: the exposition is the client library's (`prometheus_client`, extra "metrics"); without it everything
else works and /metrics says what to install.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mars_edge.errors import UsageError
from mars_edge.manifest import Manifest
from mars_runtime.capture import Counts
from mars_runtime.decision import Decision

_LATENCY_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_AGE_S = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_STATES = ("ok", "degraded", "missing")


class Metrics:
    """A sink that counts.

    `counts` is asked for what the capture threads counted, `undelivered` for messages that were dropped, when read.

    Raises:
        UsageError: the client library is not installed.
    """

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(
        self,
        manifest: Manifest,
        *,
        counts: Callable[[], Mapping[str, Counts]] = dict,
        undelivered: Callable[[], int] | None = None,
    ) -> None:
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
        except ImportError as error:
            raise UsageError("/metrics needs a package: pip install 'mars-edge[metrics]'") from error
        self._registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self._registry}
        self._decisions = Counter("mars_edge_decisions", "Decisions made.", ["verdict", "subset"], **own)
        self._sensor = Gauge("mars_edge_sensor_state", "1 for the state the sensor is in.", ["sensor", "state"], **own)
        self._used = Counter(
            "mars_edge_sensor_decisions", "Decisions made while the sensor was so.", ["sensor", "state"], **own
        )
        self._missing = Counter(
            "mars_edge_sensor_missing", "Times a sensor went missing, by reason.", ["sensor", "reason"], **own
        )
        self._latency = Histogram(
            "mars_edge_latency_seconds", "Time of one stage of a decision.", ["stage"], buckets=_LATENCY_S, **own
        )
        self._age = Histogram("mars_edge_age_seconds", "Age of the oldest sample of a decision.", buckets=_AGE_S, **own)
        self._sensor_age = Histogram(
            "mars_edge_sensor_age_seconds", "Age of the sensor's newest sample.", ["sensor"], buckets=_AGE_S, **own
        )
        self._late = Counter("mars_edge_late_decisions", "Decisions made after their deadline.", **own)
        self._skipped = Counter("mars_edge_skipped_periods", "Periods that passed without a decision.", **own)
        self._alarm = Gauge("mars_edge_downgrade_alarm", "Sensors that liveness depends on and that are gone.", **own)
        info = Gauge("mars_edge_model_info", "The model that decides.", ["name", "precision"], **own)
        info.labels(manifest.name, manifest.precision).set(1)
        self._before: dict[str, str] = {}
        self._registry.register(_Counted(counts, undelivered))

    def write(self, decision: Decision) -> None:
        """Count one decision."""
        self._decisions.labels(decision.outcome.verdict, decision.subset).inc()
        for stage, value in decision.latency_ms.items():
            self._latency.labels(stage).observe(value / 1000.0)
        if decision.age_ms is not None:
            self._age.observe(decision.age_ms / 1000.0)
        self._late.inc(decision.late_ms > 0.0)
        self._skipped.inc(decision.skipped)
        self._alarm.set(len(decision.alarm))
        for name, summary in decision.modalities.items():
            self._sensor_state(name, summary.status, summary.reason)
            if summary.age_s is not None:
                self._sensor_age.labels(name).observe(summary.age_s)

    def _sensor_state(self, name: str, status: str, reason: str | None) -> None:
        self._used.labels(name, status).inc()
        if status == "missing" and self._before.get(name) != "missing":
            self._missing.labels(name, reason or "unknown").inc()
        if self._before.get(name) == status:
            return
        self._before[name] = status
        for state in _STATES:
            self._sensor.labels(name, state).set(state == status)

    def close(self) -> None:
        """Nothing to do: the numbers stay readable."""

    def text(self) -> bytes:
        """The exposition format, version 0.0.4."""
        from prometheus_client import generate_latest

        return bytes(generate_latest(self._registry))


class _Counted:
    """What others counted, as a collector of the client library, which asks for `collect`."""

    def __init__(self, counts: Callable[[], Mapping[str, Counts]], undelivered: Callable[[], int] | None) -> None:
        self._counts = counts
        self._undelivered = undelivered

    def collect(self) -> Iterator[Any]:
        """The families as they stand now."""
        from prometheus_client.metrics_core import CounterMetricFamily

        families = {
            "received": CounterMetricFamily("mars_edge_samples", "Samples that arrived.", labels=["sensor"]),
            "dropped": CounterMetricFamily(
                "mars_edge_dropped_samples", "Samples replaced by a newer one before a decision.", labels=["sensor"]
            ),
            "reconnects": CounterMetricFamily(
                "mars_edge_reconnects", "Times the device was opened again.", labels=["sensor"]
            ),
            "overflows": CounterMetricFamily(
                "mars_edge_overflows", "Samples before which the source itself lost something.", labels=["sensor"]
            ),
        }
        for name, counts in self._counts().items():
            for field, family in families.items():
                family.add_metric([name], getattr(counts, field))
        yield from families.values()
        if self._undelivered is not None:
            yield CounterMetricFamily(
                "mars_edge_mqtt_dropped_messages", "Decisions no broker was told of.", value=self._undelivered()
            )
