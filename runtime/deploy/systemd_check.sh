#!/bin/bash
# Runs mars-edge.service under a systemd of its own and checks start, watchdog, restart and stop. As root, on Debian:
#
#   python3 -m venv /opt/mars-edge && /opt/mars-edge/bin/pip install '.[metrics]' && runtime/deploy/systemd_check.sh
#
# That systemd is process 1 of new namespaces (processes, mounts, network, ...) over a throw-away layer of this machine's
# files, so nothing here is started, stopped or written. The unit is the one in this folder, unchanged; its Python must
# not lie in /home or /root, which the unit cannot see.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

if [[ ${1:-} == --boot ]]; then
    layer=$2 root=$2/root
    mount -t tmpfs tmpfs "$layer"
    mkdir "$layer/upper" "$layer/work" "$root"
    mount -t overlay overlay -o "lowerdir=/,upperdir=$layer/upper,workdir=$layer/work" "$root"
    mount -t proc proc "$root/proc"
    mount -t sysfs sysfs "$root/sys"
    mount --rbind /dev "$root/dev"
    mount -t tmpfs tmpfs "$root/run"
    rm -rf "$root"/etc/systemd/system/*.wants
    mkdir -p "$root/etc/mars-edge"
    printf '[sensor.%s]\nsource = "sim:"\n' rgb depth ir > "$root/etc/mars-edge/sensors.toml"
    cp "$here/mars-edge.service" "$root/etc/systemd/system/"
    printf '[Unit]\nWants=systemd-journald.service dbus.service\n' > "$root/etc/systemd/system/check.target"
    cd "$root"
    exec env -i container=lxc PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot "$root" \
        /lib/systemd/systemd --system --unit=check.target
fi

for tool in unshare nsenter chroot /lib/systemd/systemd /opt/mars-edge/bin/mars-edge; do
    command -v "$tool" > /dev/null || { echo "systemd_check: needs $tool" >&2; exit 2; }
done
[[ $(id -u) == 0 ]] || { echo "systemd_check: needs root, for namespaces" >&2; exit 2; }
layer=$(mktemp -d)
unshare -m -p -f -C -n -u -i --kill-child "$0" --boot "$layer" > /dev/null 2>&1 &
outside=$!
init=""
# unshare ignores being asked to end; without its process 1 nothing of the namespaces is left.
trap 'kill -KILL ${init:-$outside} 2> /dev/null || true; wait $outside 2> /dev/null || true; rmdir "$layer"' EXIT
for _ in $(seq 50); do
    init=$(pgrep -P $outside || true)
    [[ -n $init && $(cat "/proc/$init/comm" 2> /dev/null) == systemd ]] && break
    sleep 0.2
done
inside() { nsenter -t "$init" -m -p -n -u -i -C -r "$@"; }
shown() { inside systemctl show mars-edge -p "$1" --value; }
failed=0
check() { # what, expected, found
    if [[ $2 == "$3" ]]; then echo "ok    $1: $3"; else echo "WRONG $1: $3, expected $2"; failed=1; fi
}
until_restarts() { # how many, within seconds
    for _ in $(seq "$2"); do
        [[ $(shown NRestarts) == "$1" && $(shown ActiveState) == active ]] && return
        sleep 1
    done
}

for _ in $(seq 50); do
    inside systemctl list-units > /dev/null 2>&1 && break
    sleep 0.2
done
inside systemctl start mars-edge
check "after start, which waits for the first decision" active "$(shown ActiveState)"
sleep 2
decisions=$(inside journalctl -u mars-edge --no-pager -o cat | grep -c '"verdict"' || true)
check "decisions in the journal" yes "$([[ $decisions -gt 10 ]] && echo yes || echo "$decisions")"
inside kill -STOP "$(shown MainPID)"
until_restarts 1 30
check "restarts after a loop that hangs (watchdog)" 1 "$(shown NRestarts)"
inside kill -KILL "$(shown MainPID)"
until_restarts 2 20
check "restarts after a kill" 2 "$(shown NRestarts)"
inside systemctl stop mars-edge
check "after stop" "inactive success" "$(shown ActiveState) $(shown Result)"
exit $failed
