#!/usr/bin/env bash
# SQLite on a share, vmm killed by SIGKILL in the midst of it: what it said was committed is there for the next guest, and the database
# is sound. With a rollback journal and with a write-ahead log, TIMES (2) each.
# shellcheck source=tests/acceptance/killed.sh
. "$(dirname "$0")/killed.sh"
if [ "${1:-}" != inside ]; then
  add_programs
  need python3
  inside 1h
fi
begin_inside

count=0
while read -r flags; do
  for journal in delete wal; do
    for time in $(seq "${TIMES:-2}"); do
      count=$((count + 1))
      one="SQLite, journal_mode=$journal, vmm run $flags, time $time"
      mkdir "$work/share"
      if killed_after $((20 + RANDOM % 80)) committed "$flags" sqlite.sh write "$journal"; then
        acknowledged=$(sed -n 's/^committed \([0-9]*\)$/\1/p' "$work/said" | tail -n 1)
        checked=0
        # shellcheck disable=SC2086 # Several words.
        guest run --host kvm --verbose --timeout 10m --results "$work/results" $flags --shared-dir "$work/share:myfs1" \
          acceptance-programs -- sqlite.sh check "$journal" "$acknowledged" >"$work/out" 2>&1 || checked=$?
        echo "$one: $(grep -oE '(integrity_check ok|rows are|[0-9]+ rows).*' "$work/out" | head -n 1)"
        if [ "$checked" -ne 0 ]; then
          tail -n 30 "$work/out"
          failed "$one, killed after $acknowledged"
        fi
      else
        failed "$one: it ended before it was killed"
      fi
      rm -rf "$work/share"
    done
  done
done < <(chosen <<'FLAGS'
--cache auto
--cache auto --writeback
--cache auto --dax 256M
--cache never
FLAGS
)
verdict "$count" "SQLite killed and checked"
