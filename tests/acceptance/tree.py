#!/usr/bin/env python3
"""Lists a directory tree, one line for each file, in an order that depends on nothing but names: what a guest and its host must
agree on. `tree.py DIR`: path, inode number, type and mode, owner, group, links, size, device number, times of change of data
and of inode, symbolic link's target, extended attributes, SHA-256 of the data. Files are opened only if they are regular."""

import hashlib
import os
import stat
import sys


def printable(raw):
    return raw.decode("utf-8", "backslashreplace").encode("unicode_escape").decode()


def describe(path):
    info = os.lstat(path)
    special = stat.S_ISBLK(info.st_mode) or stat.S_ISCHR(info.st_mode)
    fields = [
        f"ino={info.st_ino}",
        f"mode={info.st_mode:o}",
        f"owner={info.st_uid}:{info.st_gid}",
        f"links={info.st_nlink}",
        # A directory's size is the file system's own affair, yet the guest is told the host's.
        f"size={info.st_size}",
        f"mtime={info.st_mtime_ns}",
        f"ctime={info.st_ctime_ns}",
    ]
    if special:
        fields.append(f"device={os.major(info.st_rdev)}:{os.minor(info.st_rdev)}")
    if stat.S_ISLNK(info.st_mode):
        fields.append(f"target={printable(os.readlink(path))}")
    for name in sorted(os.listxattr(path, follow_symlinks=False)):
        value = os.getxattr(path, name, follow_symlinks=False)
        fields.append(f"xattr:{name}={value.hex()}")
    if stat.S_ISREG(info.st_mode):
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
        fields.append(f"sha256={digest.hexdigest()}")
    return " ".join(fields)


def walk(path, shown):
    print(printable(shown), describe(path))
    if stat.S_ISDIR(os.lstat(path).st_mode):
        for name in sorted(os.listdir(path)):
            walk(os.path.join(path, name), os.path.join(shown, name))


sys.setrecursionlimit(100000)
walk(os.fsencode(sys.argv[1]), b".")
