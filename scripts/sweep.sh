#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'EOF'
Submits a sweep to SLURM and returns. Each pre-training that is not done yet is one job. The cells that share it are an
array, one cell per task, which starts when that job has succeeded. No job holds a node while it waits.

  scripts/sweep.sh [SBATCH OPTIONS] VERB key=a,b ...      the cells of `fasthebb VERB -m key=a,b ...`

  scripts/sweep.sh --partition=gpu --gpus=1 --time=4:00:00 train dataset=cifar10 rule=hpca,none \
    label_fraction=0.01,0.05,0.1 'seed=range(0,5)'

Write options as --key=value. The jobs are those of scripts/job.sh: they are requeued when they are preempted. The same
command, given again, submits what is left. `scontrol update JobId=N ArrayTaskThrottle=4` runs at most four cells of
array N at once. `fasthebb runs OUT` shows the state of the cells.
EOF
}

options=()
dependency=() # the caller's own; an array of cells depends on its pre-training, too
while [[ ${1:-} == -* ]]; do
  case $1 in
    -h | --help) usage; exit ;;
    --dependency=*) dependency=("${1#--dependency=}") ;;
    --array* | -a*) echo "error: $1: the array is the sweep's own; see ArrayTaskThrottle in --help" >&2; exit 2 ;;
    *) options+=("$1") ;;
  esac
  shift
done
[ $# -gt 0 ] || { usage >&2; exit 2; }

out=runs
for word in "$@"; do
  case $word in
    out=*) out=${word#out=} ;;
  esac
done
job=$(dirname "$(realpath "$0")")/job.sh
cells=$(fasthebb cells "$@") # an error in any cell ends this script before anything is submitted
folder=$(realpath -m "$out")/.jobs/$(date +%Y%m%d-%H%M%S)-$$
mkdir -p "$folder"
cut -f2 <<<"$cells" >"$folder/cells.txt"

# each pre-training, or "-" for none, with the numbers of the cells that need it
awk -F '\t' '{ of[$1] = of[$1] (of[$1] ? "," : "") NR } END { for (name in of) print name "\t" of[name] }' <<<"$cells" |
  sort >"$folder/pretraining.txt"
while IFS=$'\t' read -r pretraining numbers; do
  after=()
  if [ "$pretraining" != - ]; then
    first=$(sed -n "${numbers%%,*}p" "$folder/cells.txt")
    words=()
    eval "words=($first)" # the line quotes its words for the shell
    id=$(sbatch --parsable --job-name=pretrain --output="$folder/%x-%j.log" "${options[@]}" \
      ${dependency[0]:+--dependency="${dependency[0]}"} "$job" "${words[@]}" 'stages=[pretrain]')
    after=("afterok:${id%%;*}")
    echo "job ${id%%;*}: $pretraining"
  fi
  depends=$(IFS=,; echo "${dependency[*]}${dependency[0]:+${after[0]:+,}}${after[*]}")
  id=$(sbatch --parsable --job-name=cells --output="$folder/%x-%A_%a.log" "${options[@]}" \
    ${depends:+--dependency="$depends" --kill-on-invalid-dep=yes} --array="$numbers" "$job" "@$folder/cells.txt")
  echo "job ${id%%;*}: cells $numbers of $folder/cells.txt${after[0]:+, then}"
done <"$folder/pretraining.txt"
echo "logs are in $folder; see squeue --me, fasthebb runs $out, and at the end fasthebb report $out"
