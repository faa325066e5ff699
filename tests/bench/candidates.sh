# Sourced by the measuring halves of the benchmarks, which run where KVM is usable. Wants vmm, cache, bzimage, image and
# virtiofsd set, and bench for a kernel with modules. With copy_images=yes also what is only read while a guest boots is
# first copied next to the shares, for all candidates alike: worth its time where boots are measured. Gives
#   base                          a directory that is removed at the end, with the shares myfs1 and myfs2 in it
#   candidate_NAME CPUS COMMAND   boots a guest that mounts both shares at /mnt/virtiofs1 and 2 and runs COMMAND
# guest_modules names, in order, the modules that QEMU's guests need where the kernel has them as such.
# The candidates are in CANDIDATES: vmm, q35, microvm unless that is set; "other" is a second vmm, whose program OTHER_VMM names.
base=$(mktemp -d "${VMM_SCRATCH_DIR:-/var/tmp}/bench.XXXXXX")
trap 'rm -rf "$base"' EXIT
mkdir "$base"/{bin,lib,share,myfs1,myfs2,cache}
read -ra candidates <<<"${CANDIDATES:-vmm q35 microvm}"

copy_program() { # the program and the libraries that it loads
  cp -L "$1" "$base/bin/"
  ldd "$1" | awk '/=> \//{print $3}' | xargs -r cp -L -t "$base/lib"
}
copy_program "$(command -v qemu-system-x86_64)"
copy_program "$virtiofsd"
copy_program "$vmm"
[ -z "${OTHER_VMM:-}" ] || cp "$OTHER_VMM" "$base/bin/other"
cp -rL /usr/share/qemu/. "$base/share/"
cp -rL /usr/share/seabios/. "$base/share/" 2>/dev/null || true
kernel_dir=$(dirname "$bzimage")
modules=$kernel_dir/modules
if [ "${copy_images:-no}" = yes ]; then
  cp "$bzimage" "$base/bzImage"
  cp "$image" "$base/root.erofs"
  bzimage=$base/bzImage image=$base/root.erofs
  # vmm finds its files in its cache: give it a copy of that, too.
  for part in initramfs kernel locks root; do
    [ ! -e "$cache/$part" ] || cp -a "$cache/$part" "$base/cache/"
  done
  cache=$base/cache
fi
export LD_LIBRARY_PATH=$base/lib

# Where the kernel has them as modules, what it takes to get at the root image: vmm brings its own for that.
initrd=()
if [ -e "$modules/virtio_blk.ko" ]; then
  mkdir -p "$base/initramfs/modules"
  number=0
  for module in ${guest_modules:-virtio_blk libcrc32c erofs}; do
    number=$((number + 1))
    cp "$modules/$module.ko" "$base/initramfs/modules/$number-$module.ko"
  done
  cp "$bench" "$base/initramfs/init"
  (cd "$base/initramfs" && find . -mindepth 1 | cpio --quiet -o -H newc >"$base/initrd")
  initrd=(-initrd "$base/initrd")
fi

# The kernel that vmm unpacked is also the microvm machine's: fastest for both.
if [ ${#initrd[@]} -gt 0 ]; then
  kernel=debian:6.12
  vmlinux=$kernel_dir/vmlinux
else
  vmlinux=$("$base/bin/vmm" --cache-dir "$cache" kernel fetch "$bzimage")
  kernel=$vmlinux
fi

with_virtiofsd() { # with_virtiofsd CPUS COMMAND QEMU-ARGUMENTS...
  local number pids=() cpus=$1 command=$2
  shift 2
  local guest="init=/bin/sh -- -c \"mount -t virtiofs myfs1 /mnt/virtiofs1 && mount -t virtiofs myfs2 /mnt/virtiofs2 && mount -t proc proc /proc && echo bench-mounted; $command; echo o >/proc/sysrq-trigger; sleep 9\""
  rm -f "$base"/socket?
  for number in 1 2; do
    "$base/bin/virtiofsd" --socket-path="$base/socket$number" --shared-dir "$base/myfs$number" --xattr --modcaps=+sys_admin \
      --sandbox chroot --seccomp none >"$base/virtiofsd$number.log" 2>&1 &
    pids+=($!)
  done
  until [ -S "$base/socket1" ] && [ -S "$base/socket2" ]; do sleep 0.02; done
  "$base/bin/qemu-system-x86_64" -L "$base/share" -accel kvm -cpu host -smp "$cpus" -m 1G -nodefaults -nographic -no-reboot -serial "file:$base/console.log" \
    -object memory-backend-memfd,id=mem,size=1G,share=on -numa node,memdev=mem \
    -chardev "socket,id=c1,path=$base/socket1" -device vhost-user-fs-pci,chardev=c1,tag=myfs1,queue-size=1024 \
    -chardev "socket,id=c2,path=$base/socket2" -device vhost-user-fs-pci,chardev=c2,tag=myfs2,queue-size=1024 \
    -drive "file=$image,if=none,id=root,format=raw,readonly=on" -device virtio-blk-pci,drive=root \
    -append "console=ttyS0 quiet panic=-1 root=/dev/vda rootfstype=erofs ro $guest" "${initrd[@]}" "$@" >"$base/qemu.log" 2>&1 ||
    echo "QEMU ended with $?" >>"$base/qemu.log"
  wait "${pids[@]}" || true
  grep -q bench-mounted "$base/console.log" || { echo "the QEMU guest did not mount its shares:" >&2; tail -n 20 "$base/qemu.log" "$base/console.log" "$base"/virtiofsd?.log >&2; exit 125; }
}
with_vmm() { # with_vmm PROGRAM CPUS COMMAND
  local program=$1
  shift
  # shellcheck disable=SC2086 # the command's words
  "$base/bin/$program" --cache-dir "$cache" exec ${VMM_FLAGS:-} --host kvm --kernel "$kernel" --memory 1G --cpus "$1" --shared-dir "$base/myfs1:myfs1" --shared-dir "$base/myfs2:myfs2" -- $2
}
candidate_vmm() { with_vmm vmm "$@"; }
candidate_other() { with_vmm other "$@"; }
candidate_q35() { with_virtiofsd "$1" "$2" -M q35,hpet=off -kernel "$bzimage"; }
candidate_microvm() { with_virtiofsd "$1" "$2" -M microvm,acpi=on,rtc=on,pcie=on -kernel "$vmlinux"; }
