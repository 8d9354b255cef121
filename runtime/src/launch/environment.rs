//! The environment variables of launchers: the number of this process, the number of processes, and the address where
//! they meet.
//!
//! | launcher | rank, world | rank and world on this host | address |
//! |---|---|---|---|
//! | `tpc launch` | `TPC_RANK`, `TPC_WORLD` | all on one | `TPC_CONTROL`: the launcher's control block |
//! | torchrun | `RANK`, `WORLD_SIZE` | `LOCAL_RANK`, `LOCAL_WORLD_SIZE` | `MASTER_ADDR`, the port after `MASTER_PORT` |
//! | OpenMPI | `OMPI_COMM_WORLD_RANK`, `…_SIZE` | `…_LOCAL_RANK`, `…_LOCAL_SIZE` | from the job's name |
//! | MPICH, Intel MPI | `PMI_RANK`, `PMI_SIZE` | `MPI_LOCALRANKID`, `MPI_LOCALNRANKS` | from the parent process |
//! | SLURM, in a step | `SLURM_PROCID`, `SLURM_STEP_NUM_TASKS` | `SLURM_LOCALID`, `SLURM_STEP_TASKS_PER_NODE` | the step's first node; from job and step |
//!
//! `TPC_ADDRESS=HOST:PORT` overrides every address, and `MASTER_ADDR` and `MASTER_PORT` do so for launchers without
//! addresses. Processes of `srun --mpi=pmi2` have the variables of MPICH and those of SLURM. An empty variable counts
//! as unset, because scripts and containers unset variables in this way if they cannot remove them.

use super::slurm;
use serde::{Deserialize, Serialize};
use std::fmt::{self, Display};

/// The kind of launcher that started this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LauncherKind {
    /// `tpc launch`.
    Tpc,
    /// torchrun, or another launcher that sets PyTorch's variables.
    Torchrun,
    /// OpenMPI's `mpirun`.
    OpenMpi,
    /// MPICH's or Intel MPI's `mpiexec`.
    Mpich,
    /// SLURM's `srun`.
    Slurm,
}

impl Display for LauncherKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LauncherKind::Tpc => "tpc launch",
            LauncherKind::Torchrun => "torchrun",
            LauncherKind::OpenMpi => "OpenMPI",
            LauncherKind::Mpich => "MPICH",
            LauncherKind::Slurm => "SLURM",
        })
    }
}

/// A launcher's name for a job: equal for all processes of the job, and different from that of any other job that may
/// use the same address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job(String);

impl Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One process of a launched world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launched {
    /// The launcher.
    pub kind: LauncherKind,
    /// The rank of this process.
    pub rank: usize,
    /// Number of processes.
    pub world: usize,
    /// The rank of this process on its host.
    pub local_rank: usize,
    /// Number of processes on its host.
    pub local_world: usize,
    /// `HOST:PORT` where the processes meet; for `tpc launch`, the handle of its control block.
    pub address: String,
    /// The job, if the launcher names it.
    pub job: Option<Job>,
    /// The variables with the rank and the number of ranks.
    pub names: [&'static str; 2],
}

impl Launched {
    /// Explains why this process waits for others, and how to run it alone.
    pub fn why(&self) -> String {
        let Launched { kind, rank, world, names: [rank_name, world_name], .. } = self;
        let because =
            format!("{kind}'s variables {rank_name}={rank} and {world_name}={world} make this process one of {world}");
        match kind {
            LauncherKind::Slurm => format!(
                "{because}; a shell of `srun --pty` has them, too: there, `unset {rank_name}` runs tpc alone, and \
                 `srun --ntasks={world} tpc …` starts all processes"
            ),
            _ => format!("{because}; to run it alone, unset {rank_name}"),
        }
    }
}

/// An error in the environment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvironmentError {
    /// A variable that should be a number.
    #[error(
        "the environment of {kind} has {name}={value}, which is not a number; start the processes with a launcher, or unset it"
    )]
    NoNumber {
        /// The launcher.
        kind: LauncherKind,
        /// The variable.
        name: String,
        /// Its value.
        value: String,
    },
    /// A variable that should be a port.
    #[error("the environment of {kind} has {name}={value}, which is not a valid port; ports must be from 1 to 65534")]
    NoPort {
        /// The launcher.
        kind: LauncherKind,
        /// The variable.
        name: String,
        /// Its value.
        value: String,
    },
    /// An invalid deadline.
    #[error(
        "the environment has {name}={value}, which is not a positive number of seconds; set it to one, or unset it"
    )]
    NoSeconds {
        /// The variable.
        name: String,
        /// Its value.
        value: String,
    },
    /// A variable that is missing although a related one is set.
    #[error(
        "the environment of {kind} has {present} but no {missing}; start the processes with a launcher, or unset {present}"
    )]
    Incomplete {
        /// The launcher.
        kind: LauncherKind,
        /// The variable that is set.
        present: String,
        /// The missing variable.
        missing: String,
    },
    /// A rank outside of its world.
    #[error(
        "the environment of {kind} has {rank_name}={rank}, which is not a rank of {world_name}={world}: ranks go from 0 to one less than their number"
    )]
    Outside {
        /// The launcher.
        kind: LauncherKind,
        /// The variable of the rank.
        rank_name: String,
        /// Its value.
        rank: usize,
        /// The variable of the number of ranks.
        world_name: String,
        /// Its value.
        world: usize,
    },
}

