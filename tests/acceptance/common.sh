# shellcheck shell=bash
# Sourced by the scripts beside it. Each is one line of what the file server has to pass, starts `vmm` as a user does, prints
# what it did and a verdict, and exits with 0 only if all of it passed. Where KVM is of no use here, what needs it runs in an
# emulated host: the script calls itself there with `inside` as its first argument.
#
# Leaves in variables:
#   root vmm cache   this repository, its program, vmm's cache
#   probe            tests/guest_probe, once `build_probe` was called
#   work             inside: a folder for shares, on ext4 in an emulated host; removed at the end
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=tests/common.sh
. "$root/tests/common.sh"
vmm=${VMM_BIN:-$root/target/release/vmm}
script=$(basename "$0")

# Builds what $probe names. Static, so that it runs in any root image; a target directory of its own, as other flags
# would rebuild everything else.
# shellcheck disable=SC2034 # Scripts that source this use it.
probe=$root/target/static/x86_64-unknown-linux-gnu/release/guest-probe
build_probe() {
  (cd "$root" && RUSTFLAGS='-C target-feature=+crt-static' cargo build --quiet --release --locked -p tests --bin guest-probe \
    --target x86_64-unknown-linux-gnu --target-dir target/static)
}

# Adds the suite acceptance-programs: a guest with git, make, SQLite and PostgreSQL, and the scripts in guest/ as they are now.
add_programs() {
  "$vmm" suite add acceptance-programs --manifest "$root/tests/acceptance/programs.toml" --source "$root/tests/acceptance/guest"
}

# fetch_source PACKAGE DIR: the files of a Debian source package, from where this machine has its packages.
fetch_source() {
  local apt file
  apt=$(mktemp -d)
  mkdir -p "$apt/lists/partial" "$apt/sources" "$2"
  while read -r file; do
    sed 's/^Types: deb$/Types: deb-src/; s/^deb /deb-src /' "$file" >"$apt/sources/$(basename "$file")"
  done < <(grep -lsE '^[^#]*/debian' /etc/apt/sources.list /etc/apt/sources.list.d/*)
  local options=(-qq -o "Dir::Etc::sourcelist=/dev/null" -o "Dir::Etc::sourceparts=$apt/sources" -o "Dir::State::lists=$apt/lists"
    -o "APT::Sandbox::User=$(id -un)")
  apt-get "${options[@]}" update
  (cd "$2" && apt-get "${options[@]}" source --download-only "$1")
  rm -rf "$apt"
}

# Goes on where KVM works, as `SCRIPT inside ARGS...`; never returns. The limit is for a host that stands still.
inside() {
  local limit=$1
  shift
  exec timeout --kill-after=30s "$limit" "$vmm" host exec -- "$root/tests/acceptance/$script" inside "$@"
}

# The folder `work`, and a guest's tidy end whatever happens.
begin_inside() {
  local scratch=${VMM_SCRATCH_DIR:-$cache/scratch}
  mkdir -p "$scratch"
  work=$(mktemp -d "$scratch/acceptance.XXXXXX")
  trap end_inside EXIT
}

end_inside() {
  local mounted
  # What is mounted below goes first.
  while read -r mounted; do
    umount "$mounted"
  done < <(awk -v below="$work/" 'index($2, below) == 1 {print $2}' /proc/mounts)
  rm -rf "$work"
}

# An xfs file system of 4 GiB, as far as it is written, mounted at $1.
make_xfs() {
  truncate -s 4G "$1.img"
  mkfs.xfs -q "$1.img"
  # An emulated host loads what it may want while the first command runs.
  timeout 300 sh -c 'until [ -e /dev/loop-control ]; do sleep 0.5; done'
  mkdir "$1"
  mount -o loop "$1.img" "$1"
}

# Of the combinations on standard input, one a line, those that match the pattern ONLY; all unless it is set.
chosen() {
  grep -E -e "${ONLY:-}" || echo "$script: nothing matches ONLY=$ONLY" >&2
}

# guest ARGS...: vmm with these, up to three times while it says that nothing could be tested (exit code 125): an emulated host
# on a busy machine may be too slow for the check of its KVM or for a boot. Its input is empty.
guest() {
  local attempt code
  for attempt in 1 2 3; do
    code=0
    "$vmm" "$@" </dev/null || code=$?
    [ "$code" -eq 125 ] || break
    echo "$script: could not be tested, attempt $attempt"
  done
  return "$code"
}

failures=0
# Says what went wrong, and that it counts.
failed() {
  echo "$script: FAILED: $*"
  failures=$((failures + 1))
}

# verdict COUNT WHAT: the last word, of so many times that something was tried.
verdict() {
  if [ "$1" -eq 0 ]; then
    echo "$script: FAILED: nothing was tried"
    exit 1
  elif [ "$failures" -ne 0 ]; then
    echo "$script: FAILED: $failures of $1 times: $2"
    exit 1
  fi
  echo "$script: PASSED: $1 times: $2"
}
