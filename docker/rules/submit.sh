#!/bin/sh
# Has one slide analysed: submit.sh STUDY_UID [SERIES_UID]; without a series all slides of the study.
#   MARROW_NODE_URL  http://node:8080
#   MARROW_NODE_KEY  a key with the role submit, made by `marrow-node key`
# Exit status 0 when the node has taken it (202); the same slide sent twice is the same job.
set -eu
[ $# -ge 1 ] || { echo "usage: $0 STUDY_UID [SERIES_UID]" >&2; exit 2; }
body="{\"study_uid\": \"$1\"${2:+, \"series_uid\": \"$2\"}, \"reason\": \"shell\"}"
# The key goes in by standard input: command lines are seen by all users of the host.
printf 'header = "Authorization: Bearer %s"\n' "$MARROW_NODE_KEY" | curl --config - --silent --show-error \
    --fail-with-body --max-time 10 --retry 3 --header 'Content-Type: application/json' --data "$body" "$MARROW_NODE_URL/jobs"
