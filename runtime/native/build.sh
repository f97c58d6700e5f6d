#!/usr/bin/env bash
# Builds mars_runner and libmars_edge.a against the pinned executorch wheel.
#
#   runtime/native/build.sh [x86_64|aarch64] [BUILD_DIR]
#
# The machine defaults to this one, BUILD_DIR to build/native-MACHINE. The wheel is MARS_EDGE_EXECUTORCH (a wheel, or a
# folder that holds `executorch/`) where that is set, else it is downloaded by pip into BUILD_DIR and used again.
# The programs find the wheel's libraries where they were at build time.
#
# Needs: apt-get install cmake g++ nlohmann-json3-dev; for another machine g++-aarch64-linux-gnu, and qemu-user-static to
# run it: qemu-aarch64-static -cpu cortex-a76 -L /usr/aarch64-linux-gnu build/native-aarch64/mars_runner --help
set -euo pipefail

source=$(cd "$(dirname "$0")" && pwd)
machine=${1:-$(uname -m)}
build=${2:-$source/../../build/native-$machine}
python=${PYTHON:-python3}
version=$(sed -n 's/^EXECUTORCH_VERSION = "\(.*\)"$/\1/p' "$source/../../hatch_build.py")
mkdir -p "$build"
build=$(cd "$build" && pwd)

case $machine in
    x86_64 | aarch64) ;;
    *) echo "build.sh: no build for $machine; allowed: x86_64, aarch64" >&2; exit 2 ;;
esac
for tool in cmake "$python"; do
    command -v "$tool" >/dev/null || { echo "build.sh: $tool is not installed" >&2; exit 2; }
done

find_package() {
    local given=${MARS_EDGE_EXECUTORCH:-}
    if [[ -d $given ]]; then
        [[ $(basename "$given") == executorch ]] && echo "$given" || echo "$given/executorch"
        return
    fi
    if [[ ! -d $build/wheel/executorch ]]; then
        if [[ -z $given ]]; then
            "$python" -m pip download --quiet --no-deps --only-binary=:all: --implementation cp --python-version 3.11 \
                --platform "manylinux_2_28_$machine" --dest "$build" "executorch==$version" >&2
            given=$(ls "$build"/executorch-*.whl)
        fi
        "$python" -m zipfile --extract "$given" "$build/wheel"
    fi
    echo "$build/wheel/executorch"
}

package=$(find_package)
toolchain=()
[[ $machine == "$(uname -m)" ]] || toolchain=("-DCMAKE_TOOLCHAIN_FILE=$source/$machine-linux-gnu.cmake")
cmake -S "$source" -B "$build" -DCMAKE_BUILD_TYPE=Release -DEXECUTORCH_ROOT="$package" "${toolchain[@]}" >&2
cmake --build "$build" --parallel 2 >&2
echo "$build/mars_runner"
