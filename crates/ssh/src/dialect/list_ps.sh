# Finds processes with ps, as BSDs have it, and Linux's procps.

can_list() { ps -o pid= -p $$ >/dev/null 2>&1; }

alive() { ps -o pid= -p "$1" >/dev/null 2>&1; }

# Lists "pid:parent:group:session" of all user processes but this shell. Nothing tells reliably whether a pid was reused.
list() {
    table= reused=
    all=$(ps ax -o pid= -o ppid= -o pgid= -o sid= -o stat=)
    while read -r pid parent group session state; do
        case $state in Z* | '') continue ;; esac
        [ "$session" = 0 ] || [ "$pid" = $$ ] && continue
        table="$table $pid:$parent:$group:$session"
    done <<END
$all
END
    marked=' '
    # The environment comes with the command, on BSDs before it and on Linux after it.
    all=$(ps axeww -o pid= -o command= 2>/dev/null)
    while read -r pid line; do
        case $line in *"$mark"*) marked="$marked$pid " ;; esac
    done <<END
$all
END
}

