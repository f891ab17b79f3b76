#!/usr/bin/env bash
# Runs the tests of the dashboard in a real browser, if there is one; says plainly what is missing if not. The binaries have
# to be built.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

skip() {
  echo "The dashboard is NOT tested: $1. On Debian: apt-get install --no-install-recommends chromium nodejs npm" >&2
  exit 0
}

CHROMIUM=${CHROMIUM:-$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)}
[ -n "$CHROMIUM" ] || skip "there is no chromium"
command -v node >/dev/null || skip "there is no node"
command -v npm >/dev/null || skip "there is no npm"
[ "$(node -p 'Number(process.versions.node.split(".")[0])')" -ge 18 ] || skip "node is older than 18"
if ! cmp -s package-lock.json node_modules/.installed; then
  timeout 300 npm ci --ignore-scripts --no-audit --no-fund >&2 || skip "npm does not get playwright-core"
  cp package-lock.json node_modules/.installed
fi
export CHROMIUM
exec node --test
