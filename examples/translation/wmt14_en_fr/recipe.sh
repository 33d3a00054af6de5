#!/usr/bin/env bash
# WMT14 English-French, newstest2014. TEXT is wmt14_en_fr, made by fairseq's prepare-wmt14en2fr.sh (40k joint BPE).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
begin "$@"
case $METHOD in
    prepare) prepare_split en fr train valid test --joined-dictionary --workers 8 ;;
    *) run wmt14_en_fr ;;
esac
