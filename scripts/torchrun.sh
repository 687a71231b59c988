#!/usr/bin/env bash
#SBATCH --job-name=fasthebb
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=2
#SBATCH --requeue
#SBATCH --signal=USR1@120
set -uo pipefail

usage() {
  cat <<'EOF'
One run on several nodes under SLURM, one process per GPU, started by torchrun. Like scripts/job.sh, it saves when it is
preempted or its time is up, goes back into the queue, and later resumes where it was.

  sbatch [SBATCH OPTIONS] scripts/torchrun.sh VERB key=value ...

  sbatch --nodes=4 --gpus-per-node=8 --cpus-per-task=64 --time=8:00:00 scripts/torchrun.sh train dataset=imagenet

A node without GPUs has as many processes as --ntasks-per-node says, or one. Don't use force=true: the run would start
over each time.
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

# srun does not take cpus-per-task from sbatch, and would bind all processes of a node to one core
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
processes=${SLURM_GPUS_ON_NODE:-${SLURM_NTASKS_PER_NODE:-1}}
# torchrun passes signals on to its processes and then always exits with 1; so the shell around it exits with 130
export TORCHELASTIC_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGUSR1,SIGUSR2
# shellcheck disable=SC2016  # the inner shell expands it
srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 --kill-on-bad-exit=1 bash -c '
  trap "stopped=130" TERM USR1 USR2
  "$@" &
  while kill -0 $! 2>/dev/null; do wait $!; code=$?; done
  exit "${stopped:-$code}"' torchrun \
  torchrun --nnodes="$SLURM_NNODES" --nproc-per-node="$processes" --rdzv-id="$SLURM_JOB_ID" --rdzv-backend=c10d \
  --rdzv-endpoint="$head:$((20000 + SLURM_JOB_ID % 20000))" --module fasthebb_cli "$@"
code=$?
case $code in
  130 | 138 | 140 | 143)
    echo "requeued: $(date)"
    scontrol requeue "$SLURM_JOB_ID"
    ;;
esac
exit $code
