//! Launchers' environments, as lines of `NAME=value`. An accepted environment is a rank of its world.

use super::{Dice, Parser, check_text, once};
use std::collections::HashMap;
use tpc_runtime::launch::environment::launched;

pub(super) const ENVIRONMENT: Parser = Parser {
    name: "environment",
    corpus: || VALID.iter().map(|text| text.as_bytes().to_vec()).collect(),
    tokens: TOKENS,
    generate,
    parse,
    base: 64 << 10,
    per_byte: 500,
    repeats: once,
};

const VALID: [&str; 7] = [
    "TPC_RANK=1\nTPC_WORLD=4\nTPC_CONTROL=5:6:7\n",
    "RANK=3\nWORLD_SIZE=8\nLOCAL_RANK=1\nLOCAL_WORLD_SIZE=2\nMASTER_ADDR=node1\nMASTER_PORT=29500\n",
    "OMPI_COMM_WORLD_RANK=0\nOMPI_COMM_WORLD_SIZE=2\nOMPI_COMM_WORLD_LOCAL_RANK=0\nOMPI_COMM_WORLD_LOCAL_SIZE=2\nPMIX_NAMESPACE=prterun-host-4711@1\n",
    "PMI_RANK=1\nPMI_SIZE=2\nMPI_LOCALRANKID=1\nMPI_LOCALNRANKS=2\n",
    "SLURM_PROCID=3\nSLURM_NTASKS=5\nSLURM_LOCALID=0\nSLURM_NODEID=2\nSLURM_STEP_ID=0\nSLURM_JOB_ID=12\nSLURM_NNODES=3\nSLURM_STEP_NUM_NODES=3\nSLURM_STEP_TASKS_PER_NODE=2(x2),1\nSLURM_STEP_NODELIST=n[01-03]\n",
    "RANK=0\nWORLD_SIZE=1\nTPC_ADDRESS=here:1\n",
    "PATH=/bin\n",
];

const TOKENS: &[&str] = &[
    "\n",
    "=",
    "TPC_RANK=",
    "TPC_WORLD=",
    "TPC_CONTROL=",
    "TPC_ADDRESS=",
    "RANK=",
    "WORLD_SIZE=",
    "LOCAL_RANK=",
    "LOCAL_WORLD_SIZE=",
    "MASTER_ADDR=",
    "MASTER_PORT=",
    "65535",
    "OMPI_COMM_WORLD_RANK=",
    "OMPI_COMM_WORLD_SIZE=",
    "OMPI_COMM_WORLD_LOCAL_RANK=",
    "OMPI_COMM_WORLD_LOCAL_SIZE=",
    "PMIX_NAMESPACE=",
    "PMI_RANK=",
    "PMI_SIZE=",
    "MPI_LOCALRANKID=",
    "MPI_LOCALNRANKS=",
    "SLURM_PROCID=",
    "SLURM_NTASKS=",
    "SLURM_LOCALID=",
    "SLURM_NODEID=",
    "SLURM_STEP_ID=",
    "SLURM_JOB_ID=",
    "SLURM_NNODES=",
    "SLURM_STEP_NUM_NODES=",
    "SLURM_STEP_TASKS_PER_NODE=",
    "SLURM_STEP_NODELIST=",
    "2(x2),1",
    "(x18446744073709551615)",
    "n[01-03]",
    "[",
    "]",
    ",",
    "-",
    " ",
];

fn generate(dice: &mut Dice) -> Vec<u8> {
    let mut text = String::new();
    for name in TOKENS.iter().filter(|token| token.len() > 1 && token.ends_with('=')) {
        if dice.one_in(2) {
            let value = dice.pick(&[
                "",
                "0",
                "1",
                "2",
                "3",
                " 1 ",
                "-1",
                "x",
                "18446744073709551615",
                "2(x2),1",
                "1(x18446744073709551615),1",
                "n[1-2],m",
                "host",
                "4294967290",
            ]);
            text.push_str(&format!("{name}{value}\n"));
        }
    }
    text.into_bytes()
}

fn parse(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else { return false };
    let variables: HashMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
    match launched(&|name| variables.get(name).map(|value| value.to_string()), &|_| 77) {
        Ok(None) => true,
        Ok(Some(found)) => {
            assert!(found.rank < found.world, "{found:?}");
            true
        }
        Err(error) => {
            check_text(&error);
            false
        }
    }
}
