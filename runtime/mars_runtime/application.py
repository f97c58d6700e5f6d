"""`mars_runtime.open`: the runtime in an application, in ten lines.

Nothing heavy is imported before it is called: every module of the runtime imports this package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mars_runtime.region import RegionSettings
    from mars_runtime.sensors.driver import Driver
    from mars_runtime.stream import Stream


def open_stream(
    model: Path | str,
    sensors: Mapping[str, str | Driver] | None = None,
    *,
    rate_hz: float | None = None,
    newest: bool = False,
    deadline_s: float | None = None,
    require: Sequence[str] = (),
    on_missing: str | None = None,
    latch_s: float = 0.0,
    unsafe: bool = False,
    health: Mapping[str, Mapping[str, Any]] | None = None,
    region: RegionSettings | None = None,
    faults: Sequence[str] = (),
    live_faults: bool = False,
    seed: int = 0,
    record: Path | str | None = None,
    flight_recorder: Path | str | None = None,
    threads: int | None = None,
    engine: str | None = None,
) -> Stream:
    """A stream of decisions: `with` or `async with` runs its sensors, `for` or `async for` gives the decisions.

    Args:
        model: a .pte or .onnx file, or the name of a bundled model.
        sensors: by name, a source as after `--sensor NAME=`, or an object with `traits`, `open`, `read` and `close`;
            None is the simulated rig.
        rate_hz, newest, deadline_s, latch_s, health, region: see `pipeline.Settings`.
        require, on_missing, unsafe: as on the command line; without `unsafe` only stricter than the model's policy.
        faults: as after `--inject`, e.g. "depth=off@3s+4s".
        live_faults: `Stream.inject` may be called.
        seed: of the simulated rig and the faults.
        record: file that `mars-edge replay` decides on again.
        flight_recorder: folder for what led to faults.
        threads, engine: see `engines.open_engine`.

    Raises:
        UsageError: no such file, sensor, source, fault or setting.
        ModelFileError: the model file is damaged.
        EngineError: no engine is there for it, or its self-test failed.
    """
    from mars_edge.errors import UsageError
    from mars_edge.faults import parse_fault
    from mars_runtime import policy
    from mars_runtime.engines import open_engine
    from mars_runtime.pipeline import Settings
    from mars_runtime.sensors.source import SensorSpec
    from mars_runtime.stream import Stream, default_specs

    opened = open_engine(model, threads=threads, engine=engine)
    try:
        manifest = opened.manifest
        given = dict(sensors) if sensors is not None else {spec.name: spec.source for spec in default_specs(manifest)}
        if not given:
            raise UsageError(f"sensors is empty; {manifest.name} takes: {', '.join(manifest.names)}")
        for name, each in given.items():
            if not isinstance(each, str | int) and not hasattr(each, "read"):
                raise UsageError(f"sensors[{name!r}] is {each!r}, expected a source such as 'sim:' or 0, or a driver")
        # 0 is the first camera, as on the command line.
        given = {name: str(each) if isinstance(each, int) else each for name, each in given.items()}
        settings = Settings(
            rate_hz=rate_hz,
            newest=newest,
            deadline_s=deadline_s,
            latch_s=latch_s,
            policy=policy.stricter(
                manifest.policy, manifest.names, require=require, on_missing=on_missing, unsafe=unsafe
            ),
            allow_uncertified=unsafe,
            health=health or {},
            region=region,
        )
        if flight_recorder is not None and not str(flight_recorder):
            raise UsageError("flight_recorder is '', which names no folder")
        witness = None
        if record is not None or flight_recorder is not None:
            from mars_runtime.recording.witness import Witness

            witness = Witness(
                manifest,
                settings,
                lambda: stream.traits,
                record=None if record is None else Path(record),
                flight_recorder=None if flight_recorder is None else Path(flight_recorder),
            )

        def close() -> None:
            opened.close()
            if witness is not None:
                witness.close()

        stream = Stream(
            opened,
            [SensorSpec(name=name, source=each) for name, each in given.items() if isinstance(each, str)],
            settings,
            drivers={name: each for name, each in given.items() if not isinstance(each, str)},
            faults=[parse_fault(text, list(given)) for text in faults],
            live_faults=live_faults,
            seed=seed,
            witness=witness,
            on_close=close,
        )
    except BaseException:
        opened.close()
        raise
    return stream
