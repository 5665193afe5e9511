#!/bin/sh
# From a model to a serving engine: calibrate, tune, serve, and see in the metrics how many experts are read.
#
#     sh examples/quickstart.sh MODEL      # a folder, or a name on the Hugging Face hub
#
# It needs sere and vLLM in one environment, and curl. The server runs until Ctrl-C. A second run goes on
# with the table that is there: what is in it is not calibrated or tuned again. These variables add options
# to the commands. For a first look, before hours on a large model:
#
#     export CALIBRATE='--max-tokens 4096'
#     export TUNE='--max-prompts 32 --batch-size 8 --max-new-tokens 16 --uniform'
#     export SERVE='--enforce-eager'
#
# TUNE=no leaves tuning out: the table's own estimates hold. A model that only vLLM runs needs this, and
# CALIBRATE='--engine vllm'.
set -eu
model=$1

if table=$(sere table show "$model" --json 2>/dev/null); then
    echo "$model has a table already; to calibrate anew, delete it"
else
    sere calibrate "$model" ${CALIBRATE:-}
fi
# Only tiers that were measured have an accepted divergence.
case "${TUNE:-} $table" in
"no "*) echo "not tuned: TUNE=no" ;;
*'"accepted_kl"'*) echo "$model has measured tiers already; to tune anew: sere tune $model" ;;
*) sere tune "$model" ${TUNE:-} ;;
esac
vllm serve "$model" --additional-config '{"sere": {"metrics_port": 9400}}' ${SERVE:-} &

server=$!
trap 'kill "$server"' EXIT
trap 'exit 130' INT TERM
until curl --silent --fail --output /dev/null localhost:8000/health; do
    kill -0 "$server" # ends the script if the server has ended
    sleep 1
done

# Eight requests at once: a single one has nobody to share experts with.
requests=
for year in 1 2 3 4 5 6 7 8; do
    curl --silent --fail --output /dev/null localhost:8000/v1/completions \
        --header 'Content-Type: application/json' \
        --data "{\"prompt\": \"The year 190$year:\", \"max_tokens\": 32, \"ignore_eos\": true}" &
    requests="$requests $!"
done
for request in $requests; do
    wait "$request"
done

curl --silent localhost:9400/metrics | grep '^sere_layer_distinct'
wait "$server"
