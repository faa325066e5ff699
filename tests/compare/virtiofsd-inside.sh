#!/usr/bin/env bash
# virtiofsd-inside.sh OUTPUT TEST_TIMEOUT SUITE_IMAGE FS_BENCH VMM CACHE BZIMAGE ROOT_IMAGE VIRTIOFSD: the half of virtiofsd.sh that
# runs where KVM is usable. Boots guests until each test in OUTPUT/tests was started once; one that takes its guest with it is not
# tried again.
set -euo pipefail
output=$1 test_timeout=$2 suite_image=$3 bench=$4 vmm=$5 cache=$6 bzimage=$7 image=$8 virtiofsd=$9
here=$(cd "$(dirname "$0")" && pwd)
CANDIDATES=q35 guest_modules="virtio_blk libcrc32c erofs overlay loop"
. "$here/../bench/candidates.sh"

# A share of its own for what to do and what came of it.
job=$base/job
mkdir "$job" "$job/logs"
cp "$here/virtiofsd-guest.sh" "$job/guest.sh"
cp "$output/tests" "$job/tests"
: >"$job/started"

# Ends a guest that has started no test for longer than one may take: it hangs as a whole, and cannot end the test itself.
watch_guest() {
  local started=none
  until [ "$started" = "$(wc -l <"$job/started")" ]; do
    started=$(wc -l <"$job/started")
    sleep "$test_timeout"
    sleep 2m # What check and the boot take besides.
  done
  echo "virtiofsd.sh: the guest hangs in $(tail -n 1 "$job/started"); it is ended" >&2
  pkill -x qemu-system-x86
}

while ! cmp -s "$job/tests" "$job/started"; do
  before=$(wc -l <"$job/started")
  rm -rf "$base"/myfs[12]
  mkdir "$base"/myfs{1,2}
  rm -f "$base/socket-job"
  "$base/bin/virtiofsd" --socket-path="$base/socket-job" --shared-dir "$job" --sandbox chroot --seccomp none >"$base/virtiofsd-job.log" 2>&1 &
  until [ -S "$base/socket-job" ]; do sleep 0.02; done
  watch_guest &
  watchdog=$!
  with_virtiofsd 1 "mount -t virtiofs job /srv && TEST_TIMEOUT=$test_timeout sh /srv/guest.sh" -M q35,hpet=off -kernel "$bzimage" \
    -chardev "socket,id=job,path=$base/socket-job" -device vhost-user-fs-pci,chardev=job,tag=job \
    -drive "file=$suite_image,if=none,id=suite,format=raw,readonly=on" -device virtio-blk-pci,drive=suite
  # Whatever it sleeps in would outlive it.
  pkill -P "$watchdog" || true
  kill "$watchdog" 2>/dev/null || true
  cp "$base/console.log" "$output/console.log"
  cp "$job"/logs/* "$output/" 2>/dev/null || true
  [ "$(wc -l <"$job/started")" -gt "$before" ] || { echo "virtiofsd.sh: the guest started no test; its console is in $output/console.log" >&2; exit 125; }
done
