#!/usr/bin/env bash
# Checks the alerts, runs their tests, and checks that the dashboard's queries can be read, with the promtool that is on PATH; else with
# that of Debian's or Ubuntu's package `prometheus`, which is fetched once, unpacked into the cache and not installed. apt checks its
# signature. Where there is neither, it says so and lets the rest go on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

skip() {
  echo "The alerts are NOT checked: $1. On Debian: apt-get install prometheus" >&2
  exit 0
}

cached=${PENSTOCK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/penstock}/promtool/promtool
promtool=$(command -v promtool || true)
if [ -z "$promtool" ] && [ ! -x "$cached" ]; then
  command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || skip "there is no promtool"
  mkdir -p "$(dirname "$cached")"
  work=$(mktemp -d "$(dirname "$cached")/partial-XXXXXX")
  trap 'rm -rf "$work"' EXIT
  (cd "$work" && timeout 300 apt-get -q download prometheus >&2) || skip "there is no promtool, and apt does not get its package"
  dpkg-deb --fsys-tarfile "$work"/prometheus_*.deb | tar -x -C "$work" ./usr/bin/promtool
  mv "$work/usr/bin/promtool" "$cached"
fi
promtool=${promtool:-$cached}
"$promtool" check rules alerts.yaml
"$promtool" test rules alerts.test.yaml

# As rules, because promtool reads no dashboards. It does not know what Grafana puts in for its variables.
queries=$(mktemp --suffix=.yaml)
trap 'rm -rf "${work:-}" "$queries"' EXIT
python3 - ../grafana/penstock.json >"$queries" <<'PYTHON'
import json, re, sys

def expressions(node):
    if isinstance(node, dict):
        if isinstance(node.get("expr"), str):
            yield re.sub(r"\$__\w+", "5m", node["expr"])
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from expressions(child)

rules = [{"record": f"query:{at}", "expr": query} for at, query in enumerate(expressions(json.load(open(sys.argv[1]))))]
assert len(rules) > 20, rules
print(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
PYTHON
"$promtool" check rules "$queries"
