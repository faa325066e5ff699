#!/usr/bin/env bash
# name_to_handle_at and open_by_handle_at on a share, with COUNT (10,000) files: each handle leads to its file after the
# guest's caches were dropped, after the share was mounted anew, and in another guest, which the server starts afresh for. Handles of
# removed files are stale.
# shellcheck source=tests/acceptance/common.sh
. "$(dirname "$0")/common.sh"
if [ "${1:-}" != inside ]; then
  need xfsprogs
  build_probe
  inside 1h
fi
files=${COUNT:-10000}
begin_inside
make_xfs "$work/xfs"
mkdir "$work/ext4" "$work/tools"
cp "$probe" "$work/tools/"

in_guest() { # in_guest FS FLAGS SCRIPT
  # shellcheck disable=SC2086 # Several words.
  "$vmm" exec --host kvm --timeout 15m $2 --shared-dir "$work/$1:share" --shared-dir "$work/tools:tools" -- sh -c \
    "set -e; probe=/mnt/tools/guest-probe; share=/mnt/share; $3"
}

# shellcheck disable=SC2016 # It is for the shell in the guest.
again='echo 3 >/proc/sys/vm/drop_caches
echo "after drop_caches:"; $probe check-handles $share /mnt/tools/list
options=$(findmnt -no OPTIONS $share)
umount $share && mount -t virtiofs -o "$options" share $share
echo "after umount and mount:"; $probe check-handles $share /mnt/tools/list
rm -r $share/d1 $share/d2
echo 3 >/proc/sys/vm/drop_caches
echo "after two folders were removed:"; $probe check-handles $share /mnt/tools/list'
# shellcheck disable=SC2016 # The same.
afresh='echo "in another guest:"; $probe check-handles $share /mnt/tools/list'

for fs in ext4 xfs; do
  for flags in "--cache auto" "--cache always" "--cache never" "--cache auto --dax 256M"; do
    echo "$files files on $fs, vmm exec $flags"
    find "$work/$fs" -mindepth 1 -delete
    if ! in_guest $fs "$flags" "\$probe make-handles \$share $files /mnt/tools/list; $again" ||
      ! in_guest $fs "$flags" "$afresh"; then
      failed "$fs, $flags"
    fi
  done
done
verdict "$files files"
