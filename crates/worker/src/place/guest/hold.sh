# Keeps files open, so that they can be read when they have been renamed or removed. Runs in the guest, in any POSIX sh.
# Reads lines: "+PATH", the path as `printf %b` has it, is answered by the number of a process that has the file open as 3, or
# by 0; "-NUMBER" ends that process. The end of the input ends all of them.

held=
end() { [ -z "$held" ] || kill $held 2>/dev/null; }
trap end EXIT
trap 'exit 1' HUP INT TERM PIPE

hold() {
    # A pipe would be waited for.
    [ -f "$1" ] || return
    # Of its own descriptors it needs none but the file's: whoever waits for the end of our output must not wait for it.
    { sleep 2147483647 </dev/null >/dev/null 2>&1 & } 3<"$1"
}

while IFS= read -r line; do
    case $line in
    +*)
        # The end of the name must not be lost with the end of the line.
        path=$(printf '%bx' "${line#+}")
        if hold "${path%x}" 2>/dev/null; then
            held="$held $!"
            echo "$!"
        else
            echo 0
        fi
        ;;
    -*)
        kill "${line#-}" 2>/dev/null
        wait "${line#-}" 2>/dev/null
        # The number may be another process's from now on.
        rest=
        for each in $held; do
            [ "$each" = "${line#-}" ] || rest="$rest $each"
        done
        held=$rest
        ;;
    esac
done
