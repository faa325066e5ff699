# Sourced by the benchmarks: what they need besides vmm, made ready. Leaves in variables:
#   vmm cache work   our program, its cache, the benchmarks' corner of that
#   virtiofsd        virtiofsd's program, built from crates.io
#   image            the root image that every candidate boots
# and a function, build_kernel, that prints the path of the bzImage built from
#   KERNEL_TREE=    a kernel tree; default: Debian's linux-source-6.12, unpacked into the cache
vmm=$PWD/target/release/vmm
cache=${VMM_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/vmm}
work=$cache/bench
virtiofsd_version=1.14.0

sudo=
[ "$(id -u)" -eq 0 ] || sudo=sudo
missing=()
for package in qemu-system-x86 cpio libcap-ng-dev libseccomp-dev make gcc flex bison bc libelf-dev libssl-dev; do
  dpkg -s "$package" 2>/dev/null | grep -q '^Status: install ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  echo "Installing ${missing[*]}" >&2
  $sudo apt-get update -qq >&2
  DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
mkdir -p "$work"

virtiofsd=$work/virtiofsd/bin/virtiofsd
if [ ! -x "$virtiofsd" ]; then
  echo "Building virtiofsd $virtiofsd_version from crates.io" >&2
  cargo install --quiet --locked --version "=$virtiofsd_version" --root "$work/virtiofsd" virtiofsd >&2
fi

image=$("$vmm" image build | awk '$1 == "image" {print $2}')

build_kernel() {
  local tree=${KERNEL_TREE:-} unpack
  if [ -z "$tree" ]; then
    tree=$work/linux-source-6.12
    if [ ! -d "$tree" ]; then
      echo "Unpacking Debian's linux-source-6.12" >&2
      unpack=$(mktemp -d "$work/unpack.XXXXXX")
      trap 'rm -rf "$unpack"' EXIT
      (cd "$unpack" && apt-get download -q linux-source-6.12 >&2 && dpkg-deb -x ./*.deb . && tar -xf usr/src/linux-source-6.12.tar.xz)
      mv "$unpack/linux-source-6.12" "$tree"
      rm -rf "$unpack"
    fi
  fi
  "$vmm" kernel build --tree "$tree"
}
