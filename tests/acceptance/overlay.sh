#!/usr/bin/env bash
# overlayfs with all of its layers on a share: index, metacopy, redirect_dir and nfs_export, and userxattr for an ordinary user, each
# used, mounted again and looked at; the guest's kernel may say nothing of overlayfs in its log. See guest/overlay.sh.
# shellcheck source=tests/acceptance/common.sh
. "$(dirname "$0")/common.sh"
if [ "${1:-}" != inside ]; then
  need xfsprogs
  build_probe
  "$vmm" kernel fetch debian:6.1 >/dev/null
  inside 1h
fi
begin_inside
make_xfs "$work/xfs"
mkdir "$work/ext4" "$work/tools"
cp "$probe" "$root/tests/acceptance/guest/overlay.sh" "$work/tools/"

count=0
while read -r fs flags; do
  count=$((count + 1))
  echo "share on $fs, vmm exec $flags"
  # shellcheck disable=SC2086 # Several words.
  guest exec --host kvm --timeout 15m $flags --shared-dir "$work/$fs:share" --shared-dir "$work/tools:tools" -- \
    bash /mnt/tools/overlay.sh /mnt/share /mnt/tools || failed "$fs, $flags"
done < <(chosen <<'FLAGS'
ext4 --cache auto
ext4 --cache auto --kernel debian:6.1
ext4 --cache always
ext4 --cache never
ext4 --cache auto --dax 256M
ext4 --cache auto --cpus 2 --inode-file-handles never
xfs --cache auto
FLAGS
)
verdict "$count" "overlayfs on a share"
