#!/usr/bin/env bash
# A suite of POSIX semantics, pjdfstest-rs unless told otherwise, on every combination of: share on ext4 and on xfs, --cache
# auto, always and never, 1 and 2 vCPUs, without and with a DAX window. None may have a failure.
#
#   SUITE=pjdfstest-rs              the suite; pjdfstest is the original, 15 minutes each
#   FILE_SYSTEMS="ext4 xfs" CACHES="auto always never" CPUS="1 2" DAX="off 256M"    choose some
# shellcheck source=tests/acceptance/common.sh
. "$(dirname "$0")/common.sh"
suite=${SUITE:-pjdfstest-rs}
if [ "${1:-}" != inside ]; then
  need xfsprogs
  inside 3h
fi
begin_inside
make_xfs "$work/xfs"
mkdir "$work/ext4"
[ "$(stat -f -c %T "$work/ext4")" = ext2/ext3 ] || echo "$script: $work is on $(stat -f -c %T "$work"), not on ext4"

count=0
for fs in ${FILE_SYSTEMS:-ext4 xfs}; do
  for cache_mode in ${CACHES:-auto always never}; do
    for cpus in ${CPUS:-1 2}; do
      for dax in ${DAX:-off 256M}; do
        one="$suite on $fs, --cache $cache_mode --cpus $cpus, DAX $dax"
        shares=$work/$fs/shares
        mkdir -p "$shares/1" "$shares/2"
        chmod 755 "$shares" "$shares"/*
        flags=(--cache "$cache_mode" --cpus "$cpus" --shared-dir "$shares/1:myfs1" --shared-dir "$shares/2:myfs2")
        [ "$dax" = off ] || flags+=(--dax "$dax")
        code=0
        began=$SECONDS
        guest run --host kvm --quiet --results "$work/results" --timeout 40m "${flags[@]}" "$suite" >"$work/out" 2>&1 || code=$?
        count=$((count + 1))
        echo "$one: exit code $code, $((SECONDS - began)) s: $(grep -E '^(Ran|Failures|Passed|[0-9]+ )' "$work/out" | paste -sd ';' | cut -c -300)"
        if [ "$code" -ne 0 ]; then
          cat "$work/out"
          failed "$one"
        fi
        rm -rf "$shares"
      done
    done
  done
done
verdict "$count" "$suite"
