# Sourced by tpu_vm.sh, which sets the variables: the parts of its actions, and `all`, which makes them one unattended run.
# shellcheck disable=SC2154 # those variables

pause() {
    if [ -z "$dry_run" ]; then sleep "${E2H_POLL_SECONDS:-30}"; fi
}

last_error() {
    grep -v '^$' "$errors" | tail -n 1
}

# --- the slice

# In a dry run the answers are made up: the slice is not there until it has been requested, then it is; nothing goes wrong.
pretended_slice="" pretended_workers=""
answered=""   # Google Cloud has answered once: from then on, a question without an answer is asked again
supervised="" # the slice was there once: from then on, it is requested until it is granted

# Sets `state` to that of the queued resource, NONE if there is none, UNKNOWN if gcloud cannot tell just now; refuses one that is
# another kind of slice.
look() {
    local format='value[separator=";"](state.state,tpu.nodeSpec[0].node.acceleratorType.basename()'
    local answer type held reason
    format="$format,tpu.nodeSpec[0].node.acceleratorConfig.topology,state.failedData.error.message)"
    if ! answer=$(e2h_ask "$pretended_slice" gcloud compute tpus queued-resources describe "$name" "${where[@]}" \
        "--format=$format" 2>"$errors"); then
        if ! grep -q NOT_FOUND "$errors"; then
            [ -n "$answered" ] || e2h_fail "gcloud does not say whether there is a slice $name: $(last_error)"
            state=UNKNOWN
            return
        fi
        answer=""
    fi
    answered=yes
    IFS=';' read -r state type held reason <<<"$answer"
    state=${state:-NONE} why=${reason:-Google Cloud does not say why}
    if [ -n "$topology" ] && { [ -n "$type" ] && [ -n "$accelerator_type" ] && [ "$type" != "$accelerator_type" ] ||
        [ -n "$held" ] && [ "$held" != "$shape" ]; }; then
        e2h_fail "the name $name is taken by another slice (${type:-$held}): take another name, or delete it (down $name)."
    fi
}

need_slice() {
    look
    [ "$state" = ACTIVE ] || e2h_fail "the slice $name is not there (state $state): make it with up $name --topology=…"
}

# Requests the slice unless it is there, and waits for it. What is left of a preempted one is deleted first.
up() {
    local before="" requested=""
    while :; do
        look
        if [ "$state" != "$before" ]; then e2h_note "$name: $state"; fi
        before=$state
        case $state in
            ACTIVE) return ;;
            NONE)
                if e2h_call "${create[@]}" "$name" "--node-id=$name" "${where[@]}" "${slice_flags[@]}"; then
                    requested=yes pretended_slice=ACTIVE
                else
                    [ -n "$supervised" ] || e2h_fail "Google Cloud refuses the slice $name; gcloud says above why."
                    pause
                fi
                ;;
            FAILED)
                [ -z "$requested" ] || e2h_fail "the slice $name could not be made: $why."
                delete_slice || pause
                ;;
            SUSPENDED) delete_slice || pause ;;
            *) pause ;; # WAITING_FOR_RESOURCES, PROVISIONING, SUSPENDING, DELETING, UNKNOWN …
        esac
    done
}

delete_slice() {
    e2h_call gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force || return 1
    pretended_slice=""
}

delete_or_fail() {
    delete_slice || e2h_fail "the slice $name could not be deleted and may cost money (down $name); gcloud says above why."
}

down() {
    local answer=""
    look
    if [ "$state" = NONE ]; then
        echo "there is no slice $name: nothing to delete"
        return
    fi
    if [ -z "$yes" ] && [ -z "$dry_run" ]; then
        [ -t 0 ] || e2h_fail "down deletes the slice $name: say --yes where nobody can be asked."
        read -r -p "Delete the slice $name ($state) and what is on its workers' own disks? [y/N] " answer
        case $answer in [yY]*) ;; *) e2h_fail "$name was left there." ;; esac
    fi
    delete_or_fail
}

# --- its workers

