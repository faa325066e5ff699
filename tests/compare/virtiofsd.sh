#!/usr/bin/env bash
# virtiofsd.sh RESULTS [TEST...]: what tests of a run of xfstests (a results folder of `vmm run xfstests`) come to with QEMU's q35
# and two virtiofsd 1.14 (`--xattr --modcaps=+sys_admin`) instead: the kernel, root image and suite that the run's manifest.json
# names, 1 vCPU, 1 GiB, shares on the same file system. Without TEST all that the run did. Prints a line for each test and one
# of counts; exits with 1 if a test passes there that failed here. `make compare-virtiofsd RESULTS=…` runs it.
#
#   TEST_TIMEOUT=15m    a test that takes longer counts as an error
#   OUTPUT=DIR          what check said of each test, and the table as `table.json`; default: RESULTS/virtiofsd
set -euo pipefail
[ $# -gt 0 ] || { sed -n 's/^# \{0,1\}//; 2,8p' "$0"; exit 2; }
results=$(realpath "$1")
output=$(realpath -m "${OUTPUT:-$results/virtiofsd}")
shift
cd "$(dirname "$0")/../.."
for file in manifest.json results.json; do
  [ -f "$results/$file" ] || { echo "virtiofsd.sh: there is no $results/$file: the folder of a finished run is wanted" >&2; exit 2; }
done
. tests/bench/prepare.sh
need jq
named() { jq -er --arg name "$1" '.files[$name].path' "$results/manifest.json"; }
suite_image=$(named 'suite xfstests') || { echo "virtiofsd.sh: $results is no run of xfstests" >&2; exit 2; }
image=$(named image)
bzimage=$(named kernel)
for file in "$suite_image" "$image" "$bzimage"; do
  [ -f "$file" ] || { echo "virtiofsd.sh: $file, which the run used, is gone from the cache: run it again" >&2; exit 2; }
done
mkdir -p "$output"
rm -f "$output"/*.log # An earlier comparison's.
jq '[.suites[] | select(.name == "xfstests") | .tests[]]' "$results/results.json" >"$output/here.json"
tests=()
[ $# -gt 0 ] || mapfile -t tests < <(jq -r '.[].test' "$output/here.json")
for test in "$@"; do
  jq -e --arg test "$test" 'any(.[]; .test == $test)' "$output/here.json" >/dev/null ||
    { echo "virtiofsd.sh: $test is none of the tests in $results" >&2; exit 2; }
  tests+=("$test")
done
printf '%s\n' "${tests[@]}" >"$output/tests"
build_fs_bench
code=0
"$vmm" host exec -- "$PWD/tests/compare/virtiofsd-inside.sh" "$output" "${TEST_TIMEOUT:-15m}" "$suite_image" "$fs_bench" "$vmm" "$cache" \
  "$bzimage" "$image" "$virtiofsd" || code=$?

# What check's summary says of each test: one line each of those that ran, that did not, and that failed.
while read -r test; do
  log=$output/${test//\//-}.log
  if [ ! -f "$log" ] || ! grep -q '^Ran: ' "$log"; then
    printf '%s\terror\tno summary\n' "$test"
  elif grep -q "^Failures: .*$test" "$log"; then
    printf '%s\tfail\t\n' "$test"
  elif grep -q "^Not run: .*$test" "$log"; then
    printf '%s\tskip\t%s\n' "$test" "$(sed -n 's/.*\[not run\] *//p' "$log" | head -n 1)"
  else
    printf '%s\tpass\t\n' "$test"
  fi
done <"$output/tests" | jq -R -s --slurpfile here "$output/here.json" '
  [split("\n")[] | select(. != "") | split("\t") | . as [$test, $status, $message] |
   {test: $test, here: ($here[0][] | select(.test == $test) | .status), virtiofsd: $status, message: $message}]' >"$output/table.json"
jq -r '.[] | "\(.test)\t\(.here)\t\(.virtiofsd)\t\(.message)"' "$output/table.json" | column -t -s $'\t' -N 'TEST,VMM,VIRTIOFSD,WHY' 2>/dev/null
jq -r '
  def count(here; there): [.[] | select(.here == here and .virtiofsd == there)] | length;
  "passed with both: \(count("pass"; "pass")); with vmm alone: \([.[] | select(.here == "pass" and .virtiofsd != "pass")] | length), " +
  "\(count("pass"; "skip")) of them not run with virtiofsd; with virtiofsd alone: " +
  "\([.[] | select(.here != "pass" and .virtiofsd == "pass")] | length); of \(length)"' "$output/table.json"
[ "$code" -eq 0 ] || exit "$code"
jq -e 'all(.[]; .virtiofsd != "pass" or (.here != "fail" and .here != "error"))' "$output/table.json" >/dev/null
