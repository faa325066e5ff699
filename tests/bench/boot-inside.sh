#!/usr/bin/env bash
# boot-inside.sh RUNS VMM CACHE BZIMAGE ROOT_IMAGE VIRTIOFSD: the measuring half of boot.sh, run where KVM is usable.
set -euo pipefail
runs=$1 vmm=$2 cache=$3 bzimage=$4 image=$5 virtiofsd=$6
copy_images=yes
. "$(dirname "$0")/candidates.sh"

milliseconds() { # milliseconds FUNCTION ARGUMENTS...
  local begin end
  begin=$(date +%s%N); "$@" >&2; end=$(date +%s%N)
  echo $(((end - begin) / 1000000))
}
for run in $(seq 0 "$runs"); do
  for name in "${candidates[@]}"; do
    took=$(milliseconds "candidate_$name" 1 true)
    echo "run $run $name $took ms" >&2
    [ "$run" -eq 0 ] || echo "$took" >>"$base/times.$name"
  done
done

median() { sort -n "$1" | awk '{v[NR]=$1} END {print (NR % 2) ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2}'; }
ours=$(median "$base/times.vmm")
printf '%-34s %10s %10s %10s %12s\n' "start to exit, ms ($runs runs)" median min max 'vmm / this'
for name in "${candidates[@]}"; do
  case $name in
    vmm) label='vmm exec -- true' ;;
    q35) label='QEMU q35 + 2 virtiofsd' ;;
    other) label='the other vmm' ;;
    microvm) label='QEMU microvm + 2 virtiofsd' ;;
  esac
  this=$(median "$base/times.$name")
  printf '%-34s %10s %10s %10s %12s\n' "$label" "$this" "$(sort -n "$base/times.$name" | head -n 1)" "$(sort -n "$base/times.$name" | tail -n 1)" \
    "$(awk -v a="$ours" -v b="$this" 'BEGIN {printf "%.2f", a / b}')"
done
