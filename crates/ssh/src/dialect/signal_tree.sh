# Sends $signal to everything a command started. Runs in the guest, in any POSIX sh, after one of the files that say how
# processes are found: with list, which sets table ("pid:parent:group:session" of each), marked and reused, and alive.
# $leader: the command's pid; $start: its start time (a pid alone may have been reused); $mark: NAME=VALUE in its environment.
# Members are the leader, its session and process group, whatever carries the mark (daemons that left the session),
# and all descendants of these (sudo clears the environment).

find_members() {
    list
    members=' '
    for entry in $table; do
        pid=${entry%%:*} group_session=${entry#*:*:}
        member=
        case $marked in *" $pid "*) member=1 ;; esac
        [ "$reused" ] || case ":$pid:$group_session:" in *:"$leader":*) member=1 ;; esac
        [ "$member" ] && members="$members$pid "
    done
    more=1
    while [ "$more" ]; do
        more=
        for entry in $table; do
            pid=${entry%%:*} parent=${entry#*:}
            parent=${parent%%:*}
            case $members in
            *" $pid "*) ;;
            *" $parent "*) members="$members$pid " more=1 ;;
            esac
        done
    done
}

signalled=' ' denied= count=0

# Signals the members that were not signalled before; fails if there was none.
signal_members() {
    new=
    for pid in $members; do
        case $signalled in *" $pid "*) continue ;; esac
        new=1 signalled="$signalled$pid "
        if kill -s "$signal" "$pid" 2>/dev/null; then
            count=$((count + 1))
        elif alive "$pid"; then
            denied="$denied $pid"
        fi
    done
    # Succeeds if sudo may: that one of them is gone by now is no failure.
    if [ "$denied" ] && sudo -n /bin/sh -c "kill -s $signal$denied; :" </dev/null >/dev/null 2>&1; then
        for pid in $denied; do count=$((count + 1)); done
        denied=
    fi
    [ "$new" ]
}

if can_list; then
    find_members
    # What forked while it was being killed shows in the next round.
    while signal_members && [ "$signal" = KILL ]; do find_members; done
else
    kill -s "$signal" -- "-$leader" 2>/dev/null && count=1
fi
printf '%s\n' "$report $count$denied"
