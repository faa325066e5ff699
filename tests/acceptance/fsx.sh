#!/usr/bin/env bash
# The suite fsx: OPERATIONS (100,000) random reads and writes of one file, through mappings too, each read compared with what must
# be there. Without DAX and with, --cache auto, always and never, with and without --writeback.
#
#   SEED=    what fsx's choices come from; the default is another one each time, and it is printed
# shellcheck source=tests/acceptance/common.sh
. "$(dirname "$0")/common.sh"
operations=${OPERATIONS:-100000}
if [ "${1:-}" != inside ]; then
  "$vmm" suite add fsx
  inside 2h "${SEED:-$RANDOM}"
fi
seed=$2
begin_inside

count=0
while read -r flags; do
  count=$((count + 1))
  code=0
  began=$SECONDS
  mkdir "$work/share"
  # shellcheck disable=SC2086 # Several words.
  guest run --host kvm --verbose --timeout 40m --test-timeout 40m --results "$work/results" $flags --shared-dir "$work/share:myfs1" \
    fsx -- -N "$operations" -S "$seed" >"$work/out" 2>&1 || code=$?
  echo "fsx -N $operations -S $seed, vmm run $flags: exit code $code, $((SECONDS - began)) s"
  if [ "$code" -ne 0 ]; then
    tail -n 60 "$work/out"
    failed "vmm run $flags"
  fi
  rm -rf "$work/share" "$work/results"
done < <(chosen <<'FLAGS'
--cache auto
--cache auto --dax 256M
--cache auto --writeback
--cache always
--cache never
--cache never --dax 256M
FLAGS
)
verdict "$count" "fsx, $operations operations"
