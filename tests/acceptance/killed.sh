# shellcheck shell=bash
# Sourced, in place of common.sh, by the scripts that kill vmm while a guest writes.
# shellcheck source=tests/acceptance/common.sh
. "$(dirname "$0")/common.sh"

# killed_after COUNT WORD FLAGS SCRIPT ARGS...: starts the script in a guest with the share $work/share, kills vmm by SIGKILL when
# the guest has said WORD COUNT times, and leaves all that it had said in $work/said.
killed_after() {
  local count=$1 word=$2 flags=$3 pid events="" seen=0 attempts=0 code
  shift 3
  start_guest "$flags" "$@"
  while [ "$seen" -lt "$count" ]; do
    sleep 0.5
    if ! kill -0 "$pid" 2>/dev/null; then
      code=0
      wait "$pid" || code=$?
      # As in `guest`.
      if [ "$code" -eq 125 ] && [ $((attempts += 1)) -lt 3 ]; then
        start_guest "$flags" "$@"
        continue
      fi
      tail -n 40 "$work/out"
      [ -z "$events" ] || tail -n 20 "$events"
      return 1
    fi
    # Not `latest`, which is beside the run's folder.
    events=$(echo "$work"/results/[0-9]*/events.jsonl)
    [ ! -f "$events" ] || seen=$(grep -o "$word" "$events" | wc -l)
  done
  kill -KILL "$pid"
  wait "$pid" || true
  guest_said "$events" >"$work/said"
}

# Starts the script in a guest, in the background as $pid.
start_guest() {
  local flags=$1
  shift
  rm -rf "$work/results"
  # shellcheck disable=SC2086 # Several words.
  "$vmm" run --host kvm --quiet --timeout 20m --test-timeout 20m --results "$work/results" $flags \
    --shared-dir "$work/share:myfs1" acceptance-programs -- "$@" </dev/null >"$work/out" 2>&1 &
  pid=$!
}

# The lines that the guest said, from the events of a run. The last may be torn.
guest_said() {
  python3 -c '
import json, sys
text = ""
for line in open(sys.argv[1]):
    try:
        event = json.loads(line)
    except ValueError:
        break
    if event["event"] == "output":
        text += event["text"]
sys.stdout.write(text)' "$1"
}
