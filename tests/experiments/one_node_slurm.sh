#!/bin/sh
# Start a Slurm of this one machine, as root: sh one_node_slurm.sh FOLDER; then SLURM_CONF=FOLDER/slurm.conf names it, and
# `scontrol shutdown` ends it. Debian: apt-get install slurm-wlm munge
set -eu
folder=$1
name=$(hostname -s)
mkdir -p "$folder/state" "$folder/spool"
if ! munge -n >/dev/null 2>&1; then
    install -d -o munge -g munge -m 0755 /run/munge
    [ -s /etc/munge/munge.key ] || mungekey --create
    su -s /bin/sh munge -c "$(command -v munged)"
fi
cat >"$folder/slurm.conf" <<END
ClusterName=one
SlurmctldHost=$name
SlurmUser=root
AuthType=auth/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName=$name CPUs=$(nproc) State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
export SLURM_CONF="$folder/slurm.conf"
slurmctld
slurmd
for _ in $(seq 60); do
    [ "$(sinfo -h -o %t 2>/dev/null)" = idle ] && exit 0
    sleep 1
done
echo "Slurm does not come up; see $folder/slurmctld.log" >&2
exit 1
