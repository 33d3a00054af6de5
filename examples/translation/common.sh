# The steps that every recipe shares; each recipe.sh sources this file.
#
#   recipe.sh prepare TEXT DATA_BIN          raw or already split text -> a folder for fairseq-train
#   recipe.sh METHOD DATA_BIN SAVE_DIR ...   train, average, generate, score; what follows goes to fairseq-train
#
# The second form runs the commands that `fairseq-ext recipe DATA/METHOD` prints, and keeps them in SAVE_DIR/commands.sh.
# Environment: SEED, AVERAGE (how many epoch checkpoints) and GPUS, each the recipe's unless set; where there are fewer
# GPUs, all there are. A killed training resumes when the same line is given again.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"

die() { echo "error: $*" >&2; exit 2; }

# begin "$@": sets METHOD DATA SAVE EXTRA, or explains the usage.
begin() {
    (($# >= 3)) || die "usage: $0 prepare TEXT DATA_BIN | $0 METHOD DATA_BIN SAVE_DIR [fairseq-train options]; \`fairseq-ext recipe\` lists DATA/METHOD"
    METHOD=$1 DATA=$2 SAVE=$3 EXTRA=("${@:4}")
    [[ -d $DATA ]] || die "no such folder: $DATA"
    command -v fairseq-train > /dev/null || die "fairseq-train is not on PATH; activate the environment first"
}

# prepare SOURCE TARGET TRAIN VALID TEST [options]: file prefixes inside the folder TEXT.
prepare() {
    python -m examples.translation.prepare --source "$1" --target "$2" --train "$DATA/$3" --valid "$DATA/$4" \
        --test "$DATA/$5" --out "$SAVE" "${@:6}"
}

# Text that a script of fairseq has cleaned and split with subword-nmt: taken as it is, nothing more is filtered.
prepare_split() { prepare "$@" --bpe none --unicode none --max-length 100000 --max-ratio 100000; }

# run DATA: the commands of DATA/METHOD.
run() {
    local devices needed commands options=(--data "$DATA" --save-dir "$SAVE")
    devices=$(python -c 'import torch; print(torch.cuda.device_count())')
    ((devices > 0)) || options+=(--device cpu)
    if [[ -n ${GPUS:-} ]]; then options+=(--gpus "$GPUS"); fi
    if [[ -n ${SEED:-} ]]; then options+=(--seed "$SEED"); fi
    if [[ -n ${AVERAGE:-} ]]; then options+=(--average "$AVERAGE"); fi
    commands=$(fairseq-ext recipe "$1/$METHOD" "${options[@]}" --train-options "${EXTRA[@]}")
    needed=$(sed -n 's/.*--distributed-world-size \([0-9]*\).*/\1/p' <<< "$commands" | head -n 1)
    if [[ -z ${GPUS:-} ]] && ((${needed:-0} > devices)); then
        options+=(--gpus "$devices")
        commands=$(fairseq-ext recipe "$1/$METHOD" "${options[@]}" --train-options "${EXTRA[@]}")
    fi
    mkdir -p "$SAVE"
    echo "$commands" > "$SAVE/commands.sh"
    bash -euo pipefail "$SAVE/commands.sh" 2>&1 | tee -a "$SAVE/train.log"
}
