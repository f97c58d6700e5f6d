"""What was measured, as one JSON object, and that object as text and as Markdown.

The object is the only source: text and Markdown show nothing that is not in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import resources
from typing import Any

from mars_edge import __version__
from mars_edge.manifest import Manifest
from mars_edge.terminal import printable
from mars_runtime.profiling import live
from mars_runtime.profiling.comparison import SCHEMA_VERSION
from mars_runtime.text import NOTHING, amount, fact, percent, sentence, table

KIND = "mars-edge profile"


def artifact(file: str, data: bytes, manifest: Manifest) -> dict[str, Any]:
    """What was profiled: identity, size, precision and what one decision with every sensor costs."""
    whole = manifest.subset_costs.get("+".join(manifest.names))
    return {
        "name": manifest.name,
        "file": file,
        "format": file.rpartition(".")[2],
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "precision": manifest.precision,
        "target": manifest.target,
        "weight_bytes": sum(cost.weight_bytes for cost in manifest.costs.values()) if manifest.costs else None,
        "parameters": manifest.parameters,
        "macs": None if whole is None else whole.macs,
        "delegate_share": _delegate_shares(manifest),
        "experts": manifest.experts,
        "active_experts": manifest.active_experts,
    }


def _delegate_shares(manifest: Manifest) -> dict[str, float] | None:
    """By method the share of its work that the delegate takes over, as the exporter measured it; None if it did not."""
    coverage = (manifest.parity or {}).get("coverage")
    if not isinstance(coverage, Mapping) or not coverage:
        return None
    return {str(method): float(part["share"]) for method, part in coverage.items()}


def head() -> dict[str, Any]:
    """Kind, versions and time of a report that is made now."""
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return {"kind": KIND, "schema": SCHEMA_VERSION, "tool_version": __version__, "t_utc": now}


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a report, as shipped in the package."""
    text = resources.files("mars_runtime").joinpath(f"schema/profile.v{SCHEMA_VERSION}.json").read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def as_text(report: Mapping[str, Any]) -> list[str]:
    """Lines of at most 100 columns."""
    lines = _identity(report)
    lines += ["", "decision, ms, by what is present"]
    lines += table(_ROW_HEADER, [_row_cells(row) for row in report["rows"]], align="<>>>>>>>>")
    lines += ["", _intervals_title(report)]
    lines += table(_INTERVAL_HEADER, [_interval_cells(row) for row in report["rows"]], align="<>>>")
    lines += ["", "its stages, p50 in ms"]
    lines += table(*_stage_table(report["rows"]), align="<" + ">" * len(report["rows"]))
    lines += _beside_lines(report) + _sustained_lines(report) + live.lines(report["live"]) + _start_lines(report)
    lines += _comparison_lines(report) + _objective_lines(report) + _operator_lines(report)
    return lines


def as_markdown(report: Mapping[str, Any]) -> str:
    """The same numbers as tables."""
    parts = [f"# Profile of {printable(report['artifact']['file'])}", ""]
    parts += [f"- {key}: {printable(value)}" for key, value in _facts(report)]
    parts += ["", *_markdown_table(_ROW_HEADER, [_row_cells(row) for row in report["rows"]])]
    parts += ["", f"{_intervals_title(report).capitalize()}:", ""]
    parts += _markdown_table(_INTERVAL_HEADER, [_interval_cells(row) for row in report["rows"]])
    parts += ["", "Stages, p50 in ms:", "", *_markdown_table(*_stage_table(report["rows"]))]
    rest = (_start_lines, _comparison_lines, _objective_lines, _operator_lines)
    own = [_beside_lines(report), _sustained_lines(report), live.lines(report["live"])]
    for lines in [*own, *(make(report) for make in rest)]:
        if lines:
            parts += ["", "```", *(line for line in lines if line), "```"]
    return "\n".join(parts) + "\n"


_ROW_HEADER = ("present", "p50", "p90", "p95", "p99", "max", "missed", "engine", "quality")
_INTERVAL_HEADER = ("present", "p50", "p90", "p99")


def _row_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    total = row["stages"]["total"]
    outside = row["stages"]["outside_engine"]["p50_ms"]
    quality = row["quality"]
    words = NOTHING if quality is None else f"{quality['metric']} {percent(quality['value'])}"
    if row["certified"] is False:
        words += " abstains"
    return (
        row["subset"],
        *(_ms(total[f"{name}_ms"]) for name in ("p50", "p90", "p95", "p99", "max")),
        f"{percent(row['misses'] / total['n'])} %",
        f"{100.0 * (1.0 - outside / total['p50_ms']):.0f} %",
        words,
    )


