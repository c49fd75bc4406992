# Says what is in directories. Runs in the guest, in any POSIX sh, with GNU's or busybox's find.
# Arguments: pairs of a question and a path. Each answer is a list of words, each of them ended by NUL, the list by an
# empty word. At the end comes the word "end".
#
#   look PATH   d: a directory, or a link to one; e: anything else; no word: nothing is there
#   list PATH   the directory's real path and an x; its names; an empty word; those of its links that lead to directories
#   all PATH    the same of all that is below it; all+hidden goes into directories with a dot before their names, too
#
# Names begin with "./". A directory's comes twice. If PATH is no directory, or may not be entered, there is no word.

answer() {
    case $1 in
    look)
        if [ -d "$2" ]; then
            printf 'd\0'
        elif [ -e "$2" ] || [ -L "$2" ]; then
            printf 'e\0'
        fi
        return
        ;;
    esac
    cd -P -- "$2" 2>/dev/null || return
    # The end of the name must not be lost with the end of the line.
    printf '%s\0' "$(pwd -P && printf x)"
    case $1 in
    list) set -- -maxdepth 1 ;;
    all) set -- -name '.*' -prune -o ;;
    *) set -- ;;
    esac
    find . -mindepth 1 "$@" \( -type d -print0 -print0 -o -print0 \)
    printf '\0'
    find . -mindepth 1 "$@" -type l -print0 |
        xargs -0 -r /bin/sh -c 'exec find -H "$@" -maxdepth 0 -type d -print0' sh
}

# What is hidden from this user, or goes while it is looked at, is not there.
exec 2>/dev/null
while [ $# -gt 1 ]; do
    (answer "$1" "$2")
    printf '\0'
    shift 2
done
printf 'end\0'
