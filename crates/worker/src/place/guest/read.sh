# Writes a file to standard output. Runs in the guest, in any POSIX sh.
# $1: the file; $2: from which byte on.

if [ -d "$1" ]; then
    printf '%s: Is a directory\n' "$1" >&2
    exit 1
elif [ -p "$1" ]; then
    # Nobody may ever write into it.
    echo 'not a file but a pipe or a socket' >&2
    exit 1
elif [ -S "$1" ]; then
    printf '%s: No such device or address\n' "$1" >&2
    exit 1
elif [ "$2" = 0 ] || ! [ -r "$1" ]; then
    exec cat -- "$1"
fi
{
    # Moves on in its input without reading it; tail of busybox would read.
    dd bs=1 "skip=$2" count=0 2>/dev/null
    exec cat
} <"$1"
