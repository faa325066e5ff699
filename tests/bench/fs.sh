#!/usr/bin/env bash
# What file operations on a virtio-fs share cost: vmm against QEMU (q35, and microvm) with virtiofsd. One host, one kernel,
# one root image, one ext4 behind the shares, one measuring program; 1 and 2 vCPUs; runs interleaved. Prints medians, VM
# exits for each operation and our ratio to the faster of the others, and writes all of it as JSON. `make bench` runs it.
#
#   RUNS=3          runs of each
#   OPS=200         repetitions of each small operation in a run
#   CPUS="1 2"      numbers of vCPUs
#   CANDIDATES="vmm q35"   what is compared; "other" is the vmm that OTHER_VMM=PATH names, to compare two builds
#   HALT_POLL_NS=   how long KVM waits for the halted vCPUs of whoever says nothing else, QEMU's for one; default: as the
#                   host has it
#   VMM_FLAGS=      more flags of `vmm exec`, such as --stats
#   BENCH_JSON=     where the JSON goes; default: results/bench-TIME.json
#   KERNEL=source   build Debian's linux-source-6.12 and compare with microvm, too; takes long the first time. By default
#                   everything boots the kernel that vmm boots by default, Debian's 6.12 for clouds, and microvm is left
#                   out: a guest with that kernel was not seen to find its disk there
#   KERNEL_TREE=    the same with a kernel tree of your own
set -euo pipefail
cd "$(dirname "$0")/../.."
json=${BENCH_JSON:-$PWD/results/bench-$(date -u +%Y-%m-%dT%H%M%SZ).json}
mkdir -p "$(dirname "$json")"
. tests/bench/prepare.sh
if [ -n "${KERNEL_TREE:-}" ] || [ "${KERNEL:-}" = source ]; then
  export CANDIDATES=${CANDIDATES:-vmm q35 microvm}
  bzimage=$(build_kernel)
else
  export CANDIDATES=${CANDIDATES:-vmm q35}
  bzimage=$(dirname "$("$vmm" kernel fetch debian:6.12)")/vmlinuz
fi
build_fs_bench
exec "$vmm" host exec -- "$PWD/tests/bench/fs-inside.sh" "${RUNS:-3}" "${OPS:-200}" "${CPUS:-1 2}" "$json" \
  "$fs_bench" "$vmm" "$cache" "$bzimage" "$image" "$virtiofsd"
