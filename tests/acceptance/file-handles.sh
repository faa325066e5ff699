#!/usr/bin/env bash
# name_to_handle_at and open_by_handle_at on a share, with COUNT (10,000) files: each handle leads to its file after the
# guest's caches were dropped and after the share was mounted anew. Handles of removed files are stale.
# shellcheck source=tests/acceptance/common.sh
. "$(dirname "$0")/common.sh"
if [ "${1:-}" != inside ]; then
  need xfsprogs
  build_probe
  inside 1h
fi
files=${COUNT:-10000}
begin_inside
count=0
make_xfs "$work/xfs"
mkdir "$work/ext4" "$work/tools"
cp "$probe" "$root/tests/acceptance/guest/file-handles.sh" "$work/tools/"

while read -r fs flags; do
  count=$((count + 1))
  echo "$files files on $fs, vmm exec $flags"
  find "$work/$fs" -mindepth 1 -delete
  # shellcheck disable=SC2086 # Several words.
  guest exec --host kvm --timeout 30m $flags --shared-dir "$work/$fs:share" --shared-dir "$work/tools:tools" -- \
    sh /mnt/tools/file-handles.sh /mnt/share /mnt/tools "$files" || failed "$fs, $flags"
done < <(chosen <<'FLAGS'
ext4 --cache auto
ext4 --cache always
ext4 --cache never
ext4 --cache auto --dax 256M --cpus 2
xfs --cache auto
FLAGS
)
verdict "$count" "$files files"
