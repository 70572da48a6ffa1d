#!/bin/sh
# Runs the client's examples against a broker of their own, and holds what they print against what they must print.
set -eu
cd "$(dirname "$0")/../.."
. deploy/tools/common.sh

cargo build --locked --quiet --workspace --features "$test_features" --bin corelog --examples
corelog="$target_dir/debug/corelog"
examples="$target_dir/debug/examples"
# Below the build, since /tmp may be memory.
folder="$(mktemp -d "$target_dir/examples.XXXXXX")"
broker='' follower='' member=''

clean_up() {
    for process in $member $follower $broker; do
        kill "$process" 2>/dev/null || :
        wait "$process" 2>/dev/null || :
    done
    rm -rf "$folder"
}
trap clean_up EXIT
trap 'exit 1' INT TERM

# same EXAMPLE EXPECTED PRINTED: two files in the folder.
same() {
    cmp -s "$folder/$2" "$folder/$3" || {
        diff "$folder/$2" "$folder/$3" | head -n 20 >&2
        fail "the example $1 did not print what it must (left)"
    }
}

"$corelog" dev --data-dir "$folder/broker" --port 0 --admin-port 0 </dev/null >"$folder/log" 2>&1 &
broker=$!
wait_ready "$broker" "$folder/broker" "$folder/log"
CORELOG_BOOTSTRAP="$(sed -n 's/.*"address": *"\([^"]*\)".*/\1/p' "$folder/broker/ready.json")"
export CORELOG_BOOTSTRAP

"$examples/produce" greetings >"$folder/produced"
acknowledged="$(grep -c '^partition [0-2] offset Some([0-9]*)$' "$folder/produced" || :)"
[ "$acknowledged" = 101 ] || fail "the example produce told of $acknowledged records of 101"

"$examples/consume" greetings >"$folder/consumed"
# Without partition and offset; the order is that of the partitions.
sed 's/^[0-2]\/[0-9]* //' "$folder/consumed" | sort >"$folder/greetings"
{
    say 'first = hello'
    number=0
    while [ "$number" -lt 100 ]; do
        say "guest $((number % 10)) = greeting $number"
        number=$((number + 1))
    done
} | sort >"$folder/greetings.expected"
same consume greetings.expected greetings

say 'To be, or not to be: that is the question.' >"$folder/text"
"$examples/word_count" "$folder/text" >"$folder/counted"
{
    printf '%8d %s\n' 2 be 2 to 1 is 1 not 1 or 1 question 1 that 1 the
    say '10 words, 8 of them different'
} >"$folder/counted.expected"
same word_count counted.expected counted

# `tail` begins with what is written after it has found the end, which it tells nobody: so lines are written until it has
# printed one, and then one more.
"$corelog" topic create lines >/dev/null
"$examples/tail" lines >"$folder/tailed" &
follower=$!
number=0
until [ -s "$folder/tailed" ]; do
    process_alive "$follower" || fail "the example tail ended by itself"
    [ "$number" -lt 600 ] || fail "the example tail printed nothing of $number lines"
    number=$((number + 1))
    say "line $number" | tee -a "$folder/lines" | "$corelog" produce lines --chomp
    sleep 0.1
done
say last | tee -a "$folder/lines" | "$corelog" produce lines --chomp
tenths=0
until grep -qx last "$folder/tailed"; do
    [ "$tenths" -lt 600 ] || fail "the example tail does not print the last line"
    sleep 0.1
    tenths=$((tenths + 1))
done
tail -n "$(wc -l <"$folder/tailed")" "$folder/lines" >"$folder/tailed.expected"
same tail tailed.expected tailed

# `group` commits what it printed when it is interrupted, so that nothing is left for the next member.
: >"$folder/grouped"
"$examples/group" lines readers >"$folder/grouped" 2>"$folder/grouped.said" &
member=$!
tenths=0
until [ "$(wc -l <"$folder/grouped")" -ge "$(wc -l <"$folder/lines")" ]; do
    process_alive "$member" || fail "the example group ended by itself"
    [ "$tenths" -lt 600 ] || fail "the example group does not print all lines"
    sleep 0.1
    tenths=$((tenths + 1))
done
kill -INT "$member"
wait "$member" || fail "the example group does not end well"
member=''
sed 's/^[^:]*: //' "$folder/grouped" >"$folder/grouped.values"
same group lines grouped.values
grep -q '^got lines/0$' "$folder/grouped.said" || fail "the example group does not say what it got"
"$corelog" consume lines --group readers --until-end >"$folder/left"
[ ! -s "$folder/left" ] || fail "the example group did not commit what it printed"

say "the examples produce, consume, word_count, tail and group print what they must"
