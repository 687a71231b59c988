#!/usr/bin/env bash
#SBATCH --job-name=fasthebb
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR1@120
set -uo pipefail

usage() {
  cat <<'EOF'
A run under SLURM that survives preemption and time limits. Two minutes before its time is up, or when it is
preempted, it saves, goes back into the queue, and later resumes where it was.

  sbatch [SBATCH OPTIONS] scripts/job.sh VERB key=value ...      the run of `fasthebb VERB key=value ...`
  sbatch --array=1-N [SBATCH OPTIONS] scripts/job.sh @FILE       a job for each of the N lines of FILE, "VERB key=value ..."

  sbatch --partition=gpu --gpus=1 --time=4:00:00 scripts/job.sh train dataset=imagenet rule=hpca

Options of sbatch override those in this file. The job gets the environment in which sbatch is called. Don't use
force=true: the run would start over each time.
EOF
}

case ${1:-} in
  "") usage >&2; exit 2 ;;
  -h | --help | help) usage; exit ;;
esac
if [ -z "${SLURM_JOB_ID:-}" ]; then
  echo "error: not a job of SLURM; submit it: sbatch $0 $*" >&2
  exit 2
fi
if [[ $1 == @* ]]; then
  line=$(sed -n "${SLURM_ARRAY_TASK_ID:?use sbatch --array=1-N}p" "${1#@}") || exit 2
  eval "set -- $line" # the file quotes its words for the shell
fi

# srun does not take cpus-per-task from sbatch; without it, srun would start a process on every core of the node
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
srun --ntasks="${SLURM_NTASKS:-1}" --kill-on-bad-exit=1 fasthebb "$@"
code=$?
case $code in
  130 | 138 | 140 | 143) # it stopped and saved, or a signal stopped it before its first stage
    # SLURM requeues a preempted job only if it still runs at the end of the grace time; scancel ends this script, too
    echo "requeued: $(date)"
    # not SLURM_JOB_ID: in the last task of an array it is the id of the whole array
    scontrol requeue "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
    ;;
esac
exit $code
