#!/usr/bin/env bash
# PostgreSQL on a share under pgbench's load, vmm killed by SIGKILL in the midst of it: a second guest's server recovers, every row that
# was acknowledged is there, pgbench's balances agree, indexes and checksums are sound. ROWS (300) acknowledged rows each time.
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
  count=$((count + 1))
  mkdir "$work/share"
  if killed_after "${ROWS:-300}" committed "$flags" postgres.sh write; then
    mapfile -t last < <(for client in 1 2 3; do sed -n "s/^committed $client \([0-9]*\)$/\1/p" "$work/said" | tail -n 1; done)
    echo "PostgreSQL, vmm run $flags: killed when clients had been told of ${last[*]} rows"
    # shellcheck disable=SC2086 # Several words.
    guest run --host kvm --verbose --timeout 20m --test-timeout 20m --results "$work/results" $flags --shared-dir "$work/share:myfs1" \
      acceptance-programs -- postgres.sh check "${last[@]}" >"$work/out" 2>&1 || failed "vmm run $flags"
    tail -n 20 "$work/out"
  else
    failed "vmm run $flags: it ended before it was killed"
  fi
  rm -rf "$work/share"
done < <(chosen <<'FLAGS'
--cache auto --cpus 2
--cache auto --writeback
--cache auto --dax 256M --cpus 2
FLAGS
)
verdict "$count" "PostgreSQL killed and recovered"
