# Finds processes in Linux's /proc.

can_list() { [ -e /proc/self/stat ]; }

alive() { [ -d "/proc/$1" ]; }

# Lists "pid:parent:group:session" of all user processes but this shell.
list() {
    table= reused=
    for stat in /proc/[0-9]*/stat; do
        { read -r line <"$stat"; } 2>/dev/null || continue
        pid=${line%% *}
        # The name in parentheses may hold blanks and parentheses itself.
        set -- ${line##*) }
        [ "$1" = Z ] || [ "$4" = 0 ] || [ "$pid" = $$ ] && continue
        [ "$pid" = "$leader" ] && [ "${20}" != "$start" ] && reused=1
        table="$table $pid:$2:$3:$4"
    done
    marked=' '
    for environ in $(grep -lszF "$mark" /proc/[0-9]*/environ 2>/dev/null); do
        environ=${environ#/proc/}
        marked="$marked${environ%/environ} "
    done
}

