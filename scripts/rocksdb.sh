#!/usr/bin/env bash
# Builds RocksDB's static library once per machine, so that no checkout and no profile compiles its C++ again.
#
# The library lands in a cache outside every target directory, and `.cargo/rocksdb.toml` (ignored by git, included by
# `.cargo/config.toml`) points cargo at it. Without that file cargo builds RocksDB itself, once per target directory
# and profile: slower, with the same result.
#
#   OPENCLAW_CACHE_DIR   where the library is kept (default: ${XDG_CACHE_HOME:-~/.cache}/openclaw)
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
# One line each in Cargo.lock and the workspace manifest decide what is built; the cache key names both.
version="$(grep -A1 '^name = "librocksdb-sys"' "$root/Cargo.lock" | sed -n 's/^version = "\(.*\)"/\1/p')"
cpu="$(sed -n 's/.*target-cpu=\([a-z0-9-]*\).*/\1/p' "$root/.cargo/config.toml" | head -1)"
[ "$(uname -m)" = x86_64 ] || cpu=""
cache="${OPENCLAW_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/openclaw}"
out="$cache/rocksdb-$version-lz4-$(uname -m)${cpu:+-$cpu}"

point_cargo_at_it() {
  printf '# Written by scripts/rocksdb.sh: RocksDB as built once on this machine.\n[env]\nROCKSDB_LIB_DIR = "%s"\nROCKSDB_STATIC = "1"\n' "$out" \
    > "$root/.cargo/rocksdb.toml.$$"
  mv "$root/.cargo/rocksdb.toml.$$" "$root/.cargo/rocksdb.toml"
}

if [ -s "$out/librocksdb.a" ]; then
  point_cargo_at_it
  echo "rocksdb $version: found in $out"
  exit 0
fi

mkdir -p "$out"
exec 9> "$out/lock"
if ! flock -n 9; then
  echo "rocksdb $version: another build is under way, waiting for it"
  flock 9
fi
if [ -s "$out/librocksdb.a" ]; then point_cargo_at_it; exit 0; fi

work="$cache/work-$version"
mkdir -p "$work/src"
echo > "$work/src/lib.rs"
cat > "$work/Cargo.toml" <<TOML
[package]
name = "rocksdb-cache"
version = "0.0.0"
edition = "2024"
[workspace]
[dependencies]
librocksdb-sys = { version = "=${version%%+*}", default-features = false, features = ["bindgen-runtime", "lz4"] }
[profile.release]
opt-level = 2
debug = false
TOML

echo "rocksdb $version: compiling its C++ once for this machine, about 15 minutes on two cores; kept in $out"
log="$work/build.log"
started=$SECONDS
# The build must not see the pointer to the library that it is to make.
(cd "$work" && env -u ROCKSDB_LIB_DIR -u ROCKSDB_STATIC CARGO_TARGET_DIR="$work/target" \
  RUSTFLAGS="${cpu:+-Ctarget-cpu=$cpu}" cargo build --release 9>&-) > "$log" 2>&1 &
build=$!
trap 'kill $build 2>/dev/null || true' INT TERM
total=""
while kill -0 $build 2>/dev/null; do
  sleep 10
  objects="$(find "$work/target" -path '*librocksdb-sys*' -name '*.o' 2>/dev/null | wc -l)"
  [ -n "$total" ] || total="$(cat "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/librocksdb-sys-"${version}"/rocksdb_lib_sources.txt 2>/dev/null | wc -l)"
  if [ $(( (SECONDS - started) % 60 )) -lt 10 ]; then
    echo "rocksdb: $objects of ${total:-?} files, $(( SECONDS - started )) s"
  fi
done
if ! wait $build; then
  tail -30 "$log" >&2
  echo "rocksdb: the build failed; the whole log is $log" >&2
  exit 1
fi
lib="$(find "$work/target" -name librocksdb.a | head -1)"
cp "$lib" "$out/librocksdb.a.tmp"
mv "$out/librocksdb.a.tmp" "$out/librocksdb.a"
rm -rf "$work"
point_cargo_at_it
echo "rocksdb $version: built in $(( SECONDS - started )) s"
