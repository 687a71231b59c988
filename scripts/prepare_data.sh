#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'EOF'
Submits a job on CPU cores that runs `fasthebb data prepare`: it checks every image of a data set and, with out=FOLDER,
packs the images for training.

  scripts/prepare_data.sh [SBATCH OPTIONS] dataset=NAME [out=FOLDER] key=value ...

  scripts/prepare_data.sh --partition=cpu --time=8:00:00 dataset=imagenet dataset.root=/data/imagenet out=/fast/in210

The job is that of scripts/job.sh: after a stop, it goes back into the queue and resumes where it was.
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

exec sbatch --job-name=prepare --cpus-per-task=8 "${options[@]}" "$(dirname "$0")/job.sh" data prepare "$@"
