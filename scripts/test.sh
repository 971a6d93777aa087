#!/usr/bin/env bash
# All tests and lints, as CI runs them. Every step runs, whatever became of the ones before; the last lines tell.
set -uo pipefail
source "$(dirname "$0")/env.sh"

summary=() failed=""
step() {
  local name="$1" started=$SECONDS verdict=passed
  shift
  echo
  echo "== $name: $*"
  "$@" || { verdict=FAILED; failed=1; }
  summary+=("$(printf '%-7s %6d s  %s' "$verdict" $((SECONDS - started)) "$name")")
  echo "== $name: $verdict after $((SECONDS - started)) s"
}

step setup scripts/setup.sh --tests
[ -z "$failed" ] || exit 1
step format cargo fmt --all --check
# Compiled first, so that the time of the tests is their own.
step build cargo test --locked --workspace --no-run
step test cargo test --locked --workspace --no-fail-fast
step lint cargo lint

echo
printf '%s\n' "${summary[@]}"
[ -z "$failed" ]
