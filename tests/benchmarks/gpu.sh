#!/usr/bin/env bash
# Measure all GPU rows of the speed table within 8 minutes; needs torch, transformers, peft and this repository, no network.
#
#   bash tests/benchmarks/gpu.sh                      # into tests/benchmarks/results
#   bash tests/benchmarks/gpu.sh runs/gpu             # or another folder
#   SHAPE=tiny DEVICE=cpu REPEATS=1 FRAMES=5 TOKENS="350 700" bash tests/benchmarks/gpu.sh runs/dry   # only check that it runs
#
# Every command has its own time limit, and a failure does not stop the others. Each writes its result file at its end and its
# output to runs/gpu_logs. The most important rows come first; those that may compile for minutes come last.
set -u
cd "$(dirname "$0")/../.." || exit 1

FOLDER=${1:-tests/benchmarks/results}
SHAPE=${SHAPE:-csm-1b} DEVICE=${DEVICE:-cuda} REPEATS=${REPEATS:-5} FRAMES=${FRAMES:-50} STEPS=${STEPS:-10}
TOKENS=${TOKENS:-350 700 1400 2800} PYTHON=${PYTHON:-python3} LIMIT=${LIMIT:-470}
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
LOGS=${LOGS:-runs/gpu_logs}
mkdir -p "$FOLDER" "$LOGS" || exit 1
SUMMARY=""

# run <name> <max seconds> <module> <arguments>
run() {
    local name=$1 limit=$2 begun=$SECONDS left=$((LIMIT - SECONDS)) code
    shift 2
    [ "$limit" -le "$left" ] || limit=$left
    if [ "$limit" -lt 5 ]; then
        SUMMARY+="$name: not run, no time left"$'\n'
        return
    fi
    timeout --kill-after=5 "$limit" "$PYTHON" -m "tests.benchmarks.$1" --shape "$SHAPE" --device "$DEVICE" \
        --repeats "$REPEATS" "${@:2}" >"$LOGS/$name.txt" 2>&1
    code=$?
    case $code in
        0) SUMMARY+="$name: done in $((SECONDS - begun)) s"$'\n' ;;
        124 | 137) SUMMARY+="$name: stopped after its $limit s"$'\n' ;;
        *) SUMMARY+="$name: failed ($code): $(grep -v '^\s*$' "$LOGS/$name.txt" | tail -n 1 | cut -c 1-300)"$'\n' ;;
    esac
}

speak() { run "$1" "$2" generate --frames "$FRAMES" --out "$FOLDER" "${@:3}"; }
train() { run "$1" "$2" train_step --against stock --seconds 10 --steps "$STEPS" "${@:3}"; }

speak speak 130 --batch 1 32 8 --caches dynamic
train train 150 --batch 8 --ratios 1 1/4 1/16 --out "$FOLDER"
train memory_of_two 60 --batch 2 --ratios 1/16 --out "$FOLDER/batch_2"
# batches as in a real training: none comes twice, so that whatever is prepared for a shape is prepared in every step
train never_repeated 60 --against repeated --seconds 2-10 --steps $((2 * STEPS)) --batch 8 --ratios 1/16 --out "$FOLDER"
run serve 60 serve --requests 8 --out "$FOLDER"
run encode 50 encode --out "$FOLDER"
# shellcheck disable=SC2086  # TOKENS holds several numbers
run growth 90 growth --tokens $TOKENS --frames 25 50 100 200 400 --out "$FOLDER"
speak speak_static 150 --batch 1 --caches static

printf '\n%s in %d s\n' "$FOLDER" "$SECONDS"
printf '%s' "$SUMMARY"
"$PYTHON" -m tests.benchmarks.speed_table --show "$FOLDER"