# on_workers 0|all COMMAND: over ssh; what the workers print, and the exit code of one that failed.
on_workers() {
    e2h_call gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" "--worker=$1" "--command=$2"
}

# Sets `run` to idle, running, finished, or the exit code that says most about how the run ended. Fails if a worker is silent.
ask_workers() {
    local code codes
    answers=$(e2h_ask "$pretended_workers" gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all \
        "--command=test ! -e e2h_jax/launch/worker.sh || bash e2h_jax/launch/worker.sh status" 2>"$errors") || return 1
    answers=$(grep '^e2h-worker [0-9]' <<<"$answers" || true)
    run=idle
    case $answers in "" | *idle*) return ;; esac
    codes=$(sed -n 's/.* exit \([1-9][0-9]*\)$/\1/p' <<<"$answers")
    # A mistake before an error, an error before an interruption: whoever has lost another worker ends as if interrupted (143).
    for code in 2 3 $(grep -v -x -e 130 -e 143 <<<"$codes" || true) $codes; do
        if grep -q -x "$code" <<<"$codes"; then
            run=$code
            return
        fi
    done
    case $answers in *running*) run=running ;; *) run=finished ;; esac
}

lost_workers() {
    e2h_fail "the workers of $name cannot be reached: $(last_error)"
}

# Puts the tree on all workers and starts the command there. Fails if a worker is lost meanwhile.
start_run() {
    local archive="${TMPDIR:-/tmp}/e2h-$name.tar.gz"
    pack "$archive"
    e2h_note "$name: installing on all workers"
    e2h_call gcloud compute tpus tpu-vm scp "$archive" "$name:e2h_jax.tar.gz" "${where[@]}" --worker=all || return 1
    # The old tree goes, but for its virtual environment, so that no file of it stays.
    on_workers all "mkdir -p e2h_jax && find e2h_jax -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} + && \
tar -xzf e2h_jax.tar.gz -C e2h_jax && bash e2h_jax/launch/worker.sh setup${share:+ $(e2h_quoted "$share")}" || return 1
    e2h_note "$name: starting $(e2h_quoted "${command[@]}")"
    on_workers all "bash e2h_jax/launch/worker.sh start $(e2h_quoted "${command[@]}")" || return 1
    pretended_workers="e2h-worker 0 exit 0"
}

# The tree, as it is or as of --ref, into an archive.
pack() {
    local list=(git -C "$root" ls-files -z --cached --others --exclude-standard) tar=(tar -C "$root" --null -T - -czf "$1")
    if [ -n "$ref" ]; then
        e2h_call git -C "$root" archive --format=tar.gz "--output=$1" "$ref" || e2h_fail "--ref=$ref is no commit of this clone."
    elif [ -n "$dry_run" ]; then
        echo "$(e2h_quoted "${list[@]}") | COPYFILE_DISABLE=1 $(e2h_quoted "${tar[@]}")" >&3
    elif [ -n "$(git -C "$root" ls-files --deleted)" ]; then
        e2h_fail "files of this tree are deleted but not committed (git status): commit that, or say --ref=HEAD."
    else # COPYFILE_DISABLE: without the extra files of macOS's tar
        "${list[@]}" | COPYFILE_DISABLE=1 "${tar[@]}" || e2h_fail "this tree could not be packed into $1."
    fi
}

fetch_or_fail() {
    fetch || e2h_fail "the results of $name could not be fetched; gcloud says above why. The slice was left there (down $name)."
}

# The archive first, whole, so that a broken connection leaves the files of an earlier fetch as they were.
fetch() {
    local archive="$into/.$name.tar.gz"
    local words=(gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=0
        "--command=bash e2h_jax/launch/worker.sh results${everything:+ $everything}")
    e2h_call mkdir -p "$into"
    if [ -n "$dry_run" ]; then
        echo "$(e2h_quoted "${words[@]}") > $(e2h_quoted "$archive")" >&3
    else
        "${words[@]}" >"$archive" || return 1
    fi
    e2h_call tar -xzf "$archive" -C "$into" || return 1
    e2h_call rm "$archive"
    e2h_note "$name: the run's files are in $into"
}

