#!/usr/bin/env bash
# Instructions of one decision, counted and not timed: the difference between two runs. Needs valgrind.
#   benches/decision/instructions.sh BINARY
set -euo pipefail
count() {
  valgrind --tool=callgrind --callgrind-out-file=/dev/null "$1" "$2" 2>&1 | sed -n 's/.*Collected : //p'
}
few=$(count "$1" 200000)
many=$(count "$1" 300000)
echo "$(((many - few) / 100000)) instructions for each decision"
