# Receives a file on standard input. Runs in the guest, in any POSIX sh, with GNU's or busybox's tools.
# $1: where it is to be; $2: its permission bits in octal, empty for those of the old file or what is usual.
# Says TEMPORARY NUL TARGET NUL when it is ready: the one is to take the other's place when all was received. Both are
# empty if the file is written where it stands.

path=$1 mode=$2
fail() {
    printf '%s: %s\n' "$path" "$1" >&2
    exit 1
}

# Sets setuid, setgid and sticky again: others than root take them away by writing.
special_bits() {
    case $mode in
    ????*) chmod "$mode" "$1" ;;
    esac
}

# For what is no file, or stands where no new one can be made.
directly() {
    [ ! -d "$path" ] || fail 'Is a directory'
    # Nobody may ever read from it.
    if [ -p "$path" ] || [ -S "$path" ]; then
        fail 'No such device or address'
    fi
    # Nothing that is new must be readable for a moment. dd says why it can't open a file, some shells do not.
    [ -z "$mode" ] || umask 177
    why=$(dd if=/dev/null of="$path" 2>&1) || {
        printf '%s\n' "$why" >&2
        exit 1
    }
    [ -z "$mode" ] || chmod "$mode" "$path" || exit 1
    printf '\0\0'
    cat >"$path" && special_bits "$path"
    exit
}

old=
target=$path
if [ -f "$path" ]; then
    old=1
    if [ -L "$path" ]; then
        # The end of the name must not be lost with the end of the line.
        target=$(readlink -f -- "$path" && printf x) || directly
        target=${target%?x}
    fi
elif [ -e "$path" ] || [ -L "$path" ]; then
    directly
fi

temporary=$(mktemp "${target%/*}/.kvm-worker-XXXXXX" && printf x) || {
    [ "$old" ] || exit 1
    directly
}
temporary=${temporary%?x}
trap 'rm -f "$temporary"; exit 1' HUP INT TERM PIPE
abandon() {
    rm -f "$temporary"
    exit 1
}
exec 3>"$temporary" || abandon
if [ "$old" ]; then
    # Only root can give a file away; for others it stays their own.
    chown "$(stat -c %u:%g -- "$target")" "$temporary" 2>/dev/null
    [ "$mode" ] || mode=$(stat -c %a -- "$target") || abandon
fi
# Without a number it is what the umask leaves.
chmod "${mode:-=rw}" "$temporary" || abandon
printf '%s\0%s\0' "$temporary" "$target"
cat >&3 || abandon
special_bits "$temporary" || abandon
