"""The device of a report: made-up trees of a Raspberry Pi 5, a Jetson Orin, a phone under Termux, a PC, and nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from mars_runtime.profiling.device import conditions, describe, slowed_down
from mars_runtime.profiling.host import Host, run_tool
from mars_runtime.profiling.thermal import heat

PI_5 = {
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "proc/device-tree/compatible": "raspberrypi,5-model-b\0brcm,bcm2712\0",
    "proc/cpuinfo": 4
    * (
        "processor\t: 0\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x4\n"
        "CPU part\t: 0xd0b\nCPU revision\t: 1\n\n"
    )
    + "Revision\t: c04170\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n",
    "proc/meminfo": "MemTotal:        8245456 kB\nSwapTotal:        204784 kB\nHugePages_Total:       0\n",
    "etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\n',
    "sys/devices/system/cpu/present": "0-3\n",
    "sys/devices/system/cpu/cpufreq/policy0/related_cpus": "0 1 2 3\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "ondemand\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_min_freq": "1500000\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "2400000\n",
    "sys/devices/system/cpu/cpufreq/policy0/cpuinfo_max_freq": "2400000\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1800000\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "61450\n",
    "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
    "sys/class/thermal/cooling_device0/cur_state": "3\n",
}
ORIN = {
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit\0",
    "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0003\0nvidia,tegra234\0",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 3.0, GCID: 36106755, BOARD: generic\n",
    "etc/os-release": 'PRETTY_NAME="Ubuntu 22.04.4 LTS"\n',
    "sys/devices/system/cpu/present": "0-5\n",
    **{f"sys/devices/system/cpu/cpufreq/policy{n}/scaling_governor": "schedutil\n" for n in (0, 4)},
    **{f"sys/devices/system/cpu/cpufreq/policy{n}/scaling_cur_freq": "1510400\n" for n in (0, 4)},
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "88750\n",
    "sys/class/thermal/thermal_zone2/type": "cv0-thermal\n",
    "sys/class/thermal/thermal_zone2/temp": "-256000\n",
    "sys/class/thermal/cooling_device0/type": "cpufreq-cpu0\n",
    "sys/class/thermal/cooling_device0/cur_state": "2\n",
    "sys/class/hwmon/hwmon3/oc1_event_cnt": "0\n",
    "sys/class/hwmon/hwmon3/oc3_event_cnt": "17\n",
}
TERMUX = {
    "proc/meminfo": "MemTotal:        7654321 kB\n",
    "sys/devices/system/cpu/present": "0-7\n",
    **{
        f"sys/devices/system/cpu/cpufreq/policy{n}/scaling_governor": f"{kind}\n"
        for n, kind in ((0, "schedutil"), (4, "schedutil"), (7, "performance"))
    },
    "sys/class/thermal/thermal_zone0/type": "BIG\n",
    "sys/class/thermal/thermal_zone0/temp": "54\n",
    "sys/class/thermal/thermal_zone1/type": "off\n",
    "sys/class/thermal/thermal_zone1/temp": "0\n",
}
PC = {
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu avx2 hypervisor lahf_lm\n",
    "sys/class/dmi/id/sys_vendor": "LENOVO\n",
    "sys/class/dmi/id/product_name": "To Be Filled By O.E.M.\n",
    "sys/firmware/acpi/platform_profile": "balanced\n",
    "sys/devices/system/cpu/intel_pstate/no_turbo": "1\n",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "4\n",
}


def host(tree: Path, files: Mapping[str, str], tools: Mapping[str, str] | None = None) -> Host:
    for name, text in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def run(command: Sequence[str]) -> str | None:
        return (tools or {}).get(" ".join(command))

    return Host(root=tree, run=run)


def test_a_raspberry_pi_5_says_board_chip_clocks_and_memory(tmp_path: Path) -> None:
    found = describe(host(tmp_path, PI_5))
    assert found.board == "Raspberry Pi 5 Model B Rev 1.0"
    assert found.soc == "brcm,bcm2712"
    assert found.processor == "Cortex-A76"
    assert found.cores_present == 4
    assert found.governor == "ondemand"
    (clock,) = found.clocks
    assert (clock.cores, clock.min_mhz, clock.max_mhz, clock.now_mhz) == ("0 1 2 3", 1500.0, 2400.0, 1800.0)
    assert found.ram_mb == pytest.approx(8245456 * 1024 / 1e6, abs=0.1)
    assert found.system == "Debian GNU/Linux 12 (bookworm)"
    assert (found.power_mode, found.turbo, found.virtual) == (None, None, None)


@pytest.mark.parametrize(
    ("said", "flags", "throttled"),
    [
        ("throttled=0x0", (), False),
        ("throttled=0x50005", ("under-voltage", "throttled"), True),
        ("throttled=0x80008", ("soft temperature limit",), True),
        # Something happened since boot, nothing is wrong now.
        ("throttled=0x50000", (), False),
    ],
)
def test_a_raspberry_pi_says_why_it_slows_down(
    tmp_path: Path, said: str, flags: tuple[str, ...], throttled: bool
) -> None:
    now = heat(host(tmp_path, PI_5, {"vcgencmd get_throttled": said}))
    assert (now.flags, now.throttled, now.hottest_c) == (flags, throttled, 61.45)


def test_a_fan_that_turns_is_no_throttling_and_nobody_who_tells_it_is_unknown(tmp_path: Path) -> None:
    now = heat(host(tmp_path, PI_5))
    assert (now.flags, now.throttled) == (None, None)


def test_the_kernels_copy_of_the_firmwares_answer_is_not_believed(tmp_path: Path) -> None:
    files = {**PI_5, "sys/devices/platform/soc/soc:firmware/get_throttled": "0\n"}
    assert heat(host(tmp_path, files, {"vcgencmd get_throttled": "throttled=0x5"})).throttled is True
    assert heat(host(tmp_path, files), tools=False).throttled is None


def test_no_tool_is_started_between_two_rounds(tmp_path: Path) -> None:
    asked: list[Sequence[str]] = []
    here = Host(root=host(tmp_path, PI_5).root, run=lambda command: asked.append(command))  # type: ignore[arg-type]
    assert conditions(here, tools=False)["throttled"] is None
    assert asked == []


def test_throttling_during_the_run_shows_in_the_pi_s_sticky_bits(tmp_path: Path) -> None:
    before = conditions(host(tmp_path, PI_5, {"vcgencmd get_throttled": "throttled=0x0"}))
    after = conditions(host(tmp_path, PI_5, {"vcgencmd get_throttled": "throttled=0x40000"}))
    assert slowed_down(before, before, before) is False
    assert slowed_down(before, before, after) is True
    # It was set before this run began, and cannot be set twice.
    assert slowed_down(after, after, after) is None


def test_a_jetson_says_its_power_mode_release_and_cooling(tmp_path: Path) -> None:
    here = host(tmp_path, ORIN, {"nvpmodel -q": "NV Power Mode: 15W\n0"})
    found, now = describe(here), conditions(here)
    assert found.board == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit"
    assert (found.soc, found.power_mode) == ("nvidia,tegra234", "15W")
    assert found.system == "Ubuntu 22.04.4 LTS, L4T 36.3.0"
    assert (found.cores_present, len(found.clocks), found.governor) == (6, 2, "schedutil")
    assert now["mhz"] == [1510.4, 1510.4]
    assert now["throttled"] is True
    assert now["flags"] == ("cpufreq-cpu0 cools",)
    # A zone that is powered off tells no temperature.
    assert now["zones_c"] == {"cpu-thermal": 88.75}
    assert now["events"] == {"sys/class/hwmon/hwmon3/oc1_event_cnt": 0, "sys/class/hwmon/hwmon3/oc3_event_cnt": 17}


def test_an_over_current_alarm_during_the_run_counts_as_slowed_down(tmp_path: Path) -> None:
    calm = {**ORIN, "sys/class/thermal/cooling_device0/cur_state": "0\n"}
    before = conditions(host(tmp_path, calm))
    after = conditions(host(tmp_path, {**calm, "sys/class/hwmon/hwmon3/oc3_event_cnt": "18\n"}))
    assert before["throttled"] is False
    assert slowed_down(before, before, before) is False
    assert slowed_down(before, after, after) is True


def test_a_jetson_without_nvpmodel_tells_the_stored_mode(tmp_path: Path) -> None:
    assert describe(host(tmp_path, {**ORIN, "var/lib/nvpmodel/status": "pmode:0002\n"})).power_mode == "pmode:0002"


def test_a_phone_under_termux_says_its_name_by_properties(tmp_path: Path) -> None:
    properties = {
        "getprop ro.product.manufacturer": "Google",
        "getprop ro.product.model": "Pixel 8",
        "getprop ro.soc.model": "Tensor G3",
        "getprop ro.build.version.release": "15",
        "settings get global low_power": "1",
    }
    here = host(tmp_path, TERMUX, properties)
    found, now = describe(here), conditions(here)
    assert (found.board, found.soc, found.system) == ("Google Pixel 8", "Tensor G3", "Android 15")
    assert (found.governor, found.power_mode, found.cores_present) == (
        "schedutil, performance",
        "battery saver on",
        8,
    )
    # Phones tell whole degrees; a zone that says zero is switched off.
    assert now["zones_c"] == {"BIG": 54.0}
    assert (now["throttled"], now["mhz"], found.processor) == (None, None, None)


def cores(*numbers: tuple[str, str]) -> str:
    return "".join(f"processor\t: 0\nCPU implementer\t: {m}\nCPU part\t: {p}\n\n" for m, p in numbers)


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        (cores(("0x41", "0xd46"), ("0x41", "0xd46"), ("0x41", "0xd4d"), ("0x41", "0xd4e")),
         "Cortex-A510, Cortex-A715, Cortex-X3"),
        (cores(("0x51", "0xd0b")), "implementer 0x51 part 0xd0b"),
        (cores(("0x41", "0xfff")), "implementer 0x41 part 0xfff"),
        ("model name\t: ARMv7 Processor rev 3 (v7l)\n" + cores(("0x41", "0xd08")), "Cortex-A72"),
        ("processor\t: 0\nCPU part\t: 0xd0b\n", None),
        ("processor\t: 0\nmodel name\t: Some CPU \nmodel\t\t: 7\n", "Some CPU"),
        ("processor\t: 0\nmodel name\t:\nflags\t\t: fpu\n", None),
    ],
)  # fmt: skip
def test_a_processor_is_its_model_or_the_kinds_of_its_cores(tmp_path: Path, cpuinfo: str, name: str | None) -> None:
    assert describe(host(tmp_path, {"proc/cpuinfo": cpuinfo})).processor == name


def test_a_phone_is_called_as_it_is_sold_and_not_as_its_chip_s_reference_design(tmp_path: Path) -> None:
    files = {"proc/device-tree/model": "Qualcomm Technologies, Inc. Kalama MTP\0"}
    properties = {"getprop ro.product.manufacturer": "samsung", "getprop ro.product.model": "SM-S911B"}
    assert describe(host(tmp_path, files, properties)).board == "samsung SM-S911B"


@pytest.mark.parametrize(
    ("compatible", "chip"),
    [("apple,j293\0apple,t8103\0apple,arm-platform\0", "apple,t8103"), ("linux,dummy-virt\0", None)],
)
def test_an_entry_that_every_machine_has_is_no_chip(tmp_path: Path, compatible: str, chip: str | None) -> None:
    assert describe(host(tmp_path, {"proc/device-tree/compatible": compatible})).soc == chip


@pytest.mark.parametrize(
    ("supplies", "mode"),
    [
        ({"BAT0": ("Battery", "System", "Discharging"), "AC": ("Mains", "", "")}, "balanced, on battery"),
        ({"BAT0": ("Battery", "", "Discharging")}, "balanced, on battery"),
        ({"BAT0": ("Battery", "", "Charging")}, "balanced"),
        ({"hidpp_battery_0": ("Battery", "Device", "Discharging")}, "balanced"),
    ],
)
def test_a_laptop_says_that_its_battery_feeds_it(
    tmp_path: Path, supplies: Mapping[str, tuple[str, str, str]], mode: str
) -> None:
    files = {
        f"sys/class/power_supply/{name}/{field}": f"{text}\n"
        for name, told in supplies.items()
        for field, text in zip(("type", "scope", "status"), told, strict=True)
    }
    assert describe(host(tmp_path, {**PC, **files})).power_mode == mode


def zones(*told: tuple[str, str]) -> dict[str, str]:
    return {
        f"sys/class/thermal/thermal_zone{index}/{field}": f"{text}\n"
        for index, zone in enumerate(told)
        for field, text in zip(("type", "temp"), zone, strict=True)
    }


def test_the_hotter_one_of_two_zones_of_a_name_is_not_lost(tmp_path: Path) -> None:
    now = heat(host(tmp_path, zones(("acpitz", "71000"), ("acpitz", "20000"))))
    assert now.hottest_c == 71.0
    assert now.zones_c == {"acpitz": 71.0, "acpitz (thermal_zone1)": 20.0}


def test_a_battery_s_voltage_current_and_charge_are_no_temperatures(tmp_path: Path) -> None:
    told = zones(("soc", "97"), ("vbat", "4100"), ("pm8350b-ibat-lvl0", "120"), ("pm8350b-bcl-lvl0", "90"),
                 ("battery", "31000"), ("soc-thermal", "45000"))  # fmt: skip
    assert heat(host(tmp_path, told)).zones_c == {"battery": 31.0, "soc-thermal": 45.0}


@pytest.mark.parametrize(
    ("kind", "state", "flags"),
    [
        ("cpufreq-cpu0", 2, ("cpufreq-cpu0 cools",)),
        ("thermal-cpufreq-4", 1, ("thermal-cpufreq-4 cools",)),
        ("cpu-throttle-alert", 1, ("cpu-throttle-alert cools",)),
        ("soc012-throttle-alert", 1, ("soc012-throttle-alert cools",)),
        ("Processor", 3, ("Processor cools",)),
        ("intel_powerclamp", 20, ("intel_powerclamp cools",)),
        ("intel_powerclamp", -1, ()),
        ("thermal-pause-F8", 1, ("thermal-pause-F8 cools",)),
        ("cpu-isolate7", 1, ("cpu-isolate7 cools",)),
        ("Processor", 0, ()),
        # None of these takes anything from the processor, nor do they say that nothing else does.
        ("devfreq-gpu-gpc-0", 18, None),
        ("gpu-throttle-alert", 1, None),
        ("cv0-throttle-alert", 1, None),
        ("hot-surface-alert", 1, None),
        ("pwm-fan", 4, None),
        ("TCC Offset", 10, None),
    ],
)
def test_only_what_slows_the_processor_counts_as_throttling(
    tmp_path: Path, kind: str, state: int, flags: tuple[str, ...] | None
) -> None:
    place = "sys/class/thermal/cooling_device0"
    now = heat(host(tmp_path, {f"{place}/type": f"{kind}\n", f"{place}/cur_state": f"{state}\n"}))
    assert (now.flags, now.throttled) == (flags, None if flags is None else bool(flags))


def test_a_pc_says_firmware_names_that_mean_something(tmp_path: Path) -> None:
    found = describe(host(tmp_path, PC))
    assert (found.board, found.processor) == ("LENOVO", "Some CPU @ 2 GHz")
    assert (found.power_mode, found.turbo, found.virtual) == ("balanced", False, True)
    assert conditions(host(tmp_path, PC))["events"] == {
        "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": 4
    }


def test_where_nothing_can_be_read_nothing_is_guessed(tmp_path: Path) -> None:
    here = host(tmp_path, {})
    found, now = describe(here), conditions(here)
    unknown = (
        "board", "soc", "processor", "cores_present", "governor", "turbo", "power_mode", "ram_mb", "swap_mb",
        "system", "virtual",
    )  # fmt: skip
    assert {name: getattr(found, name) for name in unknown} == dict.fromkeys(unknown)
    assert found.clocks == ()
    assert (now["zones_c"], now["hottest_c"], now["flags"], now["throttled"], now["mhz"]) == (
        {},
        None,
        None,
        None,
        None,
    )
    assert slowed_down(now, now, now) is None


def test_a_system_that_keeps_its_load_to_itself_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise OSError("Load averages are unobtainable")

    monkeypatch.setattr(os, "getloadavg", refused)
    here = host(tmp_path, TERMUX)
    assert conditions(here)["load"] is None
    assert describe(here).cores >= 1
    monkeypatch.delattr(os, "getloadavg")
    assert conditions(here)["load"] is None


@pytest.mark.parametrize("text", ["", "n/a\n", "12 kHz\n", "\xff\xfe"])
def test_a_file_that_holds_no_number_is_as_good_as_absent(tmp_path: Path, text: str) -> None:
    (tmp_path / "temp").write_bytes(text.encode("latin-1"))
    assert Host(root=tmp_path).number("temp") is None


def test_a_tool_that_is_missing_fails_or_says_nothing_tells_nothing() -> None:
    assert run_tool(["no-such-tool-of-a-board"]) is None
    assert run_tool(["false"]) is None
    assert run_tool(["true"]) is None
    assert run_tool(["echo", "NV Power Mode: MAXN"]) == "NV Power Mode: MAXN"
