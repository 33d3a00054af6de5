#!/usr/bin/env bash
# IWSLT14 German-English. TEXT is iwslt14.tokenized.de-en, made by fairseq's prepare-iwslt14.sh (10k joint BPE).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
# Values are those of each paper's released script or log unless marked "our choice".
# AdaNorm shares all embeddings, so it needs a DATA_BIN made by prepare-joined; the others one made by prepare.
begin "prepare-joined transformer explicit-sparse muse muse-simple adanorm layernorm-simple gca encouraging" "$@"

SETTINGS=(--lr 1e-3 --warmup-updates 4000 --weight-decay 1e-4 "${SMOOTHED[@]}")
case $METHOD in
    prepare) prepare_split de en train valid test ;;
    prepare-joined) prepare_split de en train valid test --joined-dictionary ;;
    transformer | encouraging) # the baseline and the method of the encouraging-loss paper differ in the loss only
        batch 4096 4
        if [[ $METHOD == encouraging ]]; then SETTINGS+=("${ENCOURAGING[@]}"); fi
        train transformer_ext_iwslt_de_en "${SETTINGS[@]}" --dropout 0.4 --max-update 20000
        average 10
        ;;
    explicit-sparse) # the authors average ten epochs ending at 50, 55, ..., 90 and choose on valid; we take the last ten
        batch 4000 4
        train explicit_sparse_transformer_iwslt_de_en "${SETTINGS[@]}" --dropout 0.4 --max-epoch 90 --keep-last-epochs 50
        average 10
        ;;
    muse | muse-simple)
        batch 4000 4
        train "${METHOD//-/_}_iwslt_de_en" "${SETTINGS[@]}" --dropout 0.4 --max-update 20000 --clip-norm 25
        average 10
        ;;
    adanorm | layernorm-simple)
        batch 4096 2
        train "${METHOD//-/_}_transformer_iwslt_de_en" "${SETTINGS[@]}" --share-all-embeddings --dropout 0.3 \
            --attention-dropout 0.1 --activation-dropout 0.1 --lr 0.0015 --warmup-updates 8000 --stop-min-lr 1e-9 \
            --max-update 90000 --save-interval-updates 10000 --keep-interval-updates 5 --no-epoch-checkpoints
        MODEL=$SAVE/checkpoint_best.pt
        ;;
    gca) # our choice
        batch 4096 4
        train gca_transformer_iwslt_de_en "${SETTINGS[@]}" --dropout 0.4 --max-update 20000
        average 10
        ;;
esac
generate 5 1.0 subword_nmt
score en --tokenized en
