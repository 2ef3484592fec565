#!/usr/bin/env bash
# A folder that grows, sorted on the line by `blemish watch`; what is no clear good part goes to the service, where people
# review it:
#     blemish serve part.blemish &                       # in a terminal of its own, or on another machine
#     bash factory.sh IN part.blemish OUT http://127.0.0.1:8000 part [OPTIONS OF WATCH, as --margin 0.1]
# The line goes on while the service is away, and what was not sent then is sent later, also after a restart of this script.
# Where the service takes tokens: BLEMISH_TOKEN=… (role predict). Ctrl-C ends both.
set -euo pipefail
if [ $# -lt 5 ]; then
    echo "usage: bash factory.sh IN ARTIFACT OUT URL MODEL [OPTIONS OF WATCH]" >&2
    exit 2
fi
in=$1 artifact=$2 out=$3 url=$4 model=$5
shift 5
here=$(cd "$(dirname "$0")" && pwd)

send() {  # what watch has put into defect/ and unsure/, each file once; fails where the service does not take it
    local folder
    for folder in defect unsure; do
        [ -d "$out/$folder" ] || continue
        find "$out/$folder" -type f -not -name '.*' | sort | while IFS= read -r picture; do
            grep --quiet --line-regexp --fixed-strings -- "$picture" "$out/sent" && continue
            python3 "$here/client.py" "$url" "$model" "$picture" --source "$folder on the line" || exit 1
            printf '%s\n' "$picture" >> "$out/sent"
        done || return 1
    done
}

mkdir -p "$out"
touch "$out/sent"
blemish watch "$in" "$artifact" --output "$out" --sort copy "$@" &
watching=$!
trap 'kill "$watching" 2>/dev/null || true' EXIT
while kill -0 "$watching" 2>/dev/null; do
    if send; then sleep 1; else sleep "${PAUSE:-10}"; fi
done
status=0
wait "$watching" || status=$?  # 1: some pictures could not be read
send || echo "some pictures are not sent; the same command sends them" >&2
exit "$status"
