#!/usr/bin/env bash
# W8A8 of GLM-4-9B by the options of MindIE's script of this name, in msModelSlim's old layout.
# The guide's calibration set, civil_servant.jsonl of C-Eval, cannot ship: --calib_file names it, or
# the texts that ship with the project are taken.
#   PYTHON   the interpreter; default python
read -r -d '' USAGE <<'TEXT'
usage: bash quant_glm4_w8a8.sh -src FLOAT -dst OUT [-trust_remote_code] [--calib_file FILE]
TEXT

fail() {
  echo "error: $1 ($USAGE)." >&2
  exit 1
}

src='' dst='' options=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) echo "$USAGE"; exit 0 ;;
    -src | -dst | --calib_file)
      [ -n "${2-}" ] || fail "$1 needs a path"
      case $1 in
        -src) src=$2 ;;
        -dst) dst=$2 ;;
        *) options+=(--calib_file "$2") ;;
      esac
      shift 2 ;;
    -trust_remote_code) options+=(--trust_remote_code True); shift ;;
    *) fail "quant_glm4_w8a8.sh does not know $1" ;;
  esac
done
[ -n "$src" ] && [ -n "$dst" ] || fail "quant_glm4_w8a8.sh needs -src and -dst"

# The 25 modules with the widest inputs stay float; no others do (--disable_names without a name).
PYTHON=${PYTHON:-python}
command -v "$PYTHON" > /dev/null || fail "there is no interpreter $PYTHON: name one in PYTHON"
exec "$PYTHON" "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/quant_glm.py" \
  --model_path "$src" --save_directory "$dst" --w_bit 8 --a_bit 8 --act_method 3 --w_sym True \
  --mm_tensor False --disable_level L25 --disable_names --mindie_format "${options[@]}"
