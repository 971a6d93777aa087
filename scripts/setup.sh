#!/usr/bin/env bash
# Brings a Debian or Ubuntu machine that has Rust to where this repository builds. Quick when all is there.
#
#   scripts/setup.sh           the C++ compiler and libclang, and RocksDB (about 15 minutes of two cores, once per machine)
#   scripts/setup.sh --tests   also what tests use: a browser with its driver, Nginx, Node, Python's openai package, what
#                              disks and clocks go wrong with (e2fsprogs, xfsprogs, strace, libfaketime) and networks are made of,
#                              and what reads the files of deploy/ (HAProxy, Prometheus, systemd-analyze)
#   scripts/setup.sh --bench   also etcd, which `cargo jepsen bench --etcd /usr/bin/etcd` measures beside us
set -euo pipefail
source "$(dirname "$0")/env.sh"

tests="" bench=""
for argument in "$@"; do
  case "$argument" in
    --tests) tests=1 ;;
    --bench) bench=1 ;;
    *) fail "unknown argument $argument; see the head of $0" ;;
  esac
done

command -v cargo > /dev/null || fail "cargo is not installed; install Rust from https://rustup.rs and try again"

PATH="$PATH:/usr/sbin:/sbin"
has() { command -v "$1" > /dev/null; }
exists() { compgen -G "$1" > /dev/null; }

# What is missing, by its use; packages are named only when one has to be installed.
has_libclang() {
  local dir
  [ -z "${LIBCLANG_PATH:-}" ] || return 0
  for dir in '/usr/lib*' '/usr/lib/*' '/usr/lib/llvm-*/lib' '/usr/local/lib'; do
    if exists "$dir/libclang.so*" || exists "$dir/libclang-[0-9]*.so*"; then return 0; fi
  done
  return 1
}
has_clang_headers() {
  exists '/usr/lib/llvm-*/lib/clang/*/include/stddef.h' || exists '/usr/lib*/clang/*/include/stddef.h'
}
missing=()
need() { missing+=("$1"); }
{ has c++ && has cc; } || need g++
has_libclang && has_clang_headers || need libclang
# Without the roots cargo cannot trust the registry; wherever they are, this is where Debian's TLS libraries look.
[ -e /etc/ssl/certs/ca-certificates.crt ] || [ -e /etc/pki/tls/certs/ca-bundle.crt ] || need ca-certificates
has curl || need curl
if [ -n "$tests" ]; then
  has chromium || need chromium
  has chromedriver || need chromium-driver
  has nginx || need nginx
  exists '/usr/lib/nginx/modules/ngx_stream_module.so' || need libnginx-mod-stream
  has haproxy || need haproxy
  { has prometheus && has promtool; } || need prometheus
  has systemd-analyze || need systemd
  has node || need nodejs
  has ip || need iproute2
  has nft || need nftables
  { has unshare && has setpriv; } || need util-linux
  # Debian's Python can make no environment without it.
  { has python3 && python3 -c 'import ensurepip' 2> /dev/null; } || need python3-venv
  { has mkfs.ext4 && has e2fsck; } || need e2fsprogs
  has xfs_io || need xfsprogs
  has strace || need strace
  { has mount && has umount; } || need mount
  { exists '/usr/lib*/faketime/libfaketimeMT.so.1' || exists '/usr/lib/*/faketime/libfaketimeMT.so.1'; } || need libfaketime
fi
if [ -n "$bench" ]; then has etcd || need etcd-server; fi

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; elif [ -n "${CI:-}" ]; then sudo -n "$@"; else sudo "$@"; fi
}

candidate() { [[ "$(LC_ALL=C apt-cache policy "$1")" =~ 'Candidate: '[^\(] ]]; }

# The distribution's own version of libclang, else the newest that it has. Its headers are a package of their own;
# `libclang-dev` would bring both and 200 MB more.
libclang_packages() {
  local version
  version="$(LC_ALL=C apt-cache depends libclang1 2> /dev/null | sed -n 's/^ *Depends: libclang1-\([0-9]*\).*/\1/p')" || true
  [ -n "$version" ] || version="$(apt-cache pkgnames libclang1- | sed -n 's/^libclang1-\([0-9]*\)$/\1/p' | sort -n | tail -1)"
  [ -n "$version" ] || fail "apt knows no libclang1-*; install libclang by hand and set LIBCLANG_PATH"
  echo "libclang1-$version" "libclang-common-$version-dev"
}

install_missing() {
  has apt-get || fail "missing: ${missing[*]}; there is no apt-get here, so please install them by hand"
  [ "$(id -u)" = 0 ] || has sudo || fail "missing: ${missing[*]}; run as root, or install sudo"
  echo "setup: missing ${missing[*]}"
  as_root apt-get -qq update || fail "apt-get update failed"
  local packages=() name
  for name in "${missing[@]}"; do
    case "$name" in
      libclang) read -ra found <<< "$(libclang_packages)"; packages+=("${found[@]}") ;;
      # Ubuntu has no Chromium but a snap; the tests that use it say that they are skipped (and fail on CI).
      chromium | chromium-driver) if candidate "$name"; then packages+=("$name"); else echo "setup: apt has no $name" >&2; fi ;;
      *) packages+=("$name") ;;
    esac
  done
  [ "${#packages[@]}" -gt 0 ] || return 0
  # Tests start their own servers on ports of their own: installed ones need not run.
  local policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" > /dev/null
    as_root chmod 755 "$policy"
    trap 'as_root rm -f /usr/sbin/policy-rc.d' EXIT
  fi
  echo "setup: installing ${packages[*]}"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends "${packages[@]}" > /dev/null \
    || fail "apt-get install failed"
}

if [ "${#missing[@]}" -gt 0 ]; then install_missing; fi
scripts/rocksdb.sh
# Its registry is not Debian's: where it cannot be had, the test that uses it says that it is skipped (and fails on CI).
if [ -n "$tests" ]; then scripts/python-openai.sh > /dev/null || echo "setup: no openai package for Python" >&2; fi
