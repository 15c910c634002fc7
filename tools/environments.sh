#!/bin/sh
# Makes and removes the Makefile's environments and prepared digits, and nothing that somebody else made or linked to.
#
#     sh tools/environments.sh new PYTHON FOLDER      a new virtual environment, in place of one that this script made
#     sh tools/environments.sh clean FOLDER...        removes those, and the digits; says what it leaves
#
# An environment has the file `made-by-make` from its first moment to its last, so that one that was interrupted is known, too.
# Earlier versions of this project left an empty file `installed` beside pyvenv.cfg, when they were done.
MARKER=made-by-make
DIGITS=data/digits

plain() {    # the name of a folder without slashes behind it, with which `test -L` would not see a link
    echo "${1%"${1##*[!/]}"}"
}

is_own() {
    [ -d "$1" ] && [ ! -L "$1" ] && [ ! -L "$1/$MARKER" ] && {
        [ -f "$1/$MARKER" ] || { [ -f "$1/pyvenv.cfg" ] && [ -f "$1/installed" ] && [ ! -s "$1/installed" ]; }; }
}

is_empty() {
    [ -d "$1" ] && [ -r "$1" ] && [ -z "$(ls -A "$1")" ]
}

empty() {    # all but the marker; links are removed, not followed
    echo "The Makefile made this environment. It removes all of it to make it again." > "$1/$MARKER" &&
        find "$1" -mindepth 1 -maxdepth 1 ! -name "$MARKER" -exec rm -rf {} +
}

refuse() {
    echo "make: $1, which make leaves as it is: remove or rename it, or name another folder, as in 'make VENV=<folder>'" >&2
    exit 2
}

new() {
    folder=$(plain "$2")
    case $folder in
    '' | . | .. | */. | */.. | *[[:space:]]*) refuse "'$2' cannot be a virtual environment" ;;
    esac
    if [ -L "$folder" ]; then
        refuse "$folder is a link"
    elif [ -e "$folder" ] && ! is_own "$folder" && ! is_empty "$folder"; then
        refuse "$folder is not an environment that make made"
    fi
    mkdir -p "$folder" && empty "$folder" && "$1" -m venv "$folder"
}

clean_digits() {    # what has the names and the lines that data/digits/prepare.py writes
    find $DIGITS/train $DIGITS/val -type f 2>/dev/null | grep -E \
        "^$DIGITS/(train/n0{7}[0-9]/n0{7}[0-9]_[0-9]+|val/digits_val_[0-9]{8})[.]png$" | xargs rm -f
    line='^((n0{7}[0-9]/n0{7}[0-9]_|digits_val_)[0-9]+[.]png [0-9]|n0{7}[0-9]( [a-z]+)?)$'
    for list in train val synsets synset_words; do
        list=$DIGITS/caffe_ilsvrc12/$list.txt
        [ -L $DIGITS/caffe_ilsvrc12 ] || [ -L $list ] || [ ! -f $list ] || grep -qEv "$line" $list || rm -f $list
    done
    [ -L $DIGITS/train ] || rmdir $DIGITS/train/n0000000[0-9] 2>/dev/null
    rmdir $DIGITS/train $DIGITS/val $DIGITS/caffe_ilsvrc12 2>/dev/null
    for folder in $DIGITS/unfinished-*; do    # of one that was killed
        [ -L "$folder" ] || [ ! -f "$folder/.lock" ] || rm -rf "$folder"
    done
}

clean() {
    for folder in "$@"; do
        folder=$(plain "$folder")
        ! is_own "$folder" || { empty "$folder" && rm "$folder/$MARKER" && rmdir "$folder"; } || exit 2
    done
    clean_digits
    left=
    for folder in "$@" $DIGITS/train $DIGITS/val $DIGITS/caffe_ilsvrc12; do
        folder=$(plain "$folder")
        [ ! -e "$folder" ] && [ ! -L "$folder" ] || left="$left $folder"
    done
    [ -z "$left" ] || echo "make: left as it is, because make did not make it, or not all of it:$left"
}

"$@"
