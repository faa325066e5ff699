#!/usr/bin/env bash
# Shows that tests notice a bad file server: runs pjdfstest-rs and the checks beside this file once soundly and once with
# each of ten faults in it, and prints which tests caught which. Exit code 1 if a fault was not caught, or something was
# found without one.
#   planted.sh VMM [BUG...]       VMM is a build with `--features planted-bugs`
# PLANTED_TESTS, for slow hosts, are words for pjdfstest-rs that choose some of its tests; each fault then meets only the suite
# that should catch it.
# Wants KVM that works: `vmm host exec -- tests/planted/planted.sh ...` where this machine's does not. PLANTED_SOUND says how
# many runs without a fault there are, 1 if it is not set.
set -uo pipefail
vmm=$(realpath "${1:?planted.sh VMM [BUG...]}")
shift
here=$(dirname "$(realpath "$0")")
bugs=(rename-errno mtime-lost dot-missing suid-kept size-stale xattr-dropped fsync-ignored link-count entry-doubled lock-twice)
[ $# = 0 ] || bugs=("$@")
work=$(mktemp -d "${VMM_SCRATCH_DIR:-/tmp}/planted-XXXXXX")
trap 'rm -rf "$work"' EXIT
"$vmm" suite add small-checks --manifest "$here/suite.toml" --source "$here" >"$work/add.log" 2>&1 ||
    { cat "$work/add.log"; exit 125; }

read -ra tests <<<"${PLANTED_TESTS:-}"

# With --posix-locks, or the guest's kernel would keep locks to itself.
run() { # NAME FLAG...
    local name=$1
    shift
    set -- "$vmm" run --host kvm --posix-locks --quiet "$@"
    if [ ${#tests[@]} = 0 ]; then
        "$@" --results "$work/$name" pjdfstest-rs small-checks >"$work/$name.log" 2>&1
        return
    fi
    # Words are for one suite, so each has a run of its own.
    local code=0
    case $name in rename-errno | size-stale | link-count | fsync-ignored) ;; *)
        "$@" --results "$work/$name" small-checks >"$work/$name.log" 2>&1 || code=$?
        ;;
    esac
    case $name in rename-errno | size-stale | link-count | sound-*)
        "$@" --results "$work/$name.pjd" pjdfstest-rs -- "${tests[@]}" >>"$work/$name.log" 2>&1 || code=$?
        ;;
    esac
    return $code
}

# Whether fsync wrote a file's data: on ext4 it has no place on the disk before (delayed allocation). Nobody else may write
# it first, and unmounting the share would.
# 0: it did; 1: it did not; 2: that cannot be said.
fsync_works() { # FLAG...
    local dir=$work/fsync on_disk=2
    rm -rf "$dir" && mkdir "$dir"
    "$vmm" exec --host kvm --shared-dir "$dir:myfs1" "$@" -- sh -c \
        'dd if=/dev/zero of=/mnt/virtiofs1/f bs=4k count=16 conv=fsync 2>/dev/null && echo written > /mnt/virtiofs1/told && sleep 5' \
        >"$work/fsync.log" 2>&1 &
    for ((tenths = 0; tenths < 1200; tenths++)); do
        if [ -s "$dir/told" ]; then
            if filefrag -v "$dir/f" 2>&1 | tee "$work/extents" | grep -q delalloc; then on_disk=1; else on_disk=0; fi
            break
        fi
        kill -0 $! 2>/dev/null || break
        sleep 0.1
    done
    wait $!
    return $on_disk
}

bad_tests() { # NAME
    python3 - "$work/$1/latest/results.json" "$work/$1.pjd/latest/results.json" <<'P'
import json, os, sys
suites = [suite for name in sys.argv[1:] if os.path.exists(name) for suite in json.load(open(name))["suites"]]
bad = [(s["name"], t["test"]) for s in suites for t in s["tests"] if t["status"] in ("fail", "error")]
few = "; ".join(f"`{test}`" for _, test in bad[:3])
more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
print(f"{len(bad)} | {few}{more}")
P
}

wrong=0
echo "| fault | exit code | tests that failed | which |"
echo "| --- | --- | --- | --- |"
for ((time = 1; time <= ${PLANTED_SOUND:-1}; time++)); do
    run "sound-$time"
    code=$?
    [ $code = 0 ] || wrong=1
    echo "| none | $code | $(bad_tests "sound-$time") |"
done
fsync_works || { echo "| none | | 1 | by the host: fsync |"; wrong=1; cat "$work/fsync.log" >&2; }
for bug in "${bugs[@]}"; do
    run "$bug" --planted-bug "$bug"
    code=$?
    found=$(bad_tests "$bug")
    if [ "$bug" = fsync-ignored ]; then
        # No guest sees it while the host lives.
        fsync_works --planted-bug "$bug"
        case $? in
        1) found="$found by the host: after fsync the data had no place on the disk" ;;
        *) wrong=1 && cat "$work/fsync.log" >&2 ;;
        esac
    elif [ $code != 1 ]; then
        wrong=1
        tail -n 5 "$work/$bug.log" >&2
    fi
    echo "| \`$bug\` | $code | $found |"
done
exit $wrong
