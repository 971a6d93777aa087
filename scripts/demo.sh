#!/usr/bin/env bash
# Builds openclaw as released and runs `openclaw demo`: three instances and a balancer on this machine.
#
#   scripts/demo.sh [--port PORT] [--restart] ...     arguments are the demo's own: see bin/openclaw demo --help
set -euo pipefail
source "$(dirname "$0")/env.sh"

scripts/setup.sh
echo "building openclaw (the first time takes some minutes)"
cargo build --release --locked --package openclaw

# A copy belongs to this checkout, whatever is built next in the shared target directory; replaced, not overwritten,
# since an earlier demo may still be running from it.
mkdir -p bin
if ! cmp -s "$CARGO_TARGET_DIR/release/openclaw" bin/openclaw; then
  cp "$CARGO_TARGET_DIR/release/openclaw" "bin/openclaw.$$"
  mv "bin/openclaw.$$" bin/openclaw
fi
echo "for other terminals: export PATH=\"$root/bin:\$PATH\""
exec bin/openclaw demo "$@"
