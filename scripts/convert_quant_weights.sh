#!/usr/bin/env bash
# Sparse weights (W8A8S) of GLM-4-9B by the arguments of MindIE's script of this name.
# Of each layer the attention's output projection alone is quantized, as there. The second step, which
# compresses OUT for the cards of one device, is the vendor's own and not public: OUT is the result.
#   PYTHON   the interpreter; default python
read -r -d '' USAGE <<'TEXT'
usage: bash convert_quant_weights.sh FLOAT OUT CALIB TP DEVICE DEVICES [-trust_remote_code]
TEXT

fail() {
  echo "error: $1 ($USAGE)." >&2
  exit 1
}

case ${1-} in -h | --help) echo "$USAGE"; exit 0 ;; esac
options=()
if [ $# -eq 7 ]; then
  [ "$7" = -trust_remote_code ] || fail "the seventh argument must be -trust_remote_code, got $7"
  options=(--trust_remote_code True)
elif [ $# -ne 6 ]; then
  fail "convert_quant_weights.sh takes 6 arguments, got $#"
fi
case $4 in 1 | 2 | 4 | 8 | 16) ;; *) fail "TP must be 1, 2, 4, 8 or 16, got $4" ;; esac

echo "mindformers_glm: the devices $5 and $6 are not needed, quantizing runs on the CPU; $2 will" \
  "be W8A8S: what the cards' compressor makes of it (W8A8SC, $2/compress) is not public" >&2
layer='transformer.encoder.layers.*'
PYTHON=${PYTHON:-python}
command -v "$PYTHON" > /dev/null || fail "there is no interpreter $PYTHON: name one in PYTHON"
exec "$PYTHON" "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/quant_glm.py" \
  --model_path "$1" --save_directory "$2" --calib_file "$3" --w_bit 4 --a_bit 8 --is_lowbit True \
  --disable_names "$layer.mlp.dense_4h_to_h" "$layer.self_attention.query_key_value" \
  "$layer.mlp.dense_h_to_4h" --mindie_format "${options[@]}"
