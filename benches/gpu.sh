#!/usr/bin/env bash
# What the engine does on a GPU: benchmarks against bare loops, then the whole stack with batches that do not fit and a device that fails for good.
# Decides nothing: `engine-bench` measures, and this looks at what the stack says. Not part of `make test`, which needs no GPU.
#
#   benches/gpu.sh BIN        the folder of penstock, penstock-engine and engine-bench, built anywhere on x86-64 against libtorch 2.11.0
#
# Needs a python3 that imports torch 2.11.0 with CUDA and torchvision, whose libraries the binaries are run with, and curl.
set -euo pipefail
bin=$(realpath "$1")
here=$(dirname "$(realpath "$0")")
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$work"' EXIT
LD_LIBRARY_PATH=$(python3 -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent / "lib")')
export LD_LIBRARY_PATH

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
python3 "$here/models/untrained.py" "$work/models" --loop cuda:0
for model in resnet18 perceptron; do
  "$bin/engine-bench" "$work/models" "$model" --device cuda:0 --round "${ROUND_SECONDS:-8}"
done

mkdir "$work/served"
cp -r "$here/../configs/demo/models/digits" "$work/models/lookup" "$work/models/hungry" "$work/served"
cat >"$work/penstock.yaml" <<YAML
listen: {http: 127.0.0.1:18000, grpc: null, monitor: 127.0.0.1:18002}
engine: {models: served, device: 'cuda:0'}
YAML
"$bin/penstock" serve --config "$work/penstock.yaml" &
until_it_answers() {
  for _ in $(seq 600); do
    if curl -sf "http://127.0.0.1:18000/v2/models/$1/ready"; then return; fi
    sleep 0.1
  done
  echo "$1 did not become ready"
  exit 1
}
ask() { curl -s "http://127.0.0.1:18000/v2/models/$1/infer" -d "$2"; echo; }
digit() { ask digits "@$here/../configs/demo/requests/digit-7.json"; }
twice() {
  python3 - "$1" <<'PY'
import json, sys, urllib.request
rows = int(sys.argv[1])
asked = [float(row) for row in range(rows)]
tensor = {"name": "number", "datatype": "FP32", "shape": [rows, 1], "data": asked}
request = urllib.request.Request("http://127.0.0.1:18000/v2/models/hungry/infer", json.dumps({"inputs": [tensor]}).encode())
answer = json.load(urllib.request.urlopen(request, timeout=60))["outputs"][0]["data"]
assert answer == [2 * row for row in asked], answer
print(f"{rows} rows, all of them right")
PY
}
index() { ask lookup "{\"inputs\":[{\"name\":\"index\",\"datatype\":\"INT64\",\"shape\":[1],\"data\":[$1]}]}"; }

until_it_answers digits
until_it_answers lookup
digit | tee "$work/answer" | cut -c1-200
grep -q '"data":\[7\]' "$work/answer"
index 3
until_it_answers hungry
echo "a batch that the GPU has no memory for is divided:"
for rows in 1 64 64 16; do twice "$rows"; done
digit | grep -q '"data":\[7\]'
curl -s http://127.0.0.1:18002/metrics | grep device_
curl -s http://127.0.0.1:18002/status | python3 -c 'import json, sys; print(json.dumps(json.load(sys.stdin))[:3000])'
echo "an index that is not there fails the GPU for the rest of the process:"
index 10
for _ in $(seq 600); do
  if digit | grep -q '"data":\[7\]'; then break; fi
  sleep 0.1
done
digit | grep -q '"data":\[7\]'
echo "the engine was replaced, and a 7 is a 7 again"