def _interval_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    total = row["stages"]["total"]
    return (row["subset"], *(_interval(total[f"{name}_interval_ms"]) for name in _INTERVAL_HEADER[1:]))


def _intervals_title(report: Mapping[str, Any]) -> str:
    return f"where a process has its quantiles, 95 % (of the {report['settings']['processes']} measured)"


def _stage_table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Stages down, subsets across; a stage that a subset does not run is "-"."""
    stages: dict[str, None] = {}
    for row in sorted(rows, key=lambda row: -len(row["stages"])):
        stages |= dict.fromkeys(row["stages"])
    header = ["stage", *(row["subset"] for row in rows)]
    cells = [
        [stage, *(_ms(row["stages"][stage]["p50_ms"]) if stage in row["stages"] else NOTHING for row in rows)]
        for stage in stages
    ]
    return header, cells


def _identity(report: Mapping[str, Any]) -> list[str]:
    return [line for key, value in _facts(report) for line in fact(key, value)]


def _facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    about, device, settings, timer = (report[key] for key in ("artifact", "device", "settings", "timer"))
    rounds = report["rows"][-1]["stages"]["total"]["n"]
    size, macs, weights = amount(about["bytes"], "B"), amount(about["macs"]), amount(about["parameters"])
    threads = f"{settings['threads']}{', its own choice' if settings['threads_chosen'] else ''}"
    pace = _pace(settings["pause_ms"])
    return [
        ("artifact", f"{about['file']}, {about['precision']}, {size}, sha256 {about['sha256'][:12]}, "
                     f"{weights} parameters, {macs} MACs"),
        ("delegate", _delegated(about["delegate_share"])),
        ("device", _device(device)),
        ("engine", f"{settings['engine']} ({settings['engine_version']}), threads {threads}"),
        ("run", f"{settings['mode']}: {rounds} rounds in {settings['processes']} processes, "
                f"{report['elapsed_s']:.0f} s, {report['t_utc']}; {pace}"),
        ("input", "; ".join(f"{name}: {text}" for name, text in settings["inputs"].items())),
        ("deadline", f"{settings['rate_hz']:g} Hz: {1000.0 / settings['rate_hz']:.1f} ms"),
        ("timer", f"{timer['asked_ms']:g} ms waited are {timer['measured_ms']:.3f} ms measured; "
                  f"a reading costs {timer['overhead_ns']:.0f} ns"),
        ("conditions", _conditions(report["conditions"])),
    ]  # fmt: skip


def _pace(pause_ms: float) -> str:
    return f"{pause_ms:g} ms before each decision" if pause_ms else "back to back: caches are warmer than in a stream"


def _device(device: Mapping[str, Any]) -> str:
    parts = [device.get("board"), device.get("processor")]
    named = list(dict.fromkeys(str(part) for part in parts if part))
    return ", ".join([*named, f"{device.get('cores') or '?'} cores", f"governor {device.get('governor') or 'unknown'}",
                      f"power mode {device.get('power_mode') or 'unknown'}",
                      f"kernel {device.get('kernel') or 'unknown'}"])  # fmt: skip


def _conditions(conditions: Mapping[str, Any]) -> str:
    def one(now: Mapping[str, Any]) -> str:
        hottest = now.get("hottest_c")
        return "unknown" if hottest is None else f"{hottest:.0f} C"

    slowed = conditions["slowed_down"]
    words = "unknown" if slowed is None else "yes" if slowed else "no"
    load = _or_unknown(conditions["start"].get("load"), "").strip()
    temperatures = ", ".join(f"{when} {one(conditions[when])}" for when in ("start", "peak", "end"))
    lost = f"preempted {conditions['preempted']} times"
    return f"temperature {temperatures}; throttled: {words}; load {load} at the start; {lost}"


def _beside_lines(report: Mapping[str, Any]) -> list[str]:
    beside = report["beside"]
    if beside is None:
        if report["artifact"]["precision"] != "int8":
            return []
        return [
            "",
            *sentence(
                "No other precision was measured beside it (NAME.fp32.SUFFIX of the same checkpoint, or "
                "--beside FILE): which one is faster here is not known."
            ),
        ]
    about = beside["artifact"]
    cells = [
        (
            r["subset"],
            _ms(r["p50_ms"]),
            _ms(r["beside_p50_ms"]),
            f"{r['ratio']:.2f}",
            _interval(r["interval"]),
            r["verdict"],
        )
        for r in beside["ratios"]
    ]
    this = report["artifact"]
    title = f"{this['file']} ({this['precision']}) beside {about['file']} ({about['precision']}), in turn"
    header = ("present", "this", "beside", "ratio", "95 %, all rows", "this is")
    return ["", *sentence(title), *table(header, cells, align="<>>>><")]


def _sustained_lines(report: Mapping[str, Any]) -> list[str]:
    sustained = report["sustained"]
    if sustained is None:
        return []
    first, last = sustained["first_minute_p50_ms"], sustained["last_minute_p50_ms"]
    return ["", f"sustained: p50 {_ms(first)} ms in the first minute, {_ms(last)} ms in the last ({last / first:.2f})"]


def _start_lines(report: Mapping[str, Any]) -> list[str]:
    lines = []
    load, memory = report["load"], report["memory"]
    if load is not None:
        model = f"{load['model_warm_ms']:.1f} ms warm, {_or_unknown(load['model_cold_ms'])} cold"
        ready, first = load["process_to_ready_ms"], load["first_inference_ms"]
        lines += sentence(f"start: process to ready {ready:.0f} ms, model {model}, first decision {first:.2f} ms")
    if memory is not None:
        sizes = ", ".join(
            f"{when} {_or_unknown(memory[when]['rss_mb'], 'MB')}" for when in ("baseline", "loaded", "peak")
        )
        grown, pss = _or_unknown(memory["grown_mb"], "MB"), _or_unknown(memory["peak"]["pss_mb"], "MB")
        lines += sentence(
            f"memory (RSS): {sizes}; {grown} more over {memory['grown_over']} decisions; PSS at the end {pss}"
        )
    return ["", *lines] if lines else []


def _comparison_lines(report: Mapping[str, Any]) -> list[str]:
    compared = report["comparison"]
    if compared is None:
        return []
    cells = [
        (
            r["subset"],
            _ms(r["base_p50_ms"]),
            _ms(r["p50_ms"]),
            f"{r['ratio']:.2f}",
            _interval(r["interval"]),
            r["verdict"],
            f"{r['p90_ratio']:.2f}",
            r["p90_verdict"],
        )
        for r in compared["rows"]
    ]
    title = f"against {compared['base']['file']} of {compared['base']['t_utc']}"
    how = "compared by force" if compared["forced"] else "not compared"
    forced = [line for why in compared["unlike"] for line in sentence(f"UNLIKE, {how}: {why}")]
    header = ("present", "base p50", "this", "ratio", "bounds", "this is", "p90 ratio", "this is")
    return ["", *sentence(title), *forced, *table(header, cells, align="<>>>><><")]


def _objective_lines(report: Mapping[str, Any]) -> list[str]:
    found = report["objectives"]
    words = [f"objective {'met' if one['met'] else 'MISSED'}: {one['text']}: {one['found']}" for one in found]
    return ["", *(line for text in words for line in sentence(text))] if found else []


def _operator_lines(report: Mapping[str, Any]) -> list[str]:
    operators = report["operators"]
    if operators is None:
        return []
    title = sentence(f"operators: {operators['reason']}" if operators.get("reason") else _operator_title(operators))
    rows = [tuple(str(cell) for cell in row) for row in operators["rows"]]
    return [
        "",
        *title,
        *(table(operators["header"], rows, align="<" + ">" * (len(operators["header"]) - 1)) if rows else []),
    ]


def _operator_title(operators: Mapping[str, Any]) -> str:
    said = f"operators of one decision, us, by {operators['source']} over {operators['runs']} runs"
    delegate = operators["delegate"]
    if delegate is None:
        return said
    count = f"{delegate['operators_on_delegate']} of {delegate['operators']} operators"
    return f"{said}; {count} and {100.0 * delegate['time_share']:.0f} % of the time in calls of the delegate"


def _delegated(shares: Mapping[str, float] | None) -> str:
    if shares is None:
        return "not recorded"
    partly = [f"{method} {100.0 * share:.0f} %" for method, share in shares.items() if share < 1.0]
    return (
        f"{len(shares) - len(partly)} of {len(shares)} methods wholly{': but ' + ', '.join(partly) if partly else ''}"
    )


def _ms(value: float) -> str:
    return f"{value:.3f}" if value < 10.0 else f"{value:.1f}"


def _interval(ends: Sequence[float | None]) -> str:
    low, high = ends
    if low is None and high is None:
        return "not known"
    return f"{'?' if low is None else _ms(low)} to {'?' if high is None else _ms(high)}"


def _or_unknown(value: float | None, unit: str = "ms") -> str:
    return "unknown" if value is None else f"{value:.1f} {unit}"


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    escaped = ([printable(cell).replace("|", "\\|") for cell in cells] for cells in (header, *rows))
    lines = [f"| {' | '.join(cells)} |" for cells in escaped]
    return [lines[0], "|" + "---|" * len(header), *lines[1:]]
