#!/usr/bin/env bash
# Asks a service with curl: bash client.sh URL MODEL PICTURE [MORE PICTURES…]; TOKEN in the environment, where it takes one.
set -euo pipefail
url=$1 model=$2 picture=$3
shift 2
ask=(curl --silent --show-error --fail-with-body)
[ -z "${TOKEN:-}" ] || ask+=(--header "Authorization: Bearer $TOKEN")

# The bytes of one picture: score, verdict, regions.
"${ask[@]}" --data-binary "@$picture" --header "Content-Type: application/octet-stream" \
    "$url/v1/models/$model/predict?source=camera%201"
echo

# The same as a picture: what was found in it, drawn over it.
"${ask[@]}" --data-binary "@$picture" --header "Content-Type: application/octet-stream" \
    --header "Accept: image/png" "$url/v1/models/$model/predict?heatmap=overlay" --output overlay.png

# Several at once: one that is broken has an error in place of a score, the others are scored.
files=()
for one in "$@"; do files+=(--form "picture=@$one"); done
"${ask[@]}" "${files[@]}" "$url/v1/models/$model/predict"
echo

# What is live.
"${ask[@]}" "$url/v1/models"
echo
