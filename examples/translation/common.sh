# The steps that every recipe shares; each recipe.sh sources this file.
#
#   recipe.sh prepare TEXT DATA_BIN          raw or already split text -> a folder for fairseq-train
#   recipe.sh METHOD DATA_BIN SAVE_DIR ...   train, average, generate, score; what follows goes to fairseq-train
#
# Environment: SEED (1), GPUS (all that torch sees), AVERAGE (how many epoch checkpoints, the recipe's number),
# USER_DIR (this repository's fairseq_ext). A killed training resumes when the same line is given again.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
USER_DIR=${USER_DIR:-$ROOT/fairseq_ext}
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"

die() { echo "error: $*" >&2; exit 2; }

# begin NAMES_OF_METHODS "$@": sets METHOD DATA SAVE EXTRA GPUS, or explains the usage.
begin() {
    local methods=$1
    shift
    (($# >= 3)) || die "usage: $0 prepare TEXT DATA_BIN | $0 METHOD DATA_BIN SAVE_DIR [fairseq-train options]; METHOD: $methods"
    METHOD=$1 DATA=$2 SAVE=$3 EXTRA=("${@:4}")
    [[ " prepare $methods " == *" $METHOD "* ]] || die "unknown method '$METHOD'; known: prepare $methods"
    [[ -d $DATA ]] || die "no such folder: $DATA"
    command -v fairseq-train > /dev/null || die "fairseq-train is not on PATH; activate the environment first"
    local found
    found=$(python -c 'import torch; print(torch.cuda.device_count())')
    GPUS=${GPUS:-$((found > 0 ? found : 1))}
    DEVICE=(--cpu)
    if ((found > 0)); then DEVICE=(--fp16); fi
}

# prepare SOURCE TARGET TRAIN VALID TEST [options]: file prefixes inside the folder TEXT.
prepare() {
    python -m examples.translation.prepare --source "$1" --target "$2" --train "$DATA/$3" --valid "$DATA/$4" \
        --test "$DATA/$5" --out "$SAVE" "${@:6}"
    exit
}

# Text that a script of fairseq has cleaned and split with subword-nmt: taken as it is, nothing more is filtered.
prepare_split() { prepare "$@" --bpe none --unicode none --max-length 100000 --max-ratio 100000; }

# batch TOKENS STEPS: an update sees STEPS batches of TOKENS on one GPU, STEPS/GPUS on each of several.
batch() { BATCH=(--max-tokens "$1" --update-freq $((($2 + GPUS - 1) / GPUS))); }

SMOOTHED=(--criterion label_smoothed_cross_entropy --label-smoothing 0.1)
ENCOURAGING=(--criterion label_smoothed_encouraging_loss --label-smoothing 0.1 --log-end 0.5)

# train ARCH OPTIONS: options given twice take the last value, so that a recipe or the user overrides.
train() {
    mkdir -p "$SAVE"
    fairseq-train "$DATA" --user-dir "$USER_DIR" --save-dir "$SAVE" --arch "$1" "${DEVICE[@]}" "${BATCH[@]}" \
        --optimizer adam --adam-betas '(0.9, 0.98)' --lr-scheduler inverse_sqrt --warmup-init-lr 1e-7 \
        --keep-last-epochs 10 --seed "${SEED:-1}" --no-progress-bar --log-interval 100 \
        "${@:2}" "${EXTRA[@]}" 2>&1 | tee -a "$SAVE/train.log"
    MODEL=$SAVE/checkpoint_last.pt
}

# average N: the mean of the last N epoch checkpoints becomes the model that is evaluated.
average() {
    MODEL=$SAVE/checkpoint_average.pt
    python -m fairseq_ext.cli average --inputs "$SAVE" --last "${AVERAGE:-$1}" --output "$MODEL"
}

# generate BEAM LENPEN SUBWORDS: every sentence of the test set, also the last few that fill no batch of 8.
generate() {
    fairseq-generate "$DATA" --user-dir "$USER_DIR" --path "$MODEL" --gen-subset test "${DEVICE[@]}" \
        --beam "$1" --lenpen "$2" --remove-bpe "$3" --batch-size 128 --required-batch-size-multiple 1 \
        > "$SAVE/generate.txt"
}

# score LANGUAGE [options]
score() {
    python -m examples.translation.score "$SAVE/generate.txt" --reference "$DATA/text/test.$1" \
        --json "$SAVE/score.json" "${@:2}"
}
