#!/usr/bin/env bash
# fsstress, from xfstests: PROCESSES (8) times OPERATIONS (10,000) on a share, and afterwards the guest, its caches dropped, and the
# host list the same tree: names, inode numbers, types, modes, owners, links, sizes, times, extended attributes, checksums.
#
#   XFSTESTS=DIR    a checkout of xfstests to build fsstress from; by default it is fetched, the first time
#   SEED=           what fsstress's choices come from; the default is another one each time, and it is printed
# shellcheck source=tests/acceptance/common.sh
. "$(dirname "$0")/common.sh"
if [ "${1:-}" != inside ]; then
  need python3
  # All of the list is read: grep -q would leave at its line, and vmm's failure to write on be the pipe's.
  [[ $("$vmm" suite list) =~ (^|$'\n')acceptance-fsstress\ +added ]] ||
    "$vmm" suite add acceptance-fsstress --manifest "$root/tests/acceptance/fsstress.toml" ${XFSTESTS:+--source "$XFSTESTS"}
  inside 2h "${SEED:-$RANDOM}"
fi
seed=$2 processes=${PROCESSES:-8} operations=${OPERATIONS:-10000}
begin_inside

count=0
while read -r flags; do
  count=$((count + 1))
  mkdir "$work/1" "$work/2"
  cp "$root/tests/acceptance/tree.py" "$work/2/"
  code=0
  began=$SECONDS
  # shellcheck disable=SC2086 # Several words.
  guest run --host kvm --quiet --timeout 40m --test-timeout 40m --results "$work/results" $flags --shared-dir "$work/1:myfs1" \
    --shared-dir "$work/2:myfs2" acceptance-fsstress -- -p "$processes" -n "$operations" -s "$seed" \
    >"$work/out" 2>&1 || code=$?
  echo "fsstress -p $processes -n $operations -s $seed, vmm run $flags: exit code $code, $((SECONDS - began)) s"
  if [ "$code" -ne 0 ]; then
    tail -n 60 "$work/out"
    cat "$work"/results/*/artefacts/* 2>/dev/null | tail -n 40
    failed "vmm run $flags"
  else
    python3 "$work/2/tree.py" "$work/1/tree" >"$work/host"
    if cmp -s "$work/host" "$work/2/guest"; then
      echo "the same $(wc -l <"$work/host") files, $(grep -c xattr: "$work/host") with extended attributes, on both sides"
    else
      diff "$work/host" "$work/2/guest" | head -n 20
      failed "vmm run $flags: $(diff "$work/host" "$work/2/guest" | grep -c '^<') files differ"
    fi
  fi
  rm -rf "$work/1" "$work/2" "$work/results"
done < <(chosen <<'FLAGS'
--cache auto
--cache auto --cpus 2
--cache never
--cache auto --dax 256M
--cache always --writeback
FLAGS
)
verdict "$count" "fsstress, $processes processes, $operations operations each"
