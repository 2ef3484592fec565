#!/usr/bin/env bash
# What needs a GPU, in the minutes that there is one: the tests on it, how fast every method trains
# and scores (a minute and a half at most), and result rows by the papers' own schedules, the most
# valuable first.
#
#     benchmarks/gpu.sh PICTURES OUT MINUTES [PART…]
#
# PICTURES: the folder of the data sets, as `blemish data layouts` shows them; sets that are not
# there are left out. OUT gets tests.log, speed.log, speed.jsonl, rows.log and rows.jsonl, as they
# come. A second call with the same OUT goes on: what these hold is not made again. What is good
# goes to the files in benchmarks/results/.
# PART: tests, speed, or a part of `benchmarks/gpu.py rows`; several of these, with commas, share
# the GPU, JOBS (6) runs at a time.
# Default: tests speed agpnet,guided,best,apmask,atacnet,memory,rivals. Besides: equal, every method
# on every set by three seeds at equal arithmetic.
#
# It needs torch with CUDA, blemish's other dependencies and the offline extra, but no installation:
# the checkout's own src/ is used. PYTHON names the interpreter (python3).
set -u
[ $# -ge 3 ] || { sed -n '2,20s/^# \{0,1\}//p' "$0"; exit 2; }
pictures=$1 out=$2 minutes=$3
shift 3
[ $# -gt 0 ] || set -- tests speed agpnet,guided,best,apmask,atacnet,memory,rivals
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
export PYTHONPATH="$here/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
mkdir -p "$out"
end=$(($(date +%s) + $("$python" -c "print(round(60 * $minutes))")))
left() { echo $((end - $(date +%s))); }
failed=0
for part in "$@"; do
    [ "$(left)" -gt 10 ] || { echo "no time left for $part"; break; }
    began=$(date +%s)
    case $part in
    tests)
        (cd "$here" && timeout "$(left)" "$python" -m pytest -n 0 -m gpu -W default --tb=short \
            tests/test_gpu.py) > "$out/tests.log" 2>&1 || failed=1
        tail -n 25 "$out/tests.log"
        ;;
    speed)
        most=$(($(left) < 90 ? $(left) : 90))
        "$python" "$here/benchmarks/gpu.py" speed "$pictures" "$out" --seconds "$most" \
            >> "$out/speed.log" 2>&1 || failed=1
        ;;
    *)
        "$python" "$here/benchmarks/gpu.py" rows "$pictures" "$out" --seconds "$(left)" \
            --only "$part" --jobs "${JOBS:-6}" >> "$out/rows.log" 2>&1 || failed=1
        ;;
    esac
    echo "$part: $(($(date +%s) - began)) s"
done
exit "$failed"
