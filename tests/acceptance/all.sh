#!/usr/bin/env bash
# all.sh [NAME...]: the acceptance runs of the file server, or those named, one after the other, quick ones first; `make acceptance`.
# Each is a program of its own in this folder. What they said is in results/acceptance-TIME; ends with a verdict for each.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# -gt 0 ] || set -- sqlite overlay file-handles postgres git-and-make fsx fsstress posix-matrix fuzz
for name in "$@"; do
  [ -x "$here/$name.sh" ] || { echo "all.sh: there is no $name; choose of: $(cd "$here" && echo *.sh)" >&2; exit 2; }
done
logs=$here/../../results/acceptance-$(date -u +%Y-%m-%dT%H%M%SZ)
mkdir -p "$logs"
failed=0
for name in "$@"; do
  echo "== $name"
  "$here/$name.sh" 2>&1 | tee "$logs/$name.log" || failed=1
done
echo "== verdicts"
for name in "$@"; do
  tail -n 1 "$logs/$name.log"
done
exit $failed
