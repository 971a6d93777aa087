#!/usr/bin/env bash
# Puts the official `openai` Python package, with which tests/openai.rs talks to us, into an environment of its own, and
# prints the path of that environment's interpreter. Quick when all is there.
#
#   OPENCLAW_CACHE_DIR   where the environment is kept, as python-openai/ (default: ${XDG_CACHE_HOME:-~/.cache}/openclaw)
set -euo pipefail
source "$(dirname "$0")/env.sh"

version=3.54.0
environment="$OPENCLAW_CACHE_DIR/python-openai"
python="$environment/bin/python"

# pip installs what a package needs before the package itself: where the package is, all is.
installed() {
  [ -x "$python" ] && "$python" -c "import importlib.metadata as m, sys; sys.exit(m.version('openai') != '$version')" 2> /dev/null
}

if ! installed; then
  command -v python3 > /dev/null || fail "python3 is not installed"
  mkdir -p "$OPENCLAW_CACHE_DIR"
  exec 9> "$environment.lock"
  flock 9
  if ! installed; then
    echo "openai $version: installing it in $environment" >&2
    # Without Debian's python3-venv the module is there and cannot make an environment; pip then is what is missing.
    python3 -m venv --clear "$environment" >&2 || fail "python3 -m venv failed (Debian: python3-venv)"
    "$python" -m pip install --quiet --disable-pip-version-check "openai==$version" >&2 || fail "pip install openai==$version failed"
  fi
fi
echo "$python"
