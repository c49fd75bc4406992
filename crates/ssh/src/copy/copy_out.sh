# Writes a tar stream to standard output. Runs in the guest, in any POSIX sh, with GNU or busybox tar.
# $from: the source; $recursive: whether it may be a directory; $mark: starts our lines.

LC_ALL=C
export LC_ALL
say() { printf '%s\n' "$mark $*" >&2; }
fail() {
    say fail "$1"
    exit 3
}

# GNU tar tells times to the nanosecond in this format only. Busybox's does not know the variable, nor such times.
TAR_OPTIONS=--format=posix\ --pax-option=delete=atime,delete=ctime
export TAR_OPTIONS
if [ -d "$from" ]; then
    [ "$recursive" ] || fail is-directory
    cd -- "$from" || fail other
    say directory
    exec tar -cf - .
elif [ -f "$from" ]; then
    case $from in
    */*) cd -- "${from%/*}/" || fail other ;;
    esac
    # Such files have no size until they are read, and tar would copy them as empty.
    case $(pwd -P)/ in
    /proc/* | /sys/*) fail generated ;;
    esac
    say file
    exec tar -chf - "./${from##*/}"
elif [ -e "$from" ]; then
    fail special
elif ls -d -- "$from" >/dev/null; then
    # A symbolic link to nothing.
    fail missing
else
    fail missing-or-denied
fi
