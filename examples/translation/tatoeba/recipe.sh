#!/usr/bin/env bash
# Tatoeba German-English: short everyday sentences, split by examples.translation.tatoeba.split.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
#   recipe.sh prepare FOLDER DATA_BIN; recipe.sh METHOD DATA_BIN SAVE_DIR. All settings are our choice, equal for all methods.
begin "transformer explicit-sparse muse muse-simple adanorm layernorm-simple gca encouraging" "$@"

LOSS=("${SMOOTHED[@]}")
case $METHOD in
    prepare) prepare de en train valid test --joined-dictionary ;;
    transformer) ARCH=transformer_ext_iwslt_de_en ;;
    explicit-sparse) ARCH=explicit_sparse_transformer_iwslt_de_en ;;
    muse) ARCH=muse_iwslt_de_en ;;
    muse-simple) ARCH=muse_simple_iwslt_de_en ;;
    adanorm) ARCH=adanorm_transformer_iwslt_de_en ;;
    layernorm-simple) ARCH=layernorm_simple_transformer_iwslt_de_en ;;
    gca) ARCH=gca_transformer_iwslt_de_en ;;
    encouraging) ARCH=transformer_ext_iwslt_de_en LOSS=("${ENCOURAGING[@]}") ;;
esac

batch 4096 1
train $ARCH "${LOSS[@]}" --share-all-embeddings --dropout 0.3 --weight-decay 1e-4 --lr 1e-3 --warmup-updates 4000 \
    --max-update 30000
average 10
generate 5 1.0 sentencepiece
score en
