#!/usr/bin/env bash
# How long from command to exit, for a guest that mounts two virtio-fs shares and does nothing: `vmm exec -- true` against
# QEMU (q35, and microvm) with two virtiofsd. One host, one kernel, one root image, one vCPU, runs interleaved; the table
# gives medians and vmm's ratio to each. `make bench-boot` runs it.
#
#   RUNS=5          counted runs of each (one warm-up run before)
#   KERNEL_TREE=    kernel tree to build and boot; default: Debian's linux-source-6.12, unpacked into the cache
set -euo pipefail
cd "$(dirname "$0")/../.."
runs=${RUNS:-5}
. tests/bench/prepare.sh
bzimage=$(build_kernel)
exec "$vmm" host exec -- "$PWD/tests/bench/boot-inside.sh" "$runs" "$vmm" "$cache" "$bzimage" "$image" "$virtiofsd"
