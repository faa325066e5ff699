#!/usr/bin/env bash
# git on a share: COMMITS (20) commits, clones of every kind, fsck; and zlib, Debian's source: unpacked, made, its own tests run.
# shellcheck source=tests/acceptance/common.sh
. "$(dirname "$0")/common.sh"
source=$cache/acceptance/zlib
if [ "${1:-}" != inside ]; then
  add_programs
  ls "$source"/*.orig.tar.* >/dev/null 2>&1 || fetch_source zlib "$source"
  inside 2h
fi
commits=${COMMITS:-20}
begin_inside

count=0

# with FLAGS SCRIPT ARGS...: the script in a guest, on an empty share.
with() {
  local flags=$1 code=0 began=$SECONDS
  count=$((count + 1))
  shift
  mkdir "$work/share"
  cp "$source"/*.orig.tar.* "$work/share/"
  # shellcheck disable=SC2086 # Several words.
  guest run --host kvm --verbose --timeout 30m --test-timeout 30m --results "$work/results" $flags --shared-dir "$work/share:myfs1" \
    acceptance-programs -- "$@" >"$work/out" 2>&1 || code=$?
  echo "$*, vmm run $flags: exit code $code, $((SECONDS - began)) s"
  if [ "$code" -ne 0 ]; then
    tail -n 60 "$work/out"
    failed "$*, vmm run $flags"
  fi
  # The host's view: no file of the guest's is unreadable or broken here.
  [ "$1" != git.sh ] || git -c safe.directory='*' -C "$work/share/fetched" fsck --full --strict || failed "git fsck on the host"
  rm -rf "$work/share" "$work/results"
}

while read -r flags; do
  with "$flags" git.sh "$commits"
  with "$flags" make.sh
done < <(chosen <<'FLAGS'
--cache auto
--cache auto --dax 256M --cpus 2
--cache never
--cache always --writeback
FLAGS
)
verdict "$count" "git with $commits commits and make of $(basename "$(echo "$source"/*.orig.tar.*)")"