/// A function that looks up a variable.
pub type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A function that finds the process that passed a variable to this one.
pub type Starter<'a> = &'a dyn Fn(&str) -> u32;

/// The variables of one launcher.
struct Names {
    kind: LauncherKind,
    rank: &'static str,
    /// The first one that is set counts.
    world: &'static [&'static str],
    local_rank: Option<&'static str>,
    local_world: Option<&'static str>,
}

/// The first launcher whose rank variable is set has started the process. The most specific launchers come first,
/// because launchers start each other.
const LAUNCHERS: [Names; 5] = [
    Names { kind: LauncherKind::Tpc, rank: "TPC_RANK", world: &["TPC_WORLD"], local_rank: None, local_world: None },
    Names {
        kind: LauncherKind::Torchrun,
        rank: "RANK",
        world: &["WORLD_SIZE"],
        local_rank: Some("LOCAL_RANK"),
        local_world: Some("LOCAL_WORLD_SIZE"),
    },
    Names {
        kind: LauncherKind::OpenMpi,
        rank: "OMPI_COMM_WORLD_RANK",
        world: &["OMPI_COMM_WORLD_SIZE"],
        local_rank: Some("OMPI_COMM_WORLD_LOCAL_RANK"),
        local_world: Some("OMPI_COMM_WORLD_LOCAL_SIZE"),
    },
    Names {
        kind: LauncherKind::Mpich,
        rank: "PMI_RANK",
        world: &["PMI_SIZE"],
        local_rank: Some("MPI_LOCALRANKID"),
        local_world: Some("MPI_LOCALNRANKS"),
    },
    Names {
        kind: LauncherKind::Slurm,
        rank: "SLURM_PROCID",
        // The variable of the step is the most specific one; some containers pass on only one of them.
        world: &["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"],
        local_rank: Some("SLURM_LOCALID"),
        local_world: None,
    },
];

/// SLURM's ids of steps that `srun` did not start with tasks, such as batch scripts and interactive shells.
const SLURM_SPECIAL: u64 = 0xffff_fff0;

fn is_in_step(variables: Variables) -> bool {
    // A value that is not a number is reported when it is used.
    step(variables).is_some_and(|(_, id)| id.trim().parse::<u64>().map_or(true, |id| id < SLURM_SPECIAL))
}

