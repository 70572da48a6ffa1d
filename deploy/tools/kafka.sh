#!/bin/sh
# Apache Kafka for the benchmarks: the broker's jars, into the target directory.
set -eu
cd "$(dirname "$0")/../.."
. deploy/tools/common.sh

for program in java mvn; do
    command -v "$program" >/dev/null ||
        fail "Kafka needs Java 17 and Maven, and there is no $program" "apt-get install openjdk-17-jre-headless maven"
done
kafka_dir="$(mkdir -p "$target_dir/kafka" && cd "$target_dir/kafka" && pwd)"
say "Fetching Apache Kafka with Maven into $kafka_dir"
mvn -q -B -f bench/kafka/pom.xml dependency:copy-dependencies -DoutputDirectory="$kafka_dir" -DincludeScope=runtime
