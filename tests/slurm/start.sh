#!/usr/bin/env bash
# A real SLURM on this machine alone, for the tests marked `slurm`: one node and two partitions, of which `high` preempts
# what runs in `low` and puts it back into the queue. Needs root and Debian's slurm-wlm and munge.
#   tests/slurm/start.sh          start it, or find it running
#   tests/slurm/start.sh stop     stop it
# Clients find it by SLURM_CONF=/tmp/fasthebb-slurm/slurm.conf; a SLURM that the machine has otherwise is left alone.
set -euo pipefail
folder=/tmp/fasthebb-slurm
export SLURM_CONF=$folder/slurm.conf

stop() {
  for daemon in slurmd slurmctld; do
    [ ! -f "$folder/$daemon.pid" ] || kill "$(cat "$folder/$daemon.pid")" 2>/dev/null || true
  done
}

is_up() { sinfo --noheader --format %t 2>/dev/null | grep -qE '^(idle|mix|alloc)'; }

if [ "${1:-}" = stop ]; then stop; exit; fi
if [ -f "$SLURM_CONF" ] && is_up; then exit; fi
[ "$(id -u)" = 0 ] || { echo "$0: SLURM's daemons need root"; exit 1; }
hash slurmctld slurmd munge 2>/dev/null || { echo "$0: needs the packages slurm-wlm and munge"; exit 1; }

if ! munge --no-input >/dev/null 2>&1; then
  if [ ! -f /etc/munge/munge.key ]; then
    (umask 077 && head -c 1024 /dev/urandom >/etc/munge/munge.key)
    chown munge: /etc/munge/munge.key
  fi
  mkdir -p /run/munge
  chown munge: /run/munge
  runuser -u munge -- /usr/sbin/munged
fi

stop
rm -rf "$folder"
mkdir -p "$folder"/state "$folder"/spool
node=$(hostname -s)
cat >"$SLURM_CONF" <<EOF
ClusterName=fasthebb
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=5,bf_interval=5
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=10
ReturnToService=2
NodeName=$node NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=low Nodes=$node Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=30 MaxTime=INFINITE State=UP
PartitionName=high Nodes=$node PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
EOF
slurmctld
slurmd
for _ in $(seq 30); do
  if is_up; then sinfo; exit; fi
  sleep 1
done
echo "$0: SLURM does not come up; see $folder/*.log"
exit 1
