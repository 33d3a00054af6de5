#!/usr/bin/env bash
# WMT14 English-German, newstest2014, compounds split. TEXT is the 32k-BPE WMT16 set that Google published.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
# One update of the papers is many GPUs wide: --update-freq is computed from GPUS. Only MUSE's settings are published.
begin "transformer explicit-sparse muse muse-simple adanorm layernorm-simple gca encouraging" "$@"

SETTINGS=(--share-all-embeddings --dropout 0.3 --lr 1e-3 --warmup-updates 4000 "${SMOOTHED[@]}")
case $METHOD in
    prepare)
        prepare_split en de train.tok.clean.bpe.32000 newstest2013.tok.bpe.32000 newstest2014.tok.bpe.32000 \
            --joined-dictionary --workers 8
        ;;
    muse)
        batch 3584 128
        train muse_wmt_en_de "${SETTINGS[@]}" --attention-dropout 0.1 --lr-scheduler cosine --min-lr 1e-7 \
            --warmup-updates 10000 --lr-period-updates 20000 --max-update 30000
        ;;
    muse-simple)
        batch 3584 160
        train muse_simple_wmt_en_de "${SETTINGS[@]}" --attention-dropout 0 --max-epoch 75
        ;;
    *) # our choice, equal for these methods
        case $METHOD in
            transformer) ARCH=transformer_ext_wmt_en_de_big ;;
            explicit-sparse) ARCH=explicit_sparse_transformer_wmt_en_de ;;
            gca) ARCH=gca_transformer_wmt_en_de_big ;;
            encouraging) ARCH=transformer_ext_wmt_en_de_big SETTINGS+=("${ENCOURAGING[@]}") ;;
            *) ARCH=${METHOD//-/_}_transformer_wmt_en_de_big ;;
        esac
        batch 3584 128
        train $ARCH "${SETTINGS[@]}" --max-update 30000
        ;;
esac
average 10
generate 4 0.6 subword_nmt
score de --tokenized de --split-compounds
