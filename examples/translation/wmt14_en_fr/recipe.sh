#!/usr/bin/env bash
# WMT14 English-French, newstest2014. TEXT is wmt14_en_fr, made by fairseq's prepare-wmt14en2fr.sh (40k joint BPE).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
# One update of the papers is many GPUs wide: --update-freq is computed from GPUS. Only MUSE's settings are published.
begin "transformer explicit-sparse muse muse-simple gca encouraging" "$@"

SETTINGS=(--share-all-embeddings --dropout 0.1 --lr-scheduler cosine --lr 7e-4 --min-lr 1e-7 --warmup-updates 10000
    --lr-period-updates 70000 --max-update 80000 "${SMOOTHED[@]}") # 80000 = warmup + one period: the next one restarts
case $METHOD in
    prepare) prepare_split en fr train valid test --joined-dictionary --workers 8 ;;
    muse) ARCH=muse_wmt_en_fr SETTINGS+=(--attention-dropout 0.1) ;;
    # our choice: MUSE's settings for all
    muse-simple) ARCH=muse_simple_wmt_en_fr ;;
    transformer) ARCH=transformer_ext_wmt_en_fr_big ;;
    explicit-sparse) ARCH=explicit_sparse_transformer_wmt_en_fr ;;
    gca) ARCH=gca_transformer_wmt_en_fr_big ;;
    encouraging) ARCH=transformer_ext_wmt_en_fr_big SETTINGS+=("${ENCOURAGING[@]}") ;;
esac
batch 5120 128
train $ARCH "${SETTINGS[@]}"
generate 5 0.8 subword_nmt
score fr --tokenized fr
