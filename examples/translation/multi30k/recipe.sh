#!/usr/bin/env bash
# Multi30k German-English (task 1, test 2016): 29,000 pairs of about 12 words.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
begin "$@"
case $METHOD in
    prepare) prepare de en train val test_2016_flickr --joined-dictionary ;;
    *) run multi30k ;;
esac
