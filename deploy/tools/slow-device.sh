#!/bin/sh
# What a slow device under one topic does to the others: mounts a loop device that takes few writes a second at one topic's
# folder, loads that topic, and measures single-record requests to another; beside it the same with the load on a topic of the
# ordinary device. Needs root, losetup and the blkio controller (cgroup v1).
#   SLOW_WRITES      writes a second that the device takes (100: ten milliseconds each)
#   SLOW_REPEAT      how often each is measured, by turns (5)
#   SLOW_MIB         load of the topic, MiB a second (5)
set -eu
cd "$(dirname "$0")/../.."
. deploy/tools/common.sh

writes="${SLOW_WRITES:-100}"
repeat="${SLOW_REPEAT:-5}"
load_mib="${SLOW_MIB:-5}"
group=/sys/fs/cgroup/blkio/corelog-slow
[ "$(id -u)" -eq 0 ] && [ -d /sys/fs/cgroup/blkio ] || fail "this needs root and the blkio controller of cgroup v1"
corelog="$PWD/$target_dir/release/corelog"
bench="$PWD/$target_dir/release/corelog-bench"
[ -x "$corelog" ] && [ -x "$bench" ] || fail "build first: cargo build --release -p corelog-broker -p corelog-bench"
work="$(mktemp -d "$PWD/$target_dir/slow-device.XXXXXX")"
pid=''
loader=''
device=''

clean_up() {
    [ -z "$loader" ] || kill -- "-$loader" 2>/dev/null || true
    [ -z "$pid" ] || { kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null; } || true
    if [ -n "$device" ]; then
        umount "$work/slow" 2>/dev/null || true
        umount "$work/data/topics/$slow" 2>/dev/null || true
        losetup -d "$device" 2>/dev/null || true
    fi
    rmdir "$group" 2>/dev/null || true
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

mkdir -p "$group" "$work/data"
# The broker is of the group from its first step on; processor 0 is its own.
sh -c "echo \$\$ >$group/cgroup.procs; exec taskset -c 0 $corelog serve --set broker.shards=1 \
    --set broker.data_dir=$work/data --set listen.address=127.0.0.1:0 --set listen.admin=127.0.0.1:0 \
    --set memory.bytes_max=1GiB" >"$work/log" 2>&1 &
pid=$!
wait_ready "$pid" "$work/data" "$work/log"
address="$(sed -n 's/.*"address": *"\([^"]*\)".*/\1/p' "$work/data/ready.json" | head -n 1)"
at() { "$corelog" "$@" --bootstrap "$address"; }
at topic create slow --partitions 1 >/dev/null
at topic create plain --partitions 1 >/dev/null
slow="$(at topic describe slow --output json | sed -n 's/.*"id": *"\([^"]*\)".*/\1/p' | head -n 1)"

truncate -s 4G "$work/image"
device="$(losetup --find --show --direct-io=on "$work/image")"
mkfs.ext4 -q "$device"
mkdir -p "$work/data/topics/$slow"
mount "$device" "$work/data/topics/$slow"
echo "$(lsblk -no MAJ:MIN "$device" | tr -d ' ') $writes" >"$group/blkio.throttle.write_iops_device"

head -c $((load_mib * 98304)) /dev/urandom | base64 -w 999 >"$work/lines"
load() {
    setsid sh -c "while :; do cat $work/lines; sleep 0.125; done | taskset -c 1 $corelog produce $1 --bootstrap $address >/dev/null" &
    loader=$!
}
unload() {
    kill -- "-$loader"
    wait "$loader" 2>/dev/null || true
    loader=''
}
measure() {
    "$bench" run bench/workloads/single-1k-8c.toml --bootstrap "$address" --broker-pid "$pid" --measured 3 \
        --warm-up 1 --json "$work/run.json" >/dev/null
    sed -n 's/.*"p99": *\([0-9]*\).*/\1/p' "$work/run.json" | head -n 1 >>"$work/$1"
}
turn=0
while [ "$turn" -lt "$repeat" ]; do
    measure none
    for topic in plain slow; do
        load "$topic"
        measure "$topic"
        unload
    done
    turn=$((turn + 1))
done
median() { sort -n "$work/$1" | awk '{ all[NR] = $1 } END { print int(all[int((NR + 1) / 2)] / 1000) }'; }
say "single records on 8 connections, durability disk, broker on CPU 0, $repeat runs by turns; p99 of the response, us:"
say "  without other load: $(median none)"
say "  $load_mib MiB/s to a topic beside it: $(median plain)"
say "  $load_mib MiB/s to a topic whose device takes $writes writes a second: $(median slow)"
