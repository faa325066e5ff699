#!/usr/bin/env bash
# fsx, from crates.io: OPERATIONS (100,000) random reads and writes of one file, through mappings too, each read compared with
# what must be there. Without DAX and with, --cache auto, always and never, with and without --writeback.
#
#   SEED=    what fsx's choices come from; the default is another one each time, and it is printed
# shellcheck source=tests/acceptance/common.sh
. "$(dirname "$0")/common.sh"
operations=${OPERATIONS:-100000}
version=0.3.2
static=$cache/acceptance/fsx-$version
if [ "${1:-}" != inside ]; then
  [ -x "$static/bin/fsx" ] || RUSTFLAGS='-C target-feature=+crt-static' cargo install --quiet --locked \
    --version "=$version" --root "$static" --target x86_64-unknown-linux-gnu fsx
  inside 2h "${SEED:-$RANDOM}"
fi
seed=$2
begin_inside
cp "$static/bin/fsx" "$root/tests/acceptance/fsx.toml" "$work/"

count=0
while read -r flags; do
  count=$((count + 1))
  code=0
  began=$SECONDS
  # shellcheck disable=SC2086 # Several words.
  guest exec --host kvm --timeout 30m $flags --shared-dir "$work:share" -- sh -c \
    "mkdir -p /mnt/share/f && cd /mnt/share/f && ../fsx -q -q -f ../fsx.toml -N $operations -S $seed -P /mnt/share file" \
    >"$work/out" 2>&1 || code=$?
  echo "fsx -N $operations -S $seed, vmm exec $flags: exit code $code, $((SECONDS - began)) s"
  if [ "$code" -ne 0 ]; then
    tail -n 60 "$work/out"
    failed "vmm exec $flags"
  fi
  rm -rf "$work/f"
done < <(chosen <<'FLAGS'
--cache auto
--cache auto --dax 256M
--cache auto --writeback
--cache always
--cache never
--cache never --dax 256M
FLAGS
)
verdict "$count" "fsx $version, $operations operations"
