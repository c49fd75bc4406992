# Makes a directory and its parents. Runs in the guest, in any POSIX sh.
# $1: its path.

mkdir -p -- "$1" && exit
# Busybox says of a link to nothing that the directory is not there.
if [ -L "$1" ] && ! [ -e "$1" ]; then
    printf '%s: File exists\n' "$1" >&2
fi
exit 1
