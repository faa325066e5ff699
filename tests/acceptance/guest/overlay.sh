#!/bin/bash
# Runs in the guest: overlayfs with upper, work and lower on the share at $1, and nothing of overlayfs in the kernel's log,
# where it says what it could not have. $2 is a folder with guest-probe.
set -u
share=$1 probe=$2/guest-probe
bad=0

wrong() {
  echo "WRONG ($name): $*"
  bad=1
}

is() { # is WHAT EXPECTED ACTUAL
  [ "$2" = "$3" ] || wrong "$1: expected $2, found $3"
}

# Lower files that the checks know, and empty layers.
make_layers() { # make_layers DIR
  rm -rf "$1"
  mkdir -p "$1"/{lower/{dir/sub,doomed},upper,work,merged}
  head -c 1M /dev/zero | tr '\0' l >"$1/lower/large"
  echo lower >"$1/lower/removed"
  echo lower >"$1/lower/linked"
  ln "$1/lower/linked" "$1/lower/link"
  echo lower >"$1/lower/dir/sub/file"
  echo lower >"$1/lower/doomed/file"
}

mount_overlay() { # mount_overlay DIR OPTIONS
  mount -t overlay -o "lowerdir=$1/lower,upperdir=$1/upper,workdir=$1/work,$2" overlay "$1/merged"
}

remount_overlay() {
  umount "$1/merged" || wrong "umount"
  echo 3 >/proc/sys/vm/drop_caches
  mount_overlay "$1" "$2" || wrong "mounting again"
}

xattr() { # xattr NAME FILE
  getfattr --absolute-names --only-values -n "$1" "$2" 2>/dev/null || echo none
}

# What every overlay must do, and still have after it was mounted again.
change() { # change MERGED
  rm "$1/removed" && rm -r "$1/doomed" && mkdir "$1/doomed" && echo changed >"$1/linked" && chmod 600 "$1/large"
  python3 - "$1" "$share" <<'PYTHON'
import os, sys
merged, share = sys.argv[1:]
try:
    os.close(os.open(share, os.O_TMPFILE | os.O_RDWR))
except OSError as error:
    # FUSE has it since Linux 6.2.
    print("no O_TMPFILE on shares:", error)
    open(merged + "/from-tmpfile", "w").write("tmpfile\n")
    sys.exit()
file = os.open(merged, os.O_TMPFILE | os.O_RDWR, 0o644)
os.write(file, b"tmpfile\n")
# With a descriptor, though the path is absolute, Python calls linkat, and with AT_SYMLINK_FOLLOW.
os.link(f"/proc/self/fd/{file}", merged + "/from-tmpfile", src_dir_fd=file, follow_symlinks=True)
PYTHON
}

check() { # check MERGED LAYERS
  [ ! -e "$1/removed" ] || wrong "a removed file is there"
  is "a directory made anew" "" "$(ls "$1/doomed")"
  is "a file written through one of its links" changed "$(cat "$1/linked")"
  is "the lower file" lower "$(cat "$2/lower/linked")"
  is "mode of a large file" 600 "$(stat -c %a "$1/large")"
  is "content of a large file" "$(head -c 1M /dev/zero | tr '\0' l | sha256sum)" "$(sha256sum <"$1/large")"
  is "what was made without a name" tmpfile "$(cat "$1/from-tmpfile")"
  is "a whiteout" "character special file 0:0" "$(stat -c '%F %t:%T' "$2/upper/removed")"
}

log_is_silent() {
  local said
  said=$(dmesg | grep overlayfs:)
  [ -z "$said" ] || wrong "the kernel's log has: $said"
}

