#!/usr/bin/env bash
# IWSLT17 French-English. TEXT holds {train,valid,test}.{fr,en}: plain, cased text, one sentence a line.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
begin "$@"
case $METHOD in
    # 16,000 subwords as the authors have; which talks validate and test is yours: their script does not say
    prepare) prepare fr en train valid test --joined-dictionary --vocab-size 16000 ;;
    *) run iwslt17_fr_en ;;
esac