# --- all of it, unattended

# Watches the run until it has ended for good and returns its exit code; starts it, and starts it again after interruptions.
supervise() {
    local before="" failures=0 short=0 started=0 silence
    up
    supervised=yes
    while :; do
        if ! ask_workers; then
            silence=$(last_error)
            if is_lost; then
                e2h_note "$name: lost ($state); it is made anew and the run goes on"
                up
                before="" failures=0 short=0
            else
                if [ "$before" != silent ]; then e2h_note "$name: workers do not answer ($silence); asking on"; fi
                before=silent
                pause
            fi
            continue
        fi
        if [ "$run" != "$before" ] && [ "$run" != idle ]; then e2h_note "$name: $run"; fi
        before=$run
        case $run in
            running)
                pause
                continue
                ;;
            finished) return 0 ;;
            2 | 3)
                stop_run
                return "$run"
                ;;
            130 | 143) # a notice of preemption: the slice may be about to go, or not
                stop_run
                # Time after time within minutes, it is no preemption: workers that do not find each other end so too.
                if [ $((SECONDS - started)) -lt 900 ]; then short=$((short + 1)); else short=0; fi
                if [ $short -ge 10 ]; then return 1; fi
                ;;
            idle) case $answers in *running*) stop_run ;; esac ;; # the start reached only some of them
            *)
                stop_run
                failures=$((failures + 1))
                if [ $failures -gt "$retries" ]; then return 1; fi
                e2h_note "$name: exit code $run; it is started again ($failures of $retries)"
                ;;
        esac
        started=$SECONDS
        if ! start_run; then
            look
            if [ "$state" = ACTIVE ]; then failures=$((failures + 1)); fi
            if [ $failures -gt "$retries" ]; then
                e2h_fail "$name: the installation fails; the last lines above say why. The slice was left there (down $name)."
            fi
            pause
        fi
    done
}

# Whether the slice is gone. A worker that is only silent may be in repair, or the network here may be down.
is_lost() {
    local node
    look
    case $state in
        UNKNOWN) return 1 ;;
        NONE | DELETING) e2h_fail "$name was deleted from elsewhere; the same command makes it again, and the run goes on." ;;
        ACTIVE)
            # Told a little earlier of the machines than of the queued resource, which then still has to go.
            node=$(gcloud compute tpus tpu-vm describe "$name" "${where[@]}" "--format=value(state)" 2>"$errors") || return 1
            case $node in PREEMPTED | TERMINATED) ;; *) return 1 ;; esac
            delete_slice || return 1
            state=$node
            ;;
    esac
}

stop_run() {
    on_workers all "bash e2h_jax/launch/worker.sh stop" || true # whoever cannot be reached is found out by ask_workers
}

all() {
    local code=0 folder try
    trap 'echo; echo "$name goes on without this terminal: the same command watches on, stop and down end it." >&2; exit 130' INT
    supervise || code=$?
    for try in 1 2 3 4 fail; do
        if [ $try = fail ]; then fetch_or_fail; elif fetch; then break; fi
        pause
    done
    folder=$into/$(basename "$workdir")
    if [ $code -eq 0 ] && [ -z "$dry_run" ] && [ ! -e "$folder/done.json" ]; then
        e2h_fail "$name: the command has ended, but there is no $folder/done.json; the slice was left there (down $name)."
    fi
    # Without a share the files of a run that is not finished are on the worker alone.
    if [ -n "$keep" ] || { [ $code -ne 0 ] && [ -z "$share" ]; }; then
        e2h_note "$name is still there and costs money: down $name deletes it"
    else
        delete_or_fail
    fi
    if [ $code -ne 0 ]; then
        echo "$(basename "$0"): the run ended with exit code $code; its last lines (all of them: $folder.logs):" >&2
        tail -n 5 "$folder.logs/worker-0.txt" >&2 || true
    fi
    return $code
}
