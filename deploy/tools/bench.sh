#!/bin/sh
# The load generator on brokers of its own, in the release profile. Without BENCH_FULL: three scenarios, one peer of each kind
# that is installed, by turns, and a report to look at, within ten minutes. With it: every scenario, every peer, kills and the
# search for the highest rate; hours. BENCH_PEERS names others, BENCH_REPEAT how often; ARGS replace all that the program is
# told ("run --help" lists what there is).
set -eu
cd "$(dirname "$0")/../.."
. deploy/tools/common.sh

sh deploy/tools/prerequisites.sh
say "Building broker and load generator (release profile; the first time takes some minutes)"
cargo build --locked --release --quiet -p corelog-broker -p corelog-bench
bench="$target_dir/release/corelog-bench"
if [ -n "${ARGS:-}" ]; then
    # shellcheck disable=SC2086 # a list of words
    exec "$bench" $ARGS
fi

peers=corelog
more=
if [ -x /usr/bin/redis-server ]; then peers="$peers,redis-always" && more=redis-everysec; else
    say "Redis is left out: apt-get install redis-server adds it"
fi
if [ -x /usr/sbin/nats-server ]; then peers="$peers,nats"; else
    say "NATS is left out: apt-get install nats-server adds it"
fi
have_kafka() { ls "$target_dir"/kafka/kafka_*.jar >/dev/null 2>&1; }
if ! have_kafka && command -v java >/dev/null && command -v mvn >/dev/null; then
    sh deploy/tools/kafka.sh || say "Kafka could not be fetched"
fi
if have_kafka && command -v java >/dev/null; then peers="$peers,kafka-flush" && more="${more:+$more,}kafka"; else
    say "Kafka is left out: apt-get install openjdk-17-jre-headless maven adds it"
fi

if [ -z "${BENCH_FULL:-}" ]; then
    "$bench" run bench/workloads/batch-100b-1p.toml bench/workloads/single-1k-32c.toml \
        bench/workloads/open-1k-4k.toml --peer "${BENCH_PEERS:-$peers,strawman}" --repeat "${BENCH_REPEAT:-3}" \
        --measured 3 --html "$target_dir/bench.html" --json "$target_dir/bench.json"
    say "A report to look at: $target_dir/bench.html"
    exit
fi

fio=
if command -v fio >/dev/null; then fio=--fio; else
    say "fio is left out, so that nothing says whether the strawman counts: apt-get install fio adds it"
fi
peers="${BENCH_PEERS:-$peers${more:+,$more}}"
repeat="${BENCH_REPEAT:-5}"
"$bench" suite bench/workloads --peer "$peers,strawman" --repeat "$repeat" --attempts 3 $fio \
    --html "$target_dir/bench-full.html" --json "$target_dir/bench-full.json" --hlog "$target_dir/bench-hlog"
"$bench" run bench/workloads/single-1k-32c.toml bench/workloads/batch-1k-1p.toml --kill-at 2 --peer "$peers" \
    --repeat "$repeat" --html "$target_dir/bench-kills.html" --json "$target_dir/bench-kills.json"
"$bench" ramp bench/workloads/open-1k-4k.toml --p99-ms 5 --peer "$peers" --html "$target_dir/bench-ramp.html" \
    --json "$target_dir/bench-ramp.json"
say "Reports to look at: $target_dir/bench-full.html, bench-kills.html and bench-ramp.html beside it"
