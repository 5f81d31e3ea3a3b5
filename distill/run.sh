#!/usr/bin/env bash
# Make the built-in miniature from nothing: train, score, look. Stages whose result exists are skipped.
#   distill/run.sh [OUT]        (default: out/miniature; one H100-class GPU: 25 minutes of training, then scores and sheets)
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-out/miniature}
export PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
export PYTHONPATH=kernels:engine:server:distill:clients/python${PYTHONPATH:+:$PYTHONPATH}
python=${PYTHON:-python3}
mkdir -p "$out"

# Compile stages 2 and 3 into the on-disk cache while stage 1 trains.
if [ ! -e "$out/flow.safetensors" ] && [ "${DEVICE:-cuda}" = cuda ]; then
  "$python" -m twinshot_distill.miniature.train "$out/compile" --compile-only >"$out/compile.log" 2>&1 &
fi
"$python" -m twinshot_distill.miniature.train "$out" --device "${DEVICE:-cuda}" 2>&1 | tee -a "$out/train.log"
"$python" -m twinshot_distill.evaluate "$out/checkpoint" --steps 1 --steps 2 --steps 4 --steps 30 \
  --combinations unseen --combinations seen --batch "${BATCH:-50}" --out "$out/scores.json" 2>&1 | tee -a "$out/scores.log"
"$python" -m twinshot_distill.contact_sheet "$out/checkpoint" --out "$out"
