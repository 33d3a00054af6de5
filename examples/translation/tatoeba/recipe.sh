#!/usr/bin/env bash
# Tatoeba German-English: short everyday sentences, split by examples.translation.tatoeba.split.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
begin "$@"
case $METHOD in
    prepare) prepare de en train valid test --joined-dictionary ;;
    *) run tatoeba ;;
esac
