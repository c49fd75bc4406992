# Writes a directory as a tar stream. Runs in the guest, in any POSIX sh, with GNU's or busybox's tools.
# $1: the directory. find says why it can't be read; some shells and tars do not.

find "$1/." -maxdepth 1 -name . >/dev/null || exit 3
# GNU tar tells times to the nanosecond in this format only, in which the size of a huge file is not where it is looked for.
# Busybox's tar does not know the variable, nor such times.
if [ -z "$(find "$1/." -type f -size +8388607k 2>/dev/null)" ]; then
    TAR_OPTIONS=--format=posix\ --pax-option=delete=atime,delete=ctime
    export TAR_OPTIONS
fi
exec tar -cf - -C "$1" .
