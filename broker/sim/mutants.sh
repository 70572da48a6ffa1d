#!/bin/sh
# Shows that the simulator finds each seeded fault: builds it, runs seeds until one fails, prints the seed and the time.
# Usage: broker/sim/mutants.sh [NAME...]   SEEDS=n bounds the seeds, MINUTES=n the time of each (10).
set -eu
cd "$(dirname "$0")/../.."

MUTANTS="
ack_max_not_prefix
buffer_reused
checkpoint_before_its_journal
destages_what_is_not_durable
direct_not_flushed
direct_overtakes_the_journal
door_takes_any_topic
duplicate_acked_at_once
duplicates_appended
extent_entry_before_flush
failed_flush_ignored
fetch_moves_past_a_match
files_go_before_the_log_start_is_durable
flush_beside_write
flush_retried
leader_counts_memory
no_folder_flush
old_producer_epoch_appends
recovery_cuts_at_first_bad
recovery_takes_stale_commits
reads_miss_what_is_acknowledged
refused_what_may_land
retention_takes_what_is_unread
protection_trusts_a_word_of_others
protection_keeps_the_word_of_former_groups
ring_ignores_older_slot
session_before_flush
settings_decide_parked_acks
silence_taken_for_refusal
"
# Of consumer groups: the coordinator's, and the client library's.
GROUPS="
consumer_begins_anew
consumer_commits_what_is_not_done
consumer_lets_go_of_what_is_with_the_user
consumer_never_fences_itself
consumer_session_from_the_answer
group_gives_before_it_was_let_go
group_offsets_fall
group_session_counts_from_the_join
group_unknown_outcome_counts_as_done
group_words_of_older_epochs_count
"
# Of compaction: these are found by its own test.
COMPACTION="
compaction_before_its_entry
compaction_counts_as_clean_early
compaction_not_flushed
compaction_takes_the_place_of_what_went
"
SEEDS="${SEEDS:-100000}"
MINUTES="${MINUTES:-10}"
target="${CARGO_TARGET_DIR:-$PWD/target}/mutants"
mkdir -p "$target"
missed=0

# shellcheck disable=SC2048 # names without spaces
for mutant in ${*:-$MUTANTS $GROUPS $COMPACTION}; do
    case "$mutant" in
    consumer_* | group_*) about=--groups ;;
    *) about= ;;
    esac
    # Only the workspace's own crates are built anew: the name of the wrapper tells cargo that they differ.
    wrapper="$target/rustc-$mutant.sh"
    printf '#!/bin/sh\nexec "$@" --cfg '\''mutant="%s"'\''\n' "$mutant" >"$wrapper"
    chmod +x "$wrapper"
    RUSTC_WORKSPACE_WRAPPER="$wrapper" CARGO_TARGET_DIR="$target" \
        cargo build --quiet --release --locked --package corelog-sim
    run="$target/release/corelog-sim"
    case "$mutant" in
    compaction_*)
        run="$(RUSTC_WORKSPACE_WRAPPER="$wrapper" CARGO_TARGET_DIR="$target" \
            cargo test --release --locked --package corelog-sim --test compaction --no-run 2>&1 |
            sed -n 's/.*Executable.*(\(.*\))$/\1/p')"
        about=--nocapture
        ;;
    esac
    started="$(date +%s)"
    status=0
    case "$mutant" in
    compaction_*) SEEDS="$SEEDS" timeout "$((MINUTES * 60))" "$run" "$about" >"$target/$mutant.log" 2>&1 || status=$? ;;
    *)
        timeout "$((MINUTES * 60))" "$run" ${about:+"$about"} --seeds "0..$SEEDS" >"$target/$mutant.log" 2>&1 ||
            status=$?
        ;;
    esac
    seconds="$(($(date +%s) - started))"
    if [ "$status" -eq 0 ] || [ "$status" -eq 124 ]; then
        printf '%-42s MISSED after %s s\n' "$mutant" "$seconds"
        missed=$((missed + 1))
    else
        seed="$(sed -n 's/.*SEED=//p' "$target/$mutant.log" | tail -n 1)"
        what="$(sed -n -e 's/^FAILED: //p' -e '/panicked at/{n;p;}' "$target/$mutant.log" | head -n 1 | cut -c 1-110)"
        printf '%-42s seed %-5s %3s s  %s\n' "$mutant" "$seed" "$seconds" "$what"
    fi
done
[ "$missed" -eq 0 ]
