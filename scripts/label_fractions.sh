#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'EOF'
Submits the main experiment of the papers to SLURM: how much does pre-training help when labels are few? It trains with
a rule and without one, on eight label fractions and five seeds each. A rule pre-trains once per seed.

  scripts/label_fractions.sh [SBATCH OPTIONS] key=value ...

  scripts/label_fractions.sh --partition=gpu --gpus=1 dataset=cifar10 rule=hpca,swta,none

rule=, label_fraction= and seed= replace the values in this script. scripts/sweep.sh submits the jobs.
EOF
}

options=()
while [[ ${1:-} == -* ]]; do
  case $1 in
    -h | --help) usage; exit ;;
  esac
  options+=("$1")
  shift
done
[ $# -gt 0 ] || { usage >&2; exit 2; }
[[ $1 == *=* ]] || { echo "error: can't read '$1': write options as --key=value, and settings as key=value" >&2; exit 2; }

# shellcheck disable=SC2054  # the commas are Hydra's
sweep=(rule=hpca,none label_fraction=0.01,0.02,0.03,0.04,0.05,0.1,0.25,1 'seed=range(0,5)')
for given in "$@"; do
  for i in "${!sweep[@]}"; do
    [ "${given%%=*}" != "${sweep[i]%%=*}" ] || unset "sweep[i]"
  done
done
exec "$(dirname "$0")/sweep.sh" "${options[@]}" train "$@" "${sweep[@]}"
