#!/usr/bin/env bash
# IWSLT15 English-Vietnamese. TEXT holds {train,tst2012,tst2013}.{en,vi}, tokenised (the Stanford NLP release).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
begin "$@"
case $METHOD in
    # tst2012 validates, tst2013 tests; 10,000 joint merges are our choice: the papers' vocabularies differ
    prepare) prepare en vi train tst2012 tst2013 --bpe subword-nmt --vocab-size 10000 ;;
    *) run iwslt15_en_vi ;;
esac
