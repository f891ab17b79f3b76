#!/usr/bin/env bash
# Rolls out version 2 of the running demo by canary, then a version 3 that is broken on purpose and comes back by itself.
# Asks as five thousand users would; puts everything back when it ends. Decides nothing: it asks, and shows what was decided.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

HTTP=${HTTP:-localhost:8000} ADMIN=${ADMIN:-127.0.0.1:8003}
DEMO=${DEMO:-configs/demo} PENSTOCK=${PENSTOCK:-target/release/penstock}

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
status() { "$PENSTOCK" status --admin "$ADMIN"; }
order() { curl -sf -X POST "http://$HTTP/v2/repository/models/digits/$1" -o /dev/null; }

status >/dev/null # says what is missing when the demo does not run

if [ -e "$DEMO/models/digits/3" ]; then
  echo "$DEMO/models/digits/3 is there already: this makes one of its own, and would remove yours" >&2
  exit 1
fi
before=$(mktemp)
cp "$DEMO/policies.yaml" "$before"
restore() {
  cp "$before" "$DEMO/policies.yaml"
  rm -rf "$before" "$DEMO/models/digits/3"
  order load || true
}
trap restore EXIT
trap 'exit 1' INT TERM

# Waits until the new policy is in force.
until_shown() {
  for _ in $(seq 100); do
    ! status | grep -q "$1" || return 0
    sleep 0.2
  done
  echo "the policy does not come into force" >&2
  return 1
}

# What was rolled back before stays so until somebody says otherwise.
once_more() {
  case $(status | head -1) in
    *"; rolled back,"*) "$PENSTOCK" canary resume digits --reason "it is shown once more" --admin "$ADMIN" >/dev/null ;;
  esac
}

# Asks until the rollout is over, and says when its share changes.
ask_until() {
  local user=0 now last=
  for _ in $(seq 600); do
    for at in $(seq 50); do
      [ "$at" = 1 ] || echo next
      printf 'url = "http://%s/v2/models/digits/infer"\nheader = "x-user-id: user-%d"\ndata = "@%s"\noutput = "/dev/null"\n' \
        "$HTTP" "$(((user + at) % 5000))" "configs/demo/requests/digit-$((at % 10)).json"
    done | curl -s --config -
    user=$((user + 50))
    now=$(status | head -1)
    [ "$now" = "$last" ] || { echo "$now"; last=$now; }
    case $now in *"; $1,"*) return ;; esac
  done
  echo "this should not take so long" >&2
  return 1
}

say "Version 2 is rolled out:"
cp configs/demo/rollout.yaml "$DEMO/policies.yaml"
until_shown "version 2 gets"
once_more
ask_until promoted
say "What was decided, and why:"
status

say "Version 3, which is broken, is loaded and rolled out. It passes its self-test, and fails on real digits:"
mkdir "$DEMO/models/digits/3"
cp configs/demo/broken/model.pt configs/demo/broken/model.yaml "$DEMO/models/digits/3/"
order load
sed 's/baseline: 1/baseline: 2/; s/candidate: 2/candidate: 3/' configs/demo/rollout.yaml >"$DEMO/policies.yaml"
until_shown "version 3 gets"
once_more
ask_until "rolled back"
say "What was decided, and why:"
status
if [ -t 0 ]; then
  read -rp $'\nThe dashboard shows it as long as it is so. Enter puts everything back: ' || true
fi
say "Everything is as it was before."
