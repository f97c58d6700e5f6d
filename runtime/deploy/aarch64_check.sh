#!/usr/bin/env bash
# Builds the aarch64 wheel on an x86-64 Debian machine and runs it under qemu-aarch64, beside the x86 engine.
#
#   runtime/deploy/aarch64_check.sh [MODEL.pte] [WORK_DIR]
#
# MODEL is a file or the name of a bundled model (default face_antispoof.pte). What it fetches stays in WORK_DIR
# (default build/aarch64) and is used again. Every answer of the model to 20 recorded frames, for every subset of its
# modalities, must be bit-identical on both processors; a model of the rig's sensors then streams 20 decisions on aarch64.
# An emulator shows correctness, never speed.
#
# Needs: apt-get install g++-aarch64-linux-gnu qemu-user-static; PYTHON (default python3) with mars-edge installed.
set -euo pipefail

repository=$(cd "$(dirname "$0")/../.." && pwd)
model=${1:-face_antispoof.pte}
work=$(mkdir -p "${2:-$repository/build/aarch64}" && cd "${2:-$repository/build/aarch64}" && pwd)
python=${PYTHON:-python3}
[[ -f $model ]] && model=$(realpath "$model")

for tool in aarch64-linux-gnu-g++ aarch64-linux-gnu-strip qemu-aarch64-static apt-get dpkg-deb; do
    command -v "$tool" >/dev/null || { echo "aarch64_check: $tool is not installed" >&2; exit 2; }
done

build_wheel() {
    # A copy, because the build leaves its libraries in the tree, and this tree holds those of this machine.
    rm -rf "$work/tree" "$work/wheel"
    mkdir -p "$work/tree"
    tar -C "$repository" --exclude=_native --exclude=__pycache__ -cf - \
        mars_edge training export runtime pyproject.toml hatch_build.py README.md LICENSE NOTICE | tar -C "$work/tree" -xf -
    MARS_EDGE_NATIVE=require MARS_EDGE_TARGET=aarch64 CXX=aarch64-linux-gnu-g++ STRIP=aarch64-linux-gnu-strip \
        "$python" -m pip wheel --quiet --no-deps --wheel-dir "$work/wheel" "$work/tree"
}

# An arm64 Debian root with Python, resolved by apt against an empty system; nothing of this machine changes.
unpack_root() {
    [[ -x $work/root/usr/bin/python3 ]] && return
    local apt=(apt-get -qq -o "Dir::State=$work/apt/state" -o "Dir::Cache=$work/apt/cache" -o "Dir::State::status=$work/apt/status"
        -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o APT::Sandbox::User= -o APT::Install-Recommends=false)
    mkdir -p "$work/apt/state/lists/partial" "$work/apt/cache/archives/partial" "$work/root"
    : >"$work/apt/status"
    "${apt[@]}" update
    "${apt[@]}" install --yes --download-only python3 libstdc++6 libgcc-s1 >/dev/null
    for package in "$work"/apt/cache/archives/*.deb; do
        dpkg-deb --extract "$package" "$work/root"
    done
}

install_packages() {
    local version
    version=$(basename "$(readlink "$work/root/usr/bin/python3")")
    if [[ ! -d $work/site/numpy || ! -d $work/site/cv2 ]]; then
        "$python" -m pip install --quiet --target "$work/site" --only-binary=:all: --implementation cp \
            --python-version "${version#python}" --platform manylinux_2_28_aarch64 --platform manylinux2014_aarch64 \
            --platform manylinux_2_17_aarch64 --platform manylinux_2_27_aarch64 "numpy>=1.26,<3" "opencv-python-headless>=4.12,<5"
    fi
    rm -rf "$work"/site/mars_* "$work"/site/mars_edge-*
    "$python" -m zipfile --extract "$work"/wheel/mars_edge-*-linux_aarch64.whl "$work/site"
}

on_aarch64() {
    PYTHONPATH="$work/site" PYTHONDONTWRITEBYTECODE=1 \
        qemu-aarch64-static -cpu cortex-a76 -L "$work/root" "$work/root/usr/bin/python3" "$@"
}

build_wheel
unpack_root
install_packages
ls -l "$work"/wheel/*.whl >&2

on_aarch64 -m mars_edge info --engines | grep -q '^executorch-native *yes' ||
    { echo "aarch64_check: the native engine does not load on aarch64" >&2; exit 1; }
on_aarch64 -c 'import sys; from mars_runtime.preprocessing import has_library; sys.exit(not has_library())' ||
    { echo "aarch64_check: the library for pictures has other bits than OpenCV on aarch64" >&2; exit 1; }
"$python" "$repository/runtime/deploy/answers.py" "$model" "$work/samples.npz" --record >"$work/x86_64.jsonl"
on_aarch64 "$repository/runtime/deploy/answers.py" "$model" "$work/samples.npz" >"$work/aarch64.jsonl"
if ! said=$("$python" "$repository/runtime/deploy/answers.py" --compare "$work/x86_64.jsonl" "$work/aarch64.jsonl"); then
    echo "aarch64_check: $said" >&2
    exit 1
fi
echo "aarch64: $(wc -l <"$work/aarch64.jsonl") answers as on x86_64, logits bit-identical"

# Only a model of the simulated rig's sensors has something to stream without hardware.
on_rig='import sys; from mars_edge.rig import MODALITIES; from mars_runtime.engines import open_engine
sys.exit(not set(open_engine(sys.argv[1]).manifest.names) <= set(MODALITIES))'
if "$python" -c "$on_rig" "$model"; then
    on_aarch64 -m mars_edge run --model "$model" --max-decisions 20 --quiet >"$work/decisions.jsonl"
    echo "aarch64: mars-edge run gave $(wc -l <"$work/decisions.jsonl") decisions"
else
    echo "aarch64: nothing streamed, the simulated rig has none of this model's sensors"
fi
