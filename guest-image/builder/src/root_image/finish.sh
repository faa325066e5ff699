# Customize hook of mmdebstrap: $1 is the new root. Runs as root of the build (in a user namespace, or really), outside
# of the new root. Leaves root.erofs, packages.txt and installed.txt in $1/vmm-image for the download hooks.
# Set by the caller: VMM_MKFS, VMM_EPOCH, VMM_UUID, VMM_USERS (lines of passwd(5)), VMM_GROUPS (of group(5)), VMM_FOLDERS.
set -eu
root=$1
out=$root/vmm-image
mkdir "$out"

# What is installed, and what apt knows of it: the hashes are those that apt has checked.
dpkg-query --admindir="$root/var/lib/dpkg" --show --showformat='${binary:Package} ${Version} ${Architecture}\n' \
    | LC_ALL=C sort > "$out/installed.txt"
dpkg-query --admindir="$root/var/lib/dpkg" --show --showformat='${Package}:${Architecture}=${Version}\n' \
    | LC_ALL=C sort \
    | APT_CONFIG=$MMDEBSTRAP_APT_CONFIG xargs apt-cache show > "$out/packages.txt"

# Written here and not by useradd, which refuses the name 123456-fsgqa that xfstests needs.
printf '%s\n' "$VMM_USERS" >> "$root/etc/passwd"
printf '%s\n' "$VMM_USERS" | while IFS=: read -r name _ uid gid _ home _; do
    echo "$name:!:19000:0:99999:7:::" >> "$root/etc/shadow"
    mkdir -p "$root$home"
    chown "$uid:$gid" "$root$home"
done
printf '%s\n' "$VMM_GROUPS" >> "$root/etc/group"
printf '%s\n' "$VMM_GROUPS" | while IFS=: read -r name _; do echo "$name:!::" >> "$root/etc/gshadow"; done

for folder in $VMM_FOLDERS; do mkdir -p "$root/$folder"; done

# From the building machine; the guest has its own.
echo vmm > "$root/etc/hostname"
rm -f "$root/etc/resolv.conf"
printf '127.0.0.1 localhost vmm\n::1 localhost\n' > "$root/etc/hosts"
ln -sf /proc/self/mounts "$root/etc/mtab"
printf 'PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"\n' > "$root/etc/environment"

# Nothing is removed from the tree: in it the building machine's own devices are mounted. What
# differs from build to build or is of no use in a guest is left out of the image instead. The compiled Python files
# hold reference flags that depend on memory; package databases are of no use without apt. -T sets all times; -x-1 leaves out
# extended attributes, which nothing in the image has, because to share them mkfs.erofs walks what is excluded too.
"$VMM_MKFS" --quiet -T"$VMM_EPOCH" -U"$VMM_UUID" -Eforce-inode-compact -x-1 \
    --exclude-path=vmm-image \
    --exclude-regex='^(boot|dev|proc|run|sys|tmp|var/cache|var/log|var/tmp)/.' \
    --exclude-regex='^var/lib/(apt|dpkg|systemd)$' \
    --exclude-regex='^etc/(apt|machine-id|(passwd|group|shadow|gshadow|subuid|subgid)-|\.pwd\.lock)$' \
    --exclude-regex='^usr/share/(bash-completion|bug|doc|info|lintian|locale|man)$' \
    --exclude-regex='(^|/)__pycache__$' \
    "$out/root.erofs" "$root"