try() { # try OPTIONS
  local dir=$share/overlay options=$1
  name=$options
  make_layers "$dir"
  dmesg -C
  if ! mount_overlay "$dir" "$options"; then
    wrong "mount failed: $(dmesg | grep overlayfs:)"
    return
  fi
  change "$dir/merged"
  # A directory that comes from below is renamed only with redirect_dir, else mv copies it.
  mv "$dir/merged/dir" "$dir/merged/moved"
  check "$dir/merged" "$dir"
  case $options in *redirect_dir=on*)
    is "xattr of the renamed directory" dir "$(xattr trusted.overlay.redirect "$dir/upper/moved")" ;;
  esac
  case $options in *metacopy=on*)
    # One block for extended attributes, where the inode has no room for them.
    [ "$(stat -c %b "$dir/upper/large")" -le 8 ] || wrong "a file was copied of which only the mode changed"
    [ "$(xattr trusted.overlay.metacopy "$dir/upper/large")" != none ] || wrong "no xattr for metacopy" ;;
  *)
    is "size of the file that was copied up" 1048576 "$(stat -c %s "$dir/upper/large")" ;;
  esac
  case $options in *index=on*)
    is "the other link of a file that was written" changed "$(cat "$dir/merged/link")"
    is "its inode" "$(stat -c %i "$dir/merged/linked")" "$(stat -c %i "$dir/merged/link")" ;;
  esac
  case $options in *nfs_export=on*)
    "$probe" make-handles "$dir/merged/handles" 300 /tmp/list || wrong "handles were not made" ;;
  esac
  remount_overlay "$dir" "$options"
  check "$dir/merged" "$dir"
  is "a file in the renamed directory" lower "$(cat "$dir/merged/moved/sub/file")"
  case $options in *nfs_export=on*)
    "$probe" check-handles "$dir/merged" /tmp/list || wrong "handles do not lead back" ;;
  esac
  umount "$dir/merged" || wrong "umount"
  log_is_silent
  echo "tried: $options"
}

# As an ordinary user, in a user namespace: what overlayfs notes goes into user.overlay.*.
try_userxattr() {
  local dir=$share/user options=userxattr share=$share
  name="userxattr as an ordinary user"
  make_layers "$dir"
  # What is below is asked whether it has O_TMPFILE.
  share=$dir
  chown -R fsgqa:fsgqa "$dir"
  chmod 755 "$dir"
  dmesg -C
  export -f mount_overlay change check is wrong xattr in_namespace
  export name bad dir options share
  setpriv --reuid fsgqa --regid fsgqa --clear-groups unshare --user --map-root-user --mount bash -c in_namespace || bad=1
  echo 3 >/proc/sys/vm/drop_caches
  is "owner of a file copied up" fsgqa "$(stat -c %U "$dir/upper/linked")"
  log_is_silent
  echo "tried: $name"
}

in_namespace() {
  mount_overlay "$dir" "$options" || { echo "WRONG ($name): mount failed"; exit 1; }
  change "$dir/merged"
  check "$dir/merged" "$dir"
  is "xattr of a directory made anew" y "$(xattr user.overlay.opaque "$dir/upper/doomed")"
  umount "$dir/merged"
  mount_overlay "$dir" "$options" || { echo "WRONG ($name): mounting again"; exit 1; }
  check "$dir/merged" "$dir"
  umount "$dir/merged"
  exit "$bad"
}

uname -r
try index=on,redirect_dir=on,metacopy=on
try index=on,redirect_dir=on,nfs_export=on
try_userxattr

# All four at once is what no kernel takes (fs/overlayfs: "conflicting options: nfs_export=on,metacopy=on"), whatever the
# layers lie on. Should one take it, it is tried as well.
all=index=on,metacopy=on,redirect_dir=on,nfs_export=on
make_layers /tmp/overlay
dmesg -C
if mount_overlay /tmp/overlay $all 2>/dev/null; then
  umount /tmp/overlay/merged
  try $all
else
  echo "refused by this kernel on any file system: $all: $(dmesg | sed -n 's/.*overlayfs: //p' | tail -n 1)"
fi
[ $bad = 0 ]
