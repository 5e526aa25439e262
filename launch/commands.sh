# Sourced by the launchers: mistakes in one sentence, and commands that a dry run prints instead of running them.
# What a dry run prints can be pasted into a shell as it is. Works with the bash 3.2 of macOS.

dry_run=${dry_run:-}
exec 3>&1  # where a dry run prints, also from within $(…)

e2h_fail() {
    echo "$(basename "$0"): $*" >&2
    exit 2
}

# The comment at the top of the script that was called.
e2h_help() {
    sed -n '2,/^[^#]/{/^#/!q;s/^# \{0,1\}//;p;}' "$0"
}

e2h_note() {
    if [ -z "$dry_run" ]; then echo "$(date +%H:%M:%S) $*"; else echo "# $*" >&3; fi
}

# The words as one line that a shell takes apart into the same words.
e2h_quoted() {
    local word line="" quote="'\\''"
    for word in "$@"; do
        case $word in
            "" | *[!A-Za-z0-9_./:=,@%+-]*) word=\'${word//\'/$quote}\' ;;
        esac
        line="$line${line:+ }$word"
    done
    printf '%s\n' "$line"
}

e2h_call() {
    if [ -n "$dry_run" ]; then e2h_quoted "$@" >&3; else "$@"; fi
}

# e2h_ask ANSWER WORDS…: what the command prints; in a dry run ANSWER.
e2h_ask() {
    local answer=$1
    shift
    if [ -n "$dry_run" ]; then
        e2h_quoted "$@" >&3
        echo "$answer"
    else
        "$@"
    fi
}

e2h_need() {
    [ -n "$dry_run" ] || command -v "$1" >/dev/null || e2h_fail "$1 is not installed here; $2."
}

# A name that Google Cloud, Kubernetes and Slurm all accept.
e2h_check_name() {
    local pattern='^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$'
    [[ $1 =~ $pattern ]] || e2h_fail "\"$1\" cannot be a name: take up to 40 of a-z, 0-9 and -, a letter first and no - at the end."
}

# Sets `workdir` from the --workdir= of the command: where the run's files are, on the machines.
e2h_find_workdir() {
    local word
    workdir=""
    [ $# -gt 0 ] || e2h_fail "the command to run is missing: … -- e2h recipe --config=FILE.py --workdir=DIR"
    for word in "$@"; do
        case $word in --workdir=*) workdir=${word#--workdir=} ;; esac
    done
    workdir=${workdir%/}
    case $workdir in
        /*) ;;
        *) e2h_fail "the command needs --workdir=DIR with a whole path (--workdir=/…), so that it is the same folder on every machine." ;;
    esac
}
