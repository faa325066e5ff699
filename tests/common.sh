# shellcheck shell=bash
# Sourced by the scripts below this folder: what more than one kind of them needs of the machine.
# shellcheck disable=SC2034 # Scripts that source this use it.
cache=${VMM_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/vmm}

# need PACKAGE...: installs those of these Debian packages that are missing.
need() {
  local missing=() package sudo=
  for package in "$@"; do
    [ "$(dpkg-query -Wf '${Status}' "$package" 2>/dev/null)" = 'install ok installed' ] || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  [ "$(id -u)" -eq 0 ] || sudo=sudo
  echo "Installing ${missing[*]}" >&2
  $sudo apt-get update -qq >&2
  DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# Installs what building a kernel takes.
need_for_kernels() {
  need bc bison cpio flex gcc libc6-dev libelf-dev libssl-dev make perl xz-utils
}

# Unpacks Debian's linux-source-6.12 into the cache, the first time; prints its path.
kernel_source() {
  local tree=$cache/bench/linux-source-6.12 unpack
  if [ ! -d "$tree" ]; then
    echo "Unpacking Debian's linux-source-6.12" >&2
    mkdir -p "${tree%/*}"
    unpack=$(mktemp -d "${tree%/*}/unpack.XXXXXX")
    # A subshell, so that its trap is its own.
    (
      trap 'rm -rf "$unpack"' EXIT
      cd "$unpack" && apt-get download -q linux-source-6.12 >&2 && dpkg-deb -x ./*.deb . &&
        tar -xf usr/src/linux-source-6.12.tar.xz && mv linux-source-6.12 "$tree"
    ) || return 1
  fi
  echo "$tree"
}
