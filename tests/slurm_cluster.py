"""A real Slurm cluster of two nodes on this machine, without systemd and apart from any other: for tests and by hand.

    python tests/slurm_cluster.py start FOLDER     then do as it says; every Slurm command needs that SLURM_CONF
    python tests/slurm_cluster.py stop FOLDER

All of it - configuration, key, socket, logs, spool - is in FOLDER, and its ports are free ones. Needs root (the daemons
run jobs as whoever submits them) and Debian's packages slurm-wlm and munge. Partition `low` is the default; a job in
`high` takes the node of one in `low`, which is requeued.
"""

import contextlib
import os
import pathlib
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time

NODES = ('n1', 'n2')
# Short times, so that tests need not wait: a node is given up after SlurmdTimeout, a job is killed KillWait after
# its SIGTERM, and one that is requeued waits until its old credential has expired.
CONFIG = """
ClusterName=bhcnet
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
SlurmctldDebug=info
SlurmdDebug=info
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobs.log
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdTimeout=3
MessageTimeout=2
TCPTimeout=1
KillWait=2
ReturnToService=2
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=2000 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=low Nodes=n1,n2 Default=YES PriorityTier=1 GraceTime=10 MaxTime=INFINITE State=UP
PartitionName=high Nodes=n1,n2 PriorityTier=9 MaxTime=INFINITE State=UP
"""


class ClusterError(RuntimeError):
    """No cluster can be started; one line that says why."""


def missing() -> str:
    """Why no cluster can be started here, '' if one can."""
    absent = [name for name in ('munged', 'slurmctld', 'slurmd', 'sbatch') if not shutil.which(name, path=_path())]
    if absent:
        return f'no {", ".join(absent)}: apt-get install slurm-wlm munge'
    return '' if os.geteuid() == 0 else 'the daemons of Slurm need root'


def environment(folder: pathlib.Path) -> dict[str, str]:
    """What the environment of every Slurm command for this cluster must hold."""
    return {'SLURM_CONF': f'{folder}/slurm.conf', 'PATH': _path()}


def start(folder: pathlib.Path) -> None:
    """Starts the daemons, and returns once both nodes are idle. ClusterError if they are not within 30 s."""
    if missing():
        raise ClusterError(missing())
    for name in ('', 'state', *(f'spool.{node}' for node in NODES)):
        (folder / name).mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)  # munged insists that everyone can reach its socket
    key = folder / 'munge.key'
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o600)
    config = CONFIG.format(folder=folder, host=socket.gethostname().partition('.')[0], ports=_free_ports(3))
    (folder / 'slurm.conf').write_text(config)
    (folder / 'cgroup.conf').write_text('CgroupPlugin=autodetect\n')
    files = {'key-file': 'key', 'socket': 'socket', 'pid-file': 'pid', 'log-file': 'log', 'seed-file': 'seed'}
    _run(folder, 'munged', '--force', *(f'--{flag}={folder}/munge.{end}' for flag, end in files.items()))
    _run(folder, 'slurmctld')
    for node in NODES:
        start_node(folder, node)
    deadline = time.monotonic() + 30
    while _idle(folder) != list(NODES):
        if time.monotonic() > deadline:
            raise ClusterError(f'The nodes are not idle after 30 s; see {folder}/*.log.')
        time.sleep(0.1)


def start_node(folder: pathlib.Path, node: str) -> None:
    """Starts a node's slurmd, also one that was killed."""
    _run(folder, 'slurmd', '-N', node)


def kill_node(folder: pathlib.Path, node: str) -> None:
    """What Slurm sees of a node that loses its power: its daemon and all processes of its jobs die, unheard."""
    for pid in [_pid(folder / f'slurmd.{node}.pid'), *_descendants(_step_daemons(folder, node))]:
        _kill(pid)


def stop(folder: pathlib.Path) -> None:
    """Kills whatever of the cluster still runs, its jobs too; the folder stays."""
    for node in NODES:
        kill_node(folder, node)
    for name in ('slurmctld', 'munge'):
        _kill(_pid(folder / f'{name}.pid'))


def _path() -> str:
    return f'{os.environ["PATH"]}:/usr/sbin:/sbin'  # where Debian has daemons, and a user's PATH has not


def _run(folder: pathlib.Path, *command: str) -> str:
    ran = subprocess.run(
        command, env={**os.environ, **environment(folder)}, capture_output=True, text=True, check=False
    )
    if ran.returncode:
        raise ClusterError(f'{" ".join(command)}: {ran.stderr.strip()}')
    return ran.stdout


def _idle(folder: pathlib.Path) -> list[str]:
    with contextlib.suppress(ClusterError):  # slurmctld does not answer yet
        flags = ('--noheader', '--Node', '--states=idle', '--partition=low', '--format=%N')
        return sorted(_run(folder, 'sinfo', *flags).split())
    return []


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(('127.0.0.1', 0))
        return [each.getsockname()[1] for each in sockets]


def _pid(file: pathlib.Path) -> int | None:
    with contextlib.suppress(FileNotFoundError, ValueError):
        return int(file.read_text())
    return None


def _kill(pid: int | None) -> None:
    with contextlib.suppress(ProcessLookupError):
        if pid:
            os.kill(pid, signal.SIGKILL)


def _processes() -> dict[int, int]:
    """Process id -> that of its parent, for all processes."""
    parents = {}
    for stat in pathlib.Path('/proc').glob('[0-9]*/stat'):
        with contextlib.suppress(OSError):  # gone meanwhile
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(')')[2].split()[1])
    return parents


def _step_daemons(folder: pathlib.Path, node: str) -> list[int]:
    """The slurmstepd processes of a node, one for each batch script and each srun: they write to the node's log."""
    found = []
    for pid in _processes():
        with contextlib.suppress(OSError):  # gone meanwhile
            process = pathlib.Path(f'/proc/{pid}')
            opened = {os.readlink(file) for file in (process / 'fd').iterdir()}
            if f'{folder}/slurmd.{node}.log' in opened and b'slurmstepd' in (process / 'cmdline').read_bytes():
                found.append(pid)
    return found


def _descendants(pids: list[int]) -> list[int]:
    """These processes and all that they have started."""
    parents, found = _processes(), list(pids)
    for pid in found:  # grows meanwhile
        found += [child for child, parent in parents.items() if parent == pid]
    return found


if __name__ == '__main__':
    if len(sys.argv) != 3 or sys.argv[1] not in ('start', 'stop'):
        sys.exit('usage: python tests/slurm_cluster.py start|stop FOLDER')
    where = pathlib.Path(sys.argv[2]).absolute()
    try:
        {'start': start, 'stop': stop}[sys.argv[1]](where)
    except ClusterError as error:
        sys.exit(f'error: {error}')
    if sys.argv[1] == 'start':
        print(f'export SLURM_CONF={where}/slurm.conf')
