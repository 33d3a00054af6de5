#!/usr/bin/env bash
# WMT14 English-German, newstest2014, compounds split. TEXT is the 32k-BPE WMT16 set that Google published.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
begin "$@"
case $METHOD in
    prepare)
        prepare_split en de train.tok.clean.bpe.32000 newstest2013.tok.bpe.32000 newstest2014.tok.bpe.32000 \
            --joined-dictionary --workers 8
        ;;
    *) run wmt14_en_de ;;
esac
