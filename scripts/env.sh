# Sourced by the scripts beside it: where things are, and the one place where cargo builds.
#
# All checkouts on a machine build into one directory, so that a fresh clone compiles the dependencies (and above all
# links RocksDB) no second time. Cargo does not tell the crates of two checkouts apart, and goes by their files' times, so
# what another checkout built last is forgotten here before anything is built. Do not build two checkouts at the same
# moment, or give one of them a CARGO_TARGET_DIR of its own.
#
#   OPENCLAW_CACHE_DIR   holds RocksDB and the target directory (default: ${XDG_CACHE_HOME:-~/.cache}/openclaw)
#   CARGO_TARGET_DIR     only the target directory (default: $OPENCLAW_CACHE_DIR/target)
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
export OPENCLAW_CACHE_DIR="${OPENCLAW_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/openclaw}"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$OPENCLAW_CACHE_DIR/target}"
if [ "$(cat "$CARGO_TARGET_DIR/checkout" 2> /dev/null)" != "$root" ]; then
  rm -rf "$CARGO_TARGET_DIR"/*/.fingerprint/{openclaw,jepsen-lite,base2histogram}-*
  mkdir -p "$CARGO_TARGET_DIR"
  echo "$root" > "$CARGO_TARGET_DIR/checkout"
fi
# rustup's installer puts cargo there; shells that were open before do not know it yet.
command -v cargo > /dev/null || PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"

fail() {
  echo "error: $*" >&2
  exit 1
}
