# Thin on purpose: what a target does is in deploy/tools/, one small script each.
.DEFAULT_GOAL := help
.PHONY: help run stop test acceptance bench bench-full fuzz sim fmt lint docs deny

# Settings of single targets, given as `make TARGET NAME=value`.
export FILE PORT ADMIN_PORT SEED SEEDS TRACE GROUPS ARGS FUZZ_SECONDS BENCH_PEERS BENCH_REPEAT

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

run: ## build, start a broker, send a file through it and compare (FILE=, PORT=, ADMIN_PORT=)
	@sh deploy/tools/run.sh

stop: ## end the broker that `make run` left running
	@sh deploy/tools/stop.sh

test: ## formatting, lints, documentation, every test: what must pass before a change is merged
	@sh deploy/tools/test.sh

acceptance: ## figures of a release build against their targets; long (what can be set: deploy/tools/acceptance.sh)
	@sh deploy/tools/acceptance.sh

bench: ## three scenarios, with the peers that are installed by turns (BENCH_PEERS=, ARGS="run --help")
	@sh deploy/tools/bench.sh

bench-full: ## every scenario and peer, kills, and the highest rates; hours (BENCH_PEERS=, BENCH_REPEAT=)
	@BENCH_FULL=1 sh deploy/tools/bench.sh

fuzz: ## every fuzz target, FUZZ_SECONDS=300 each (installs cargo-fuzz)
	@sh deploy/tools/fuzz.sh

sim: ## replay one seed of the simulator (SEED=n), or a range (SEEDS=0..500); TRACE=1 tells all, GROUPS=1 groups
	@sh deploy/tools/sim.sh

fmt: ## format the Rust code
	@. deploy/tools/common.sh && cargo fmt --all

lint: ## clippy with warnings as errors; shellcheck where it is installed
	@sh deploy/tools/lint.sh

docs: ## the book and the API documentation (installs mdbook)
	@sh deploy/tools/docs.sh

deny: ## licences, bans and sources of all dependencies (installs cargo-deny)
	@sh deploy/tools/deny.sh
