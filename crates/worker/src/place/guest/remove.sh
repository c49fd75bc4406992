# Removes a file or a link. Runs in the guest, in any POSIX sh.
# $1: its path. Tools differ in what they say of a directory, and busybox takes no notice of a slash at the end.

case $1 in
*/)
    if [ -e "${1%/}" ] && ! [ -d "$1" ]; then
        printf '%s: Not a directory\n' "$1" >&2
        exit 1
    fi
    ;;
esac
if [ -d "$1" ] && ! [ -L "$1" ]; then
    printf '%s: Is a directory\n' "$1" >&2
    exit 1
fi
exec rm -- "$1"
