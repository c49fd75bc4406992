# Unpacks a tar stream from standard input. Runs in the guest, in any POSIX sh, with GNU or busybox tar.
# $to: the destination; $name: the source's own name, empty if it has none; $kind: file or directory;
# $mode: permissions of the copied directory itself, if they are to be kept; $flags: for tar; $mark: starts our lines.

LC_ALL=C
export LC_ALL
say() { printf '%s\n' "$mark $*" >&2; }
fail() {
    say fail "$1"
    exit 3
}

case $to in
*/) into=1 ;;
*) into= ;;
esac
if [ -d "$to" ]; then
    into=1
elif [ "$into" ]; then
    mkdir -p -- "$to" || fail other
fi
if [ "$into" ]; then
    final=${to%/}
    [ -z "$name" ] || final=$final/$name
    [ "$final" ] || final=/
else
    final=$to
fi
case $final in
*/*) parent=${final%/*}/ ;;
*) parent=./ ;;
esac
[ -d "$parent" ] || mkdir -p -- "$parent" || fail other

if [ -d "$final" ]; then
    [ "$kind" = directory ] || fail directory-in-the-way
    cd -- "$final" || fail other
    say merge
    tar -xo$flags -f - || fail other
    exit 0
fi
if [ "$kind" = directory ] && { [ -e "$final" ] || [ -L "$final" ]; }; then
    fail file-in-the-way
fi

part=$parent.$mark.part
mkdir -m 700 -- "$part" || fail other
trap 'rm -rf -- "$part"' EXIT
trap 'exit 3' HUP INT TERM PIPE
say fresh
(cd -- "$part" && tar -xo$flags -f -) || fail other
# tar takes a stream that was cut between two files for a complete one.
[ -e "$part/end" ] || fail other
mv -f -- "$part/data" "$final" || fail other
[ -z "$mode" ] || chmod "$mode" -- "$final" || fail other