/// The first of some variables that is set.
fn first(names: &[&'static str], variables: Variables) -> Option<(&'static str, String)> {
    names.iter().find_map(|name| Some((*name, variables(name)?)))
}

/// SLURM's id of the step; the second name is that of old versions.
fn step(variables: Variables) -> Option<(&'static str, String)> {
    first(&["SLURM_STEP_ID", "SLURM_STEPID"], variables)
}

impl Names {
    fn has_launched(&self, variables: Variables) -> bool {
        variables(self.rank).is_some()
            && match self.kind {
                LauncherKind::Slurm => is_in_step(variables),
                // A user's RANK alone does not come from torchrun.
                LauncherKind::Torchrun => first(self.world, variables).is_some(),
                _ => true,
            }
    }

    fn number(&self, name: &str, variables: Variables) -> Result<Option<usize>, EnvironmentError> {
        let Some(value) = variables(name) else { return Ok(None) };
        let number = value.trim().parse();
        number.map(Some).map_err(|_| EnvironmentError::NoNumber { kind: self.kind, name: name.into(), value })
    }

    /// The process that this is; `None` if it is the only one.
    fn launched(&self, variables: Variables, starter: Starter) -> Result<Option<Launched>, EnvironmentError> {
        let kind = self.kind;
        let incomplete =
            |name: &str| EnvironmentError::Incomplete { kind, present: self.rank.into(), missing: name.into() };
        let needed = |name: &str| self.number(name, variables)?.ok_or_else(|| incomplete(name));
        let optional = |name: Option<&str>| name.map_or(Ok(None), |name| self.number(name, variables));
        let world_name = first(self.world, variables).map_or(self.world[0], |(name, _)| name);
        let (rank, world) = (needed(self.rank)?, needed(world_name)?);
        if kind == LauncherKind::Slurm {
            optional(step(variables).map(|(name, _)| name))?;
        }
        // A launcher that says nothing about hosts has only one, unless SLURM knows better.
        let here = self.tasks_here(variables);
        let slurm_local = here.and(Some("SLURM_LOCALID"));
        let local_world = optional(self.local_world)?.or(here).unwrap_or(world);
        let local_rank = optional(self.local_rank)?.or(optional(slurm_local)?);
        let inside = |rank_name: &str, rank: usize, world_name: &str, world: usize| {
            let (rank_name, world_name) = (rank_name.to_string(), world_name.to_string());
            if rank < world {
                Ok(())
            } else {
                Err(EnvironmentError::Outside { kind, rank_name, rank, world_name, world })
            }
        };
        inside(self.rank, rank, world_name, world)?;
        if let (Some(rank_name), Some(local_rank), Some(world_name)) = (self.local_rank, local_rank, self.local_world) {
            inside(rank_name, local_rank, world_name, local_world)?;
        }
        // Most launchers fill one host after the other.
        let local_rank = local_rank.unwrap_or(if local_world == 0 { rank } else { rank % local_world });
        if world == 1 && kind != LauncherKind::Tpc {
            return Ok(None);
        }
        let address = self.address(variables, starter)?;
        let (job, names) = (self.job(variables).map(Job), [self.rank, world_name]);
        Ok(Some(Launched { kind, rank, world, local_rank, local_world, address, job, names }))
    }

    /// Number of tasks on this node in a SLURM step with several nodes; `None` outside of such steps.
    fn tasks_here(&self, variables: Variables) -> Option<usize> {
        if !matches!(self.kind, LauncherKind::Slurm | LauncherKind::Mpich) || !is_in_step(variables) {
            return None;
        }
        let nodes = variables("SLURM_STEP_NUM_NODES").or_else(|| variables("SLURM_NNODES"));
        if nodes.is_none_or(|n| n.trim() == "1") {
            return None;
        }
        let tasks = variables("SLURM_STEP_TASKS_PER_NODE").zip(variables("SLURM_NODEID"));
        // With several nodes, any number below the total has the same effect as one.
        Some(tasks.and_then(|(tasks, node)| slurm::tasks_on(&tasks, node.trim().parse().ok()?)).unwrap_or(1))
    }

    /// The launcher's name for the job.
    fn job(&self, variables: Variables) -> Option<String> {
        let slurm = || {
            let (_, job) = first(&["SLURM_JOB_ID", "SLURM_JOBID"], variables)?;
            Some(format!("{job}.{}", step(variables)?.1))
        };
        match self.kind {
            // Each job has its own control block.
            LauncherKind::Tpc => None,
            // torchrun uses `none` for a run without a name. Processes of an earlier attempt belong to another job.
            LauncherKind::Torchrun => {
                let run = variables("TORCHELASTIC_RUN_ID").filter(|run| run != "none")?;
                let attempt = variables("TORCHELASTIC_RESTART_COUNT").map(|n| format!(" attempt {n}"));
                Some(run + &attempt.unwrap_or_default())
            }
            LauncherKind::OpenMpi => {
                let names = ["PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "OMPI_MCA_orte_ess_jobid"];
                first(&names, variables).map(|(_, job)| job)
            }
            LauncherKind::Mpich => {
                variables("PMI_JOBID").or_else(|| slurm().filter(|_| self.tasks_here(variables).is_some()))
            }
            LauncherKind::Slurm => slurm(),
        }
    }

    fn address(&self, variables: Variables, starter: Starter) -> Result<String, EnvironmentError> {
        let kind = self.kind;
        if kind == LauncherKind::Tpc {
            let incomplete = EnvironmentError::Incomplete { kind, present: self.rank.into(), missing: CONTROL.into() };
            return variables(CONTROL).ok_or(incomplete);
        }
        if let Some(address) = variables(ADDRESS) {
            return Ok(address.trim().to_string());
        }
        // Task 0 is on the step's first node; `SLURM_LAUNCH_NODE_IPADDR` is the host that called `srun`, perhaps a
        // login node.
        let nodes = || variables("SLURM_STEP_NODELIST").filter(|_| self.tasks_here(variables).is_some());
        let host = variables("MASTER_ADDR").or_else(|| nodes().map(|list| slurm::first_node(&list)));
        let host = host.map_or_else(|| "127.0.0.1".into(), |host| host.trim().to_string());
        // The colons of an IPv6 address do not precede a port.
        let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host };
        let port = match (self.number("MASTER_PORT", variables)?, variables("MASTER_PORT")) {
            // torchrun's own store listens at MASTER_PORT.
            (Some(port @ 1..65535), _) => port + 1,
            (Some(_), value) => {
                let (name, value) = ("MASTER_PORT".into(), value.unwrap_or_default());
                return Err(EnvironmentError::NoPort { kind, name, value });
            }
            (None, _) => {
                let step = || (kind == LauncherKind::Slurm).then(|| step(variables)).flatten().map(|(_, id)| id);
                port_of(&self.job(variables).or_else(step).unwrap_or_else(|| starter(self.rank).to_string()))
            }
        };
        Ok(format!("{host}:{port}"))
    }
}

/// The variable with the handle of the launcher's control block.
pub const CONTROL: &str = "TPC_CONTROL";
/// The variable with the address where processes meet.
pub const ADDRESS: &str = "TPC_ADDRESS";

/// A port below the range that systems assign automatically, the same for all processes of a job.
fn port_of(job: &str) -> usize {
    let hash = job.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    20_000 + (hash % 12_000) as usize
}

/// The process of a launched world that this is; `None` if no launcher started it, or only this process. `starter`
/// finds the process that set the rank's variable; all processes on a host share it if nothing else names their job.
///
/// # Errors
/// Variables that are not numbers or contradict each other.
pub fn launched(variables: Variables, starter: Starter) -> Result<Option<Launched>, EnvironmentError> {
    let set = |name: &str| variables(name).filter(|value| !value.trim().is_empty());
    match LAUNCHERS.iter().find(|names| names.has_launched(&set)) {
        Some(names) => names.launched(&set, starter),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Option<Launched>, EnvironmentError> {
        let lookup = |name: &str| variables.iter().find(|v| v.0 == name).map(|v| v.1.to_string());
        launched(&lookup, &|_| 77)
    }

    fn some(variables: &[(&str, &str)]) -> Launched {
        of(variables).unwrap().unwrap()
    }

    fn error(variables: &[(&str, &str)]) -> String {
        of(variables).unwrap_err().to_string()
    }

    #[test]
    fn no_launcher_is_none() {
        assert_eq!(of(&[]).unwrap(), None);
        assert_eq!(of(&[("RANK", "captain"), ("MASTER_PORT", "1")]).unwrap(), None);
    }

    #[test]
    fn every_launcher_is_recognized() {
        let tpc = some(&[
            ("TPC_RANK", "1"),
            ("TPC_WORLD", "4"),
            ("TPC_CONTROL", "5:6:7"),
            ("RANK", "0"),
            ("WORLD_SIZE", "9"),
        ]);
        let expected = Launched {
            kind: LauncherKind::Tpc,
            rank: 1,
            world: 4,
            local_rank: 1,
            local_world: 4,
            address: "5:6:7".into(),
            job: None,
            names: ["TPC_RANK", "TPC_WORLD"],
        };
        assert_eq!(tpc, expected);

        let torchrun = [
            ("RANK", "3"),
            ("WORLD_SIZE", "8"),
            ("LOCAL_RANK", "1"),
            ("LOCAL_WORLD_SIZE", "2"),
            ("MASTER_ADDR", "node1"),
            ("MASTER_PORT", "29500"),
        ];
        let expected = Launched {
            kind: LauncherKind::Torchrun,
            rank: 3,
            world: 8,
            local_rank: 1,
            local_world: 2,
            address: "node1:29501".into(),
            job: None,
            names: ["RANK", "WORLD_SIZE"],
        };
        assert_eq!(some(&torchrun), expected);
        let overridden = [&torchrun[..], &[("TPC_ADDRESS", "here:1")]].concat();
        assert_eq!(some(&overridden).address, "here:1");

        let openmpi = [
            ("OMPI_COMM_WORLD_RANK", "0"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "0"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
            ("PMIX_NAMESPACE", "prterun-host-4711@1"),
        ];
        let found = some(&openmpi);
        assert_eq!((found.kind, found.rank, found.world), (LauncherKind::OpenMpi, 0, 2));
        assert!(found.address.starts_with("127.0.0.1:2") || found.address.starts_with("127.0.0.1:3"), "{found:?}");
        let other = [&openmpi[..4], &[("PMIX_NAMESPACE", "prterun-host-4712@1")]].concat();
        assert_ne!(some(&other).address, found.address);

        let mpich = some(&[("PMI_RANK", "1"), ("PMI_SIZE", "2"), ("MPI_LOCALRANKID", "1"), ("MPI_LOCALNRANKS", "2")]);
        assert_eq!((mpich.kind, mpich.rank, mpich.local_world), (LauncherKind::Mpich, 1, 2));
    }

    #[test]
    fn slurm_counts_inside_a_step_only() {
        let batch = [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4"), ("SLURM_LOCALID", "0"), ("SLURM_JOB_ID", "12")];
        assert_eq!(of(&batch).unwrap(), None);
        let interactive = [&batch[..], &[("SLURM_STEP_ID", "4294967290")]].concat();
        assert_eq!(of(&interactive).unwrap(), None);
        let step = [&batch[..], &[("SLURM_STEP_ID", "0"), ("SLURM_NNODES", "1")]].concat();
        let found = some(&step);
        assert_eq!((found.kind, found.rank, found.world, found.local_world), (LauncherKind::Slurm, 0, 4, 4));
        let two = [&batch[..], &[("SLURM_STEP_ID", "0"), ("SLURM_NNODES", "2")]].concat();
        assert_eq!(some(&two).local_world, 1);
    }

    /// The variables that SLURM 22.05 sets for `srun --nodes 3 --ntasks 5`.
    #[test]
    fn slurm_on_several_nodes_says_how_many_tasks_are_where() {
        let step = |task, node, local| {
            [
                ("SLURM_PROCID", task),
                ("SLURM_NTASKS", "5"),
                ("SLURM_LOCALID", local),
                ("SLURM_NODEID", node),
                ("SLURM_JOB_ID", "10"),
                ("SLURM_STEP_ID", "0"),
                ("SLURM_STEP_NUM_NODES", "3"),
                ("SLURM_STEP_TASKS_PER_NODE", "3,1(x2)"),
                ("SLURM_STEP_NODELIST", "n[1-3]"),
                ("SLURM_LAUNCH_NODE_IPADDR", "192.0.2.9"),
            ]
        };
        let (first, last) = (some(&step("2", "0", "2")), some(&step("4", "2", "0")));
        assert_eq!((first.rank, first.local_rank, first.local_world), (2, 2, 3));
        assert_eq!((last.rank, last.local_rank, last.local_world), (4, 0, 1));
        assert!(first.address == last.address && first.address.starts_with("n1:"), "{first:?} {last:?}");
        let named = [&step("4", "2", "0")[..], &[("MASTER_ADDR", "here"), ("MASTER_PORT", "7")]].concat();
        assert_eq!(some(&named).address, "here:8");
        // `srun --mpi=pmi2` also sets PMI's variables.
        let pmi = some(&[&step("4", "2", "0")[..], &[("PMI_RANK", "4"), ("PMI_SIZE", "5")]].concat());
        assert_eq!((pmi.kind, pmi.rank, pmi.local_world, &*pmi.address), (LauncherKind::Mpich, 4, 1, &*last.address));
    }

    #[test]
    fn contradictions_are_errors_that_name_the_variables() {
        let torchrun = |rank, world| [("RANK", rank), ("WORLD_SIZE", world)];
        assert!(error(&torchrun("4", "4")).contains("RANK=4, which is not a rank of WORLD_SIZE=4"));
        assert!(error(&torchrun("x", "4")).contains("torchrun has RANK=x, which is not a number"));
        assert!(error(&torchrun("0", "-1")).contains("WORLD_SIZE=-1"));
        assert!(error(&torchrun("0", "0")).contains("not a rank of WORLD_SIZE=0"));
        assert!(error(&[("PMI_RANK", "0")]).contains("PMI_RANK but no PMI_SIZE"));
        assert!(error(&[("TPC_RANK", "0"), ("TPC_WORLD", "1")]).contains("no TPC_CONTROL"));
        let local = [("LOCAL_RANK", "2"), ("LOCAL_WORLD_SIZE", "2")];
        assert!(error(&[&torchrun("0", "4")[..], &local].concat()).contains("LOCAL_RANK=2"));
        assert!(error(&[&torchrun("0", "4")[..], &[("MASTER_PORT", "http")]].concat()).contains("MASTER_PORT=http"));
        for port in ["0", "65535", "18446744073709551615"] {
            let told = error(&[&torchrun("0", "4")[..], &[("MASTER_PORT", port)]].concat());
            assert!(told.contains(&format!("MASTER_PORT={port}, which is not a valid port")), "{told}");
        }
    }

    /// Every variable that is read counts as unset if it is empty or blank.
    #[test]
    fn empty_variables_are_unset_ones() {
        let names = [
            "TPC_RANK",
            "TPC_WORLD",
            "TPC_CONTROL",
            "TPC_ADDRESS",
            "RANK",
            "WORLD_SIZE",
            "LOCAL_RANK",
            "LOCAL_WORLD_SIZE",
            "MASTER_ADDR",
            "MASTER_PORT",
            "TORCHELASTIC_RUN_ID",
            "TORCHELASTIC_RESTART_COUNT",
            "OMPI_COMM_WORLD_RANK",
            "OMPI_COMM_WORLD_SIZE",
            "OMPI_COMM_WORLD_LOCAL_RANK",
            "OMPI_COMM_WORLD_LOCAL_SIZE",
            "PMIX_NAMESPACE",
            "OMPI_MCA_ess_base_jobid",
            "OMPI_MCA_orte_ess_jobid",
            "PMI_RANK",
            "PMI_SIZE",
            "PMI_JOBID",
            "MPI_LOCALRANKID",
            "MPI_LOCALNRANKS",
            "SLURM_PROCID",
            "SLURM_STEP_NUM_TASKS",
            "SLURM_NTASKS",
            "SLURM_NPROCS",
            "SLURM_LOCALID",
            "SLURM_NODEID",
            "SLURM_JOB_ID",
            "SLURM_JOBID",
            "SLURM_STEP_ID",
            "SLURM_STEPID",
            "SLURM_STEP_NUM_NODES",
            "SLURM_NNODES",
            "SLURM_STEP_TASKS_PER_NODE",
            "SLURM_STEP_NODELIST",
        ];
        for blank in ["", " "] {
            let all: Vec<(&str, &str)> = names.iter().map(|name| (*name, blank)).collect();
            assert_eq!(of(&all).unwrap(), None);
            // The set variables have the same effect as without the empty ones.
            for set in [
                &[("RANK", "1"), ("WORLD_SIZE", "2")][..],
                &[("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "2")],
                &[("PMI_RANK", "1"), ("PMI_SIZE", "2")],
                &[("SLURM_STEP_ID", "0"), ("SLURM_PROCID", "1"), ("SLURM_NTASKS", "2")],
            ] {
                assert_eq!(some(&[set, &all].concat()), some(set));
            }
        }
        assert_eq!(of(&[("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_PORT", "")]).unwrap(), None);
    }

    #[test]
    fn one_process_is_none() {
        assert_eq!(of(&[("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_PORT", "http")]).unwrap(), None);
        assert_eq!(of(&[("PMI_RANK", "0"), ("PMI_SIZE", "1")]).unwrap(), None);
        let partial = [("SLURM_STEP_ID", "0"), ("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "1")];
        assert_eq!(of(&partial).unwrap(), None);
    }

    #[test]
    fn partial_environments_are_completed_or_named() {
        let step = [("SLURM_STEP_ID", "0"), ("SLURM_PROCID", "1")];
        for number in ["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"] {
            let found = some(&[&step[..], &[(number, "2")]].concat());
            assert_eq!((found.rank, found.world, found.names), (1, 2, ["SLURM_PROCID", number]));
        }
        // The number of the step takes precedence over that of the job.
        let both = [&step[..], &[("SLURM_NTASKS", "8"), ("SLURM_STEP_NUM_TASKS", "2")]].concat();
        assert_eq!(some(&both).world, 2);
        assert!(error(&step).contains("SLURM has SLURM_PROCID but no SLURM_STEP_NUM_TASKS"), "{}", error(&step));
        let old = [("SLURM_STEPID", "0"), ("SLURM_PROCID", "1"), ("SLURM_NPROCS", "2"), ("SLURM_JOBID", "7")];
        assert_eq!(some(&old).job, Some(Job("7.0".into())));
        let odd = [("SLURM_STEP_ID", "x"), ("SLURM_PROCID", "1"), ("SLURM_NTASKS", "2")];
        assert!(error(&odd).contains("SLURM_STEP_ID=x, which is not a number"), "{}", error(&odd));
        assert!(error(&[("OMPI_COMM_WORLD_RANK", "0")]).contains("OMPI_COMM_WORLD_RANK but no OMPI_COMM_WORLD_SIZE"));
        // The number of ranks on this host without the rank on this host.
        for (rank, world, local_world) in [
            ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
            ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
            ("PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS"),
        ] {
            let found = some(&[(rank, "3"), (world, "4"), (local_world, "2")]);
            assert_eq!((found.local_rank, found.local_world), (1, 2));
        }
        // Sizes that overflow must not panic.
        let huge = [("SLURM_STEP_NUM_NODES", "2"), ("SLURM_NODEID", "3")];
        let huge = [&both[..], &huge, &[("SLURM_STEP_TASKS_PER_NODE", "1(x18446744073709551615),1(x5)")]].concat();
        assert_eq!(some(&huge).local_world, 1);
    }

    #[test]
    fn jobs_are_called_as_their_launchers_do() {
        let job = |variables: &[(&str, &str)]| some(variables).job.map(|job| job.to_string());
        let torchrun = [("RANK", "0"), ("WORLD_SIZE", "2")];
        assert_eq!(job(&torchrun), None);
        assert_eq!(job(&[&torchrun[..], &[("TORCHELASTIC_RUN_ID", "none")]].concat()), None);
        let named = [&torchrun[..], &[("TORCHELASTIC_RUN_ID", "a1"), ("TORCHELASTIC_RESTART_COUNT", "1")]].concat();
        assert_eq!(job(&named).as_deref(), Some("a1 attempt 1"));
        let step = [("SLURM_STEP_ID", "3"), ("SLURM_PROCID", "1"), ("SLURM_NTASKS", "2"), ("SLURM_JOB_ID", "12")];
        assert_eq!(job(&step).as_deref(), Some("12.3"));
        let openmpi = [("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "2"), ("PMIX_NAMESPACE", "p@1")];
        assert_eq!(job(&openmpi).as_deref(), Some("p@1"));
        let pmi = [("PMI_RANK", "0"), ("PMI_SIZE", "2"), ("PMI_JOBID", "12.3")];
        assert_eq!(job(&pmi).as_deref(), Some("12.3"));
    }

    #[test]
    fn addresses_of_ipv6_are_put_in_brackets() {
        let at =
            |host| some(&[("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", host), ("MASTER_PORT", " 7 ")]).address;
        assert_eq!([at("::1"), at("[::1]"), at(" here ")], ["[::1]:8", "[::1]:8", "here:8"]);
    }

    #[test]
    fn the_reason_to_wait_names_the_variables_and_a_way_out() {
        let shell = some(&[("SLURM_STEP_ID", "0"), ("SLURM_PROCID", "0"), ("SLURM_NTASKS", "2")]).why();
        assert!(shell.starts_with("SLURM's variables SLURM_PROCID=0 and SLURM_NTASKS=2 make this process one of 2"));
        assert!(
            shell.contains("`unset SLURM_PROCID` runs tpc alone") && shell.contains("srun --ntasks=2 tpc"),
            "{shell}"
        );
        let torchrun = some(&[("RANK", "1"), ("WORLD_SIZE", "2")]).why();
        assert!(torchrun.ends_with("to run it alone, unset RANK"), "{torchrun}");
    }
}
