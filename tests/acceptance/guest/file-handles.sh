#!/bin/sh
# Runs in the guest: handles of $3 files on the share at $1, opened when nothing is cached and after the share was mounted anew. $2 is
# a folder with guest-probe.
set -eu
share=$1 probe=$2/guest-probe list=/tmp/list
"$probe" make-handles "$share" "$3" $list
echo 3 >/proc/sys/vm/drop_caches
echo "after drop_caches:"
"$probe" check-handles "$share" $list
options=$(findmnt -no OPTIONS "$share")
umount "$share"
mount -t virtiofs -o "$options" "$(basename "$share")" "$share"
echo "after umount and mount:"
"$probe" check-handles "$share" $list
rm -r "$share/d1" "$share/d2"
echo 3 >/proc/sys/vm/drop_caches
echo "after two folders were removed:"
"$probe" check-handles "$share" $list
