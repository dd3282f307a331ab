#!/usr/bin/env bash
# Starts a command in several processes, with the arguments of MindSpore Transformers' script of
# this name. The rest is `python -m mindformers_glm.launcher`; docs/launcher.md describes both.
#   MASTER_PORT   port of the scheduler in the 1- and 2-argument forms, or auto; default 8118
#   PYTHON        the interpreter of the launcher and of all processes; default python
read -r -d '' USAGE <<'TEXT'
usage: bash msrun_launcher.sh COMMAND                                      8 processes
       bash msrun_launcher.sh COMMAND WORKER_NUM                           on this host
       bash msrun_launcher.sh COMMAND WORKER_NUM MASTER_PORT LOG_DIR JOIN CLUSTER_TIME_OUT
       bash msrun_launcher.sh COMMAND WORKER_NUM LOCAL_WORKER MASTER_ADDR MASTER_PORT NODE_RANK \
LOG_DIR JOIN CLUSTER_TIME_OUT                                              one call on each host

COMMAND is one text, such as "run_mindformer.py --config ... --use_parallel True".
TEXT

case ${1-} in -h | --help) echo "$USAGE"; exit 0 ;; esac
case $# in
  1) options=() ;;
  2) options=(--worker_num="$2") ;;
  6) options=(--worker_num="$2" --master_port="$3" --log_dir="$4" --join="$5"
              --cluster_time_out="$6") ;;
  9) options=(--worker_num="$2" --local_worker_num="$3" --master_addr="$4" --master_port="$5"
              --node_rank="$6" --log_dir="$7" --join="$8" --cluster_time_out="$9") ;;
  *) echo "error: msrun_launcher.sh takes 1, 2, 6 or 9 arguments, got $# (the command is one of" \
          "them, so it needs quotes): --help lists them." >&2
     exit 2 ;;
esac

PYTHON=${PYTHON:-python}
if ! command -v "$PYTHON" > /dev/null; then
  echo "error: There is no interpreter $PYTHON: activate the environment, or name one in PYTHON." >&2
  exit 1
fi
root=$(dirname "$(dirname "$(realpath "${BASH_SOURCE[0]}")")")
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
# Each process starts many threads: allow as many as the system lets this user have.
ulimit -S -u "$(ulimit -H -u)" 2> /dev/null

# In place of this shell, so that a signal to the script reaches the launcher.
exec "$PYTHON" -m mindformers_glm.launcher "${options[@]}" -- "$1"
