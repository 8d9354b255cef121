//! What a session gets before its first step: room for its arenas, constants, values, seeds.

use crate::data;
use crate::error::Error;
use crate::import::seed;
use crate::memory;
use burn::tensor::TensorData;
use std::collections::HashMap;
use tpc_ir::InputKind;
use tpc_ir::program::{InputBinding, RankProgram, RankPrograms};
use tpc_runtime::RuntimeError;
use tpc_runtime::session::{Backend, LaunchOptions, Session};

/// An error if the arenas of this host's ranks exceed the available memory plus the memory that they already have. A
/// device has separate memory.
pub(crate) fn check_memory(
    programs: &RankPrograms,
    options: &LaunchOptions,
    has: impl Fn(usize) -> usize,
) -> Result<(), Error> {
    let own = options.processes.as_ref().and_then(|processes| processes.local(programs.ranks()).ok());
    let on_host = options.processes.as_ref().map_or(1, |processes| processes.on_host().1);
    // A rank of this process without a program is an error of the launch.
    let here: Vec<&RankProgram> = own.unwrap_or(programs.held()).filter_map(|rank| programs.get(rank)).collect();
    let own: u128 = here.iter().map(|rank| rank.arena_bytes.saturating_sub(has(rank.rank)) as u128).sum();
    // Other processes have other ranks, whose arenas have the same size except for uneven shards.
    let needed = own * on_host as u128;
    match memory::available() {
        Some(available) if options.backend == Backend::Cpu && needed > available => {
            Err(Error::Memory { ranks: here.len() * on_host, needed, available })
        }
        _ => Ok(()),
    }
}

/// Writes all inputs of a kind that have values and were not written before.
pub(crate) fn feed(
    session: &mut Session,
    kind: InputKind,
    values: &HashMap<String, TensorData>,
) -> Result<(), RuntimeError> {
    let inputs = session.interface().inputs.iter().filter(|i| i.kind == kind && !session.is_written(*i));
    let inputs: Vec<_> = inputs.map(|i| (i.name.clone(), i.binding.view.dtype)).collect();
    for (name, dtype) in inputs {
        if let Some(value) = values.get(&name) {
            session.write_bytes((kind, &*name), &data::to_bytes(value, dtype))?;
        }
    }
    Ok(())
}

/// Writes the seed of a program that draws random elements.
pub(crate) fn write_seed(session: &mut Session, bytes: &[u8]) -> Result<(), RuntimeError> {
    let seed = seed();
    // This runs in every step, so it does not read the names of the other inputs.
    let is_seed = |input: &InputBinding| input.kind == InputKind::Seed && input.id() == seed;
    if session.interface().inputs.iter().any(is_seed) {
        session.write_bytes((InputKind::Seed, &*seed.to_string()), bytes)?;
    }
    Ok(())
}

/// The value of the [`seed`] input at a step: different for every step of every run.
pub(crate) fn seed_bytes(seed: u64, step: u64) -> [u8; 8] {
    seed.wrapping_mul(1 << 20).wrapping_add(step).to_ne_bytes()
}
