#!/bin/sh
# Makes a Python environment with OpenVINO GenAI, and exports a folder of make_slice.py for it as
# float16, int8 and int4 (symmetric, groups of 128):
#
#     scripts/bench/peers/export_openvino.sh /tmp/peers/openvino /tmp/slices/9b4 /tmp/peers/ov/9b4
#
# The folder needs a tokenizer.json. The export holds the weights in memory twice.
set -eu

[ $# -eq 3 ] || { echo "usage: $0 ENVIRONMENT MODEL OUTPUT" >&2; exit 2; }
environment=$1 model=$2 output=$3

if [ ! -x "$environment/bin/optimum-cli" ]; then
  "${PYTHON:-python3}" -m venv "$environment"
  pip="$environment/bin/pip --quiet --disable-pip-version-check"
  $pip install openvino-genai optimum-intel nncf
  # It comes along and does not load beside a torch without CUDA.
  $pip uninstall -y torchvision
fi

mkdir -p "$output"
for format in fp16 int8 int4; do
  [ -d "$output/$format" ] && continue
  [ $format = int4 ] && grouping="--sym --group-size 128 --ratio 1.0" || grouping=""
  unfinished=$output/.$format.tmp
  rm -rf "$unfinished"
  nice -n 10 "$environment/bin/optimum-cli" export openvino --model "$model" \
    --task text-generation-with-past --disable-convert-tokenizer --weight-format $format \
    $grouping "$unfinished"
  mv "$unfinished" "$output/$format"
done
