#!/bin/sh
# The load generator on brokers of its own, in the release profile: three scenarios, every peer that is installed by turns, and
# a report to look at. BENCH_PEERS names others; ARGS replace all that the program is told ("run --help" lists what there is).
set -eu
cd "$(dirname "$0")/../.."
. deploy/tools/common.sh

sh deploy/tools/prerequisites.sh
say "Building broker and load generator (release profile; the first time takes some minutes)"
cargo build --locked --release --quiet -p corelog-broker -p corelog-bench
if [ -n "${ARGS:-}" ]; then
    # shellcheck disable=SC2086 # a list of words
    exec "$target_dir/release/corelog-bench" $ARGS
fi

# One of each kind, so that it ends within ten minutes; run --help lists more.
peers=corelog,strawman
if [ -x /usr/bin/redis-server ]; then peers="$peers,redis-always"; else
    say "Redis is left out: apt-get install redis-server adds it"
fi
if [ -x /usr/sbin/nats-server ]; then peers="$peers,nats"; else
    say "NATS is left out: apt-get install nats-server adds it"
fi
have_kafka() { ls "$target_dir"/kafka/kafka_*.jar >/dev/null 2>&1; }
if ! have_kafka && command -v java >/dev/null && command -v mvn >/dev/null; then
    sh deploy/tools/kafka.sh || say "Kafka could not be fetched"
fi
if have_kafka && command -v java >/dev/null; then peers="$peers,kafka-flush"; else
    say "Kafka is left out: apt-get install openjdk-17-jre-headless maven adds it"
fi
"$target_dir/release/corelog-bench" run bench/workloads/batch-100b-1p.toml bench/workloads/single-1k-32c.toml \
    bench/workloads/open-1k-4k.toml --peer "${BENCH_PEERS:-$peers}" --repeat 3 --measured 3 \
    --html "$target_dir/bench.html" --json "$target_dir/bench.json"
say "A report to look at: $target_dir/bench.html"
