#!/bin/sh
# What `docker run` does: nothing given, the digits that come along must give their published counts; `reproduce ...` checks a
# checkpoint in /models on a tree in /data; all else goes to main.py.
case "${1-}" in
    '') exec python -m tools.reproduce --manifest models/digits.json --data_dir data/digits --load models/digits_checkpoint --tolerance 0 ;;
    reproduce) shift; exec python -m tools.reproduce --data_dir /data --load /models/ghostnet_checkpoint "$@" ;;
    *) exec python main.py "$@" ;;
esac
