#!/bin/sh
# From a model to a serving engine: calibrate, tune, serve, and see in the metrics how many experts are read.
#
#     sh examples/quickstart.sh MODEL      # a folder, or a name on the Hugging Face hub
#
# It needs sere and vLLM in one environment, and curl. The server runs until Ctrl-C. These variables add
# options to the commands. For a first look, before hours on a large model:
#
#     export CALIBRATE='--max-tokens 4096'
#     export TUNE='--max-prompts 32 --batch-size 8 --max-new-tokens 16 --uniform'
#     export SERVE='--enforce-eager'
set -eu
model=$1

sere calibrate "$model" ${CALIBRATE:-}
sere tune "$model" ${TUNE:-}
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
