#!/usr/bin/env bash
# IWSLT14 German-English. TEXT is iwslt14.tokenized.de-en, made by fairseq's prepare-iwslt14.sh (10k joint BPE).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
begin "$@"
case $METHOD in
    prepare) prepare_split de en train valid test ;;
    prepare-joined) prepare_split de en train valid test --joined-dictionary ;; # for AdaNorm, which shares all embeddings
    *) run iwslt14_de_en ;;
esac
