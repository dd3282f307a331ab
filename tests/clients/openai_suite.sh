#!/usr/bin/env bash
# openai-python's own API tests against a served glm4-mini.
#
#     bash tests/clients/openai_suite.sh CHECKOUT
#
# CHECKOUT is a clone of github.com/openai/openai-python; its tests need pytest-asyncio and rich besides.
# Left out, with the reason:
#   *_with_all_params: they set every field at once, also what no text model does (audio, max_tokens 0,
#     logit_bias for "foo"), which is status 400 here;
#   create of responses: without any input there is nothing to answer, status 400 here;
#   retrieve, update, list, delete of completions and responses: nothing is stored;
#   Async: the same requests by another client.
set -euo pipefail
[ $# = 1 ] || { echo "usage: $0 CHECKOUT" >&2; exit 2; }
LOG=$(mktemp)
python -m mindformers_glm serve --port 0 --any_model_name --max_new_tokens 32 2> "$LOG" &
SERVER=$!
trap 'kill "$SERVER" 2> /dev/null || true; rm -f "$LOG"' EXIT
for _ in $(seq 240); do
    URL=$(sed -n 's|.* at \(http://[^ ]*/v1\),.*|\1|p' "$LOG")
    [ -z "$URL" ] || break
    kill -0 "$SERVER" || { cat "$LOG" >&2; exit 1; }
    sleep 0.5
done
cd "$1"
TEST_API_BASE_URL=$URL python -m pytest -q -p no:cacheprovider -o addopts= \
    -o asyncio_default_fixture_loop_scope=session \
    tests/api_resources/chat/test_completions.py tests/api_resources/test_completions.py tests/api_resources/test_models.py \
    -k "not Async and not all_params and (create or (TestModels and (retrieve or list)))"
