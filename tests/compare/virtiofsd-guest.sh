#!/bin/sh
# In the guest of virtiofsd-inside.sh, with the job's share at /srv: makes the root writable, as vmm's agent does, and runs one
# test after the other with the environment of guest-image/suites/xfstests.toml.
set -eu
if [ "${1:-}" != inside ]; then
  umount /mnt/virtiofs1 /mnt/virtiofs2
  mount -t tmpfs tmpfs /tmp
  mkdir -p /tmp/upper /tmp/work /tmp/root /tmp/suite /tmp/suite-upper /tmp/suite-work
  mount -t overlay -o lowerdir=/,upperdir=/tmp/upper,workdir=/tmp/work overlay /tmp/root
  mount -t erofs -o ro /dev/vdb /tmp/suite
  mkdir -p /tmp/root/opt/suites/xfstests
  mount -t overlay -o lowerdir=/tmp/suite,upperdir=/tmp/suite-upper,workdir=/tmp/suite-work overlay /tmp/root/opt/suites/xfstests
  cp /srv/guest.sh /tmp/root/
  exec chroot /tmp/root sh /guest.sh inside
fi
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t virtiofs job /srv
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=0620,ptmxmode=0666 devpts /dev/pts
for dir in /dev/shm /tmp; do
  mount -t tmpfs -o mode=1777 tmpfs "$dir"
done
mount -t tmpfs -o mode=0755 tmpfs /run
ln -sf /proc/self/fd /dev/fd
hostname vmm-guest
ip link set lo up 2>/dev/null || true
mount -t virtiofs myfs1 /mnt/virtiofs1
mount -t virtiofs myfs2 /mnt/virtiofs2
export FSTYP=virtiofs TEST_DEV=myfs1 TEST_DIR=/mnt/virtiofs1 SCRATCH_DEV=myfs2 SCRATCH_MNT=/mnt/virtiofs2 RESULT_BASE=/run/xfstests
export HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
cd /opt/suites/xfstests
tail -n "+$(($(wc -l </srv/started) + 1))" /srv/tests >/tmp/left
while read -r test; do
  echo "$test" >>/srv/started
  echo "running $test" >/dev/kmsg
  timeout -k 30 "$TEST_TIMEOUT" ./check "$test" </dev/null >"/srv/logs/$(echo "$test" | tr / -).log" 2>&1 || true
done </tmp/left
sync
