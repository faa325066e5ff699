#!/usr/bin/env bash
# Both fuzz targets of the devices crate, SECONDS_EACH (600) each, from the seeds in the repository. Neither may find anything.
# Needs no KVM. A stable compiler does: the flags that cargo-fuzz wants are unlocked for it.
# shellcheck source=tests/acceptance/common.sh
. "$(dirname "$0")/common.sh"
seconds=${SECONDS_EACH:-600}
fuzz=$cache/acceptance/cargo-fuzz/bin/cargo-fuzz
if ! [ -x "$fuzz" ]; then
  cargo install --quiet --locked --version =0.13.2 --root "$cache/acceptance/cargo-fuzz" cargo-fuzz
fi
export RUSTC_BOOTSTRAP=1
cd "$root/devices"
for target in fuse_server transport; do
  mkdir -p "fuzz/corpus/$target"
  log=$(mktemp)
  if "$fuzz" run "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- -max_total_time="$seconds" >"$log" 2>&1; then
    echo "$target: no finding: $(tail -n 1 "$log")"
  else
    tail -n 60 "$log"
    failed "$target, all of its output in $log"
    continue
  fi
  rm "$log"
done
verdict 2 "fuse_server and transport, $seconds s each"
