# Sourced by tpu_vm.sh and gke/submit.sh: the names of TPU slices. One is called as for `e2h plan` (v5e:4x4, v5p:4x4x8), or by
# Google's accelerator type (v5litepod-16, v5p-256).
# shellcheck disable=SC2034 # what it sets is read there

# Shapes of v5e and v6e, whose accelerator types count chips.
E2H_FLAT="1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16"
# What the accelerator types of v4 and v5p, which count two cores a chip, stand for. Other shapes exist, without such a type.
E2H_CUBES="2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16"

e2h_chips() {
    echo $((${1//x/*}))
}

# Prints the first of the shapes that has so many chips.
e2h_shape_of() {
    local chips=$1 shape
    shift
    for shape in "$@"; do
        if [ "$(e2h_chips "$shape")" = "$chips" ]; then
            echo "$shape"
            return
        fi
    done
}

# Whether a 3D shape is one of the small ones, or made of whole 4x4x4 cubes, sides in ascending order.
e2h_is_torus() {
    local a b c rest
    case $1 in 2x2x1 | 2x2x2 | 2x2x4 | 2x4x4) return 0 ;; esac
    [[ $1 =~ ^[1-9][0-9]*x[1-9][0-9]*x[1-9][0-9]*$ ]] || return 1
    a=${1%%x*} rest=${1#*x} b=${rest%x*} c=${rest#*x}
    ((a % 4 == 0 && b % 4 == 0 && c % 4 == 0 && a <= b && b <= c))
}

# e2h_find_slice NAME sets family (v4, v5e, v5p, v6e, tpu7x), shape (4x4), chips (16) and accelerator_type (v5litepod-16; empty
# where none stands for exactly this shape).
e2h_find_slice() {
    local number=${1##*-}
    family="" shape="" chips="" accelerator_type=""
    # shellcheck disable=SC2086 # the lists are words
    case $1 in
        v5litepod-*) family=v5e shape=$(e2h_shape_of "$number" $E2H_FLAT) ;;
        v6e-*) family=v6e shape=$(e2h_shape_of "$number" $E2H_FLAT) ;;
        v4-* | v5p-*) family=${1%%-*} shape=$(e2h_shape_of "$((number / 2))" $E2H_CUBES) ;;
        v5e:* | v6e:*) case " $E2H_FLAT " in *" ${1#*:} "*) family=${1%%:*} shape=${1#*:} ;; esac ;;
        v4:* | v5p:* | tpu7x:*) if e2h_is_torus "${1#*:}"; then family=${1%%:*} shape=${1#*:}; fi ;;
    esac
    if [ -z "$shape" ]; then
        e2h_fail "\"$1\" is no slice: v5e and v6e come as $E2H_FLAT, v4, v5p and tpu7x as 2x2x1 2x2x2 2x2x4 2x4x4 and whole 4x4x4" \
            "cubes in ascending order; write --topology=v5e:4x4 or v5p:4x4x8, or Google's v5litepod-16 or v5p-256."
    fi
    chips=$(e2h_chips "$shape")
    # shellcheck disable=SC2086
    case $family in
        v5e) accelerator_type=v5litepod-$chips ;;
        v6e) accelerator_type=v6e-$chips ;;
        v4 | v5p) if [ "$(e2h_shape_of "$chips" $E2H_CUBES)" = "$shape" ]; then accelerator_type=$family-$((2 * chips)); fi ;;
    esac
}
