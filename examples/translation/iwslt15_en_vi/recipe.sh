#!/usr/bin/env bash
# IWSLT15 English-Vietnamese. TEXT holds {train,tst2012,tst2013}.{en,vi}, tokenised (the Stanford NLP release).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
# tst2012 is the validation set and tst2013 the test set. 10,000 joint merges are our choice: the papers' vocabularies differ.
begin "transformer explicit-sparse muse muse-simple adanorm layernorm-simple encouraging" "$@"

SETTINGS=(--lr 1e-3 --warmup-updates 4000 "${SMOOTHED[@]}")
BEAM=5 LENPEN=1.0
case $METHOD in
    prepare) prepare en vi train tst2012 tst2013 --bpe subword-nmt --vocab-size 10000 ;;
    explicit-sparse) # batch, updates, warmup, dropout and beam of the authors' tensor2tensor script; peak rate our choice
        batch 4096 1
        train explicit_sparse_transformer_iwslt_en_vi "${SETTINGS[@]}" --dropout 0.1 --attention-dropout 0.1 \
            --activation-dropout 0.1 --adam-betas '(0.9, 0.997)' --adam-eps 1e-9 --warmup-updates 8000 --max-update 35000
        BEAM=4 LENPEN=0.6 # tensor2tensor's alpha 0.6 and fairseq's lenpen 0.6 are not the same formula
        ;;
    muse | muse-simple)
        batch 4000 4
        train "${METHOD//-/_}_iwslt_en_vi" "${SETTINGS[@]}" --dropout 0.3 --max-update 10000
        ;;
    transformer | encouraging | adanorm | layernorm-simple) # our choice: MUSE's settings, so that rows compare
        case $METHOD in
            transformer) ARCH=transformer_ext_wmt_en_de ;; # the base size, options off
            encouraging) ARCH=transformer_ext_wmt_en_de SETTINGS+=("${ENCOURAGING[@]}") ;;
            *) ARCH=${METHOD//-/_}_transformer_iwslt_en_vi ;;
        esac
        batch 4000 4
        train $ARCH "${SETTINGS[@]}" --dropout 0.3 --max-update 10000
        ;;
esac
average 10
generate $BEAM $LENPEN subword_nmt
score vi --tokenized vi
