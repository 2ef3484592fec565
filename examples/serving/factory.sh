#!/usr/bin/env bash
# A folder that grows, sorted on the line by `blemish watch`; what is no clear good part goes to the service, where people
# review it: bash factory.sh IN ARTIFACT OUT URL MODEL [OPTIONS OF WATCH, as --margin 0.1]. Ctrl-C ends both.
set -euo pipefail
in=$1 artifact=$2 out=$3 url=$4 model=$5
shift 5
here=$(cd "$(dirname "$0")" && pwd)

send() {  # what watch has put into defect/ and unsure/, each file once
    for folder in defect unsure; do
        [ -d "$out/$folder" ] || continue
        find "$out/$folder" -type f -not -name '.*' | sort | while IFS= read -r picture; do
            grep --quiet --line-regexp --fixed-strings -- "$picture" "$out/sent" && continue
            python3 "$here/client.py" "$url" "$model" "$picture" --source "$folder on the line"
            printf '%s\n' "$picture" >> "$out/sent"
        done
    done
}

mkdir -p "$out"
touch "$out/sent"
blemish watch "$in" "$artifact" --output "$out" --sort copy "$@" &
watching=$!
trap 'kill "$watching" 2>/dev/null || true' EXIT
while kill -0 "$watching" 2>/dev/null; do
    send
    sleep 1
done
wait "$watching" || true  # 1: some pictures could not be read
send
