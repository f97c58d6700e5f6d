"""The command line of the services, and the sinks it asks for."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from mars_edge.errors import UsageError
from mars_edge.manifest import Manifest
from mars_edge.options import say
from mars_runtime.services import access, notify
from mars_runtime.services.metrics import Metrics
from mars_runtime.services.mqtt import Mqtt, broker_of
from mars_runtime.services.site import STALLED_S, Site, Subject
from mars_runtime.sinks import Sink
from mars_runtime.stream import Stream


def add_service_options(parser: argparse.ArgumentParser) -> None:
    """--serve, --token and --mqtt."""
    add = parser.add_argument
    add(
        "--serve",
        nargs="?",
        const=access.DEFAULT,
        metavar="[HOST:]PORT",
        help=f"live page, /metrics, /healthz; default {access.DEFAULT}; beyond this machine a token is asked for",
    )
    add("--token", metavar="TEXT", help="what the page asks for; default: a new one where others can reach it")
    add("--mqtt", metavar="URL", help="publish every decision: mqtt://[USER@]HOST[:PORT]/TOPIC, or mqtts://")


def check(options: argparse.Namespace) -> None:
    """Passes when the options can be followed, before anything is opened.

    Raises:
        UsageError: says which cannot.
    """
    if options.token is not None and options.serve is None:
        raise UsageError("--token has no meaning without --serve")
    if options.serve is not None:
        access.token_for(access.address_of(options.serve), options.token)
    if options.mqtt is not None:
        broker_of(options.mqtt)


def services(options: argparse.Namespace, stream: Stream, manifest: Manifest) -> list[Sink]:
    """The sinks that were asked for, listening; the service manager's when it started this process.

    Raises:
        UsageError: an address that cannot be used, or a package that is not installed.
    """
    sinks: list[Sink] = []
    try:
        broker = None
        if options.mqtt is not None:
            broker = Mqtt(broker_of(options.mqtt), say=lambda line: say(line, options))
            sinks.append(broker)
        if options.serve is not None:
            sinks.append(_site(options, stream, _metrics(stream, manifest, broker)))
    except UsageError:
        for sink in sinks:
            sink.close()
        raise
    notifier = notify.from_environment()
    return sinks if notifier is None else [*sinks, notifier]


def simulated(stream: Stream) -> bool:
    """Whether every sensor is the rig's: only those may be broken from a page."""
    return all(traits.simulated for traits in stream.traits.values())


def _site(options: argparse.Namespace, stream: Stream, metrics: Metrics | None) -> Site:
    address = access.address_of(options.serve)
    token = access.token_for(address, options.token)
    breakable = simulated(stream)
    truth: Callable[[], str] | None = (lambda: stream.world.species_now()) if breakable else None
    subject = Subject(
        manifest=stream.manifest,
        sensors={name: traits.description for name, traits in stream.traits.items()},
        latest=stream.latest,
        inject=stream.inject if breakable else None,
        mend=stream.clear_faults if breakable else None,
        truth=truth,
    )
    # A stream that was asked to decide rarely is well between its decisions.
    stalled_s = STALLED_S if options.rate_hz is None else max(STALLED_S, 3.0 / options.rate_hz)
    site = Site(address, subject, token=token, metrics=metrics, stalled_s=stalled_s)
    shown = site.url if token is None or options.token is not None else f"{site.url}?token={token}"
    print(f"mars-edge: live page at {shown}", file=sys.stderr, flush=True)
    return site


def _metrics(stream: Stream, manifest: Manifest, broker: Mqtt | None) -> Metrics | None:
    undelivered = None if broker is None else (lambda: broker.dropped)
    try:
        return Metrics(manifest, counts=stream.counts, undelivered=undelivered)
    except UsageError:
        # /metrics says what is missing; the page does not depend on it.
        return None
