#!/usr/bin/env bash
#SBATCH --job-name=fasthebb
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR1@120
set -uo pipefail

usage() {
  cat <<'EOF'
A run under SLURM that survives preemption and time limits: two minutes before its time is up, or when it is
preempted, it saves, goes back into the queue and later goes on where it was.

  sbatch [SBATCH OPTIONS] scripts/job.sh VERB key=value ...      the run of `fasthebb VERB key=value ...`
  sbatch --array=1-N [SBATCH OPTIONS] scripts/job.sh @FILE       a job for each of the N lines of FILE, "VERB key=value ..."

  sbatch --partition=gpu --gpus=1 --time=4:00:00 scripts/job.sh train dataset=imagenet rule=hpca

Options of sbatch win over those in this file; the job has the environment that sbatch is called in. force=true: the run
would start over each time.
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
  eval "set -- $line" # its words are quoted for the shell
fi

# srun doesn't take cpus-per-task over from sbatch, and would start a process on every core of a node given out whole
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
srun --ntasks="${SLURM_NTASKS:-1}" --kill-on-bad-exit=1 fasthebb "$@"
code=$?
case $code in
  130 | 138 | 140 | 143) # stopped and saved, or stopped by a signal before it could have begun anything
    # SLURM itself requeues a preempted job only if it has not ended by then; scancel ends this script, too
    echo "requeued: $(date)"
    # not SLURM_JOB_ID, which is the whole array's in its last task
    scontrol requeue "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
    ;;
esac
exit $code
