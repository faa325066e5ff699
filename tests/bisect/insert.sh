# shellcheck shell=bash
# Sourced by the scripts beside it, in a kernel's tree.

# Inserts a line at the beginning of a function's body: after the declarations of those that are used here.
insert() { # FILE FUNCTION-LINE-PATTERN AFTER-PATTERN TEXT
    sed -i "/$2/,/^}/{/$3/a\\
\\	$4
}" "$1"
}

# Makes symlink(2) on FUSE begin with a statement.
break_symlink() {
    insert fs/fuse/dir.c '^static int fuse_symlink(' 'FUSE_ARGS(args);' "$1"
}
