#!/usr/bin/env bash
# A real SLURM on this machine alone, for the tests marked `slurm`: partitions of one node, of which `high` preempts what
# runs in `low` and puts it back into the queue, and `pair`, of two nodes: this machine, and again as localhost. Needs root
# and Debian's slurm-wlm and munge.
#   tests/slurm/start.sh          start it, or find it running
#   tests/slurm/start.sh stop     stop it
# Clients find it by SLURM_CONF=/tmp/fasthebb-slurm/slurm.conf; a SLURM that the machine has otherwise is left alone.
set -euo pipefail
folder=/tmp/fasthebb-slurm
export SLURM_CONF=$folder/slurm.conf

stop() {
  for file in "$folder"/*.pid; do
    [ ! -f "$file" ] || kill "$(cat "$file")" 2>/dev/null || true
  done
}

is_up() {
  local states
  states=$(sinfo --noheader --Node --partition=pair --format %t 2>/dev/null) || return 1
  [ "$(grep -cE '^(idle|mix|alloc)' <<<"$states")" = 2 ]
}

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
node=$(hostname -s)
[ "$node" != localhost ] || { echo "$0: this machine needs a name of its own: localhost is the second node"; exit 1; }
nodes=("$node" localhost)
mkdir -p "$folder"/state "${nodes[@]/#/$folder/spool.}"
cat >"$SLURM_CONF" <<EOF
ClusterName=fasthebb
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=16817
AuthType=auth/munge
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool.%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.%n.log
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
NodeName=$node NodeHostname=$node NodeAddr=127.0.0.1 Port=16818 CPUs=$(nproc) State=UNKNOWN
NodeName=localhost NodeHostname=$node NodeAddr=127.0.0.1 Port=16819 CPUs=$(nproc) State=UNKNOWN
PartitionName=low Nodes=$node Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=30 MaxTime=INFINITE State=UP
PartitionName=high Nodes=$node PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
PartitionName=pair Nodes=$node,localhost MaxTime=INFINITE State=UP
EOF
slurmctld
for name in "${nodes[@]}"; do slurmd -N "$name"; done
for _ in $(seq 30); do
  if is_up; then sinfo; exit; fi
  sleep 1
done
echo "$0: SLURM does not come up; see $folder/*.log"
exit 1
