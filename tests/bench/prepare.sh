# Sourced by the benchmarks: what they need besides vmm, made ready. Leaves in variables:
#   vmm cache work   our program, its cache, the benchmarks' corner of that
#   virtiofsd        virtiofsd's program, built from crates.io
#   image            the root image that every candidate boots
#   fs_bench         where build_fs_bench puts fs-bench
# and two functions: build_fs_bench, and build_kernel, that prints the path of the bzImage built from
#   KERNEL_TREE=    a kernel tree; default: Debian's linux-source-6.12, unpacked into the cache
. tests/common.sh
vmm=$PWD/target/release/vmm
work=$cache/bench
virtiofsd_version=1.14.0

need qemu-system-x86 cpio libcap-ng-dev libseccomp-dev gcc
need_for_kernels
mkdir -p "$work"

virtiofsd=$work/virtiofsd/bin/virtiofsd
if [ ! -x "$virtiofsd" ]; then
  echo "Building virtiofsd $virtiofsd_version from crates.io" >&2
  cargo install --quiet --locked --version "=$virtiofsd_version" --root "$work/virtiofsd" virtiofsd >&2
fi

image=$("$vmm" image build | awk '$1 == "image" {print $2}')

build_kernel() {
  local tree=${KERNEL_TREE:-}
  [ -n "$tree" ] || tree=$(kernel_source)
  "$vmm" kernel build --tree "$tree"
}

# Static, so that it runs in any root image. A target directory of its own: other flags would rebuild everything else.
fs_bench=$PWD/target/static/x86_64-unknown-linux-gnu/release/fs-bench
build_fs_bench() {
  RUSTFLAGS='-C target-feature=+crt-static' cargo build --quiet --release --locked -p tests --bin fs-bench \
    --target x86_64-unknown-linux-gnu --target-dir target/static >&2
}
