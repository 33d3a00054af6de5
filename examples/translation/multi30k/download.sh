#!/usr/bin/env bash
# Fetches Multi30k (task 1, raw German and English; research use) into FOLDER: download.sh FOLDER
set -euo pipefail
(($# == 1)) || { echo "usage: $0 FOLDER" >&2; exit 2; }
mkdir -p "$1"
for name in {train,val,test_2016_flickr}.{de,en}.gz; do
    [[ -s $1/$name ]] && continue
    curl --fail --location --silent --show-error --retry 3 --output "$1/$name.part" \
        "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw/$name"
    mv "$1/$name.part" "$1/$name"
    echo "| $name"
done
