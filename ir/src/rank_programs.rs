//! The programs of the ranks of a mesh, of which a process holds those that it needs.
//!
//! A process executes the programs of its own ranks. Of a rank of another process it needs to know only which box of each
//! input and output the rank holds, in order to read and write whole tensors. The types of the placed program say that,
//! so no process lowers the ranks of another one.
//!
//! Before: 4,096 programs on each of 4,096 processes. After: one program on each, and the types of its inputs and outputs.

use crate::program::{Binding, RankProgram};
use crate::{Mesh, Type};
use rustc_hash::FxHashSet;
use std::ops::{Deref, Index, Range};

/// An input or an output of a program, by its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// An input.
    Input(usize),
    /// An output.
    Output(usize),
}

/// The box of a tensor that a rank holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HeldBox {
    /// The first index in every dimension of the whole tensor.
    pub start: Vec<usize>,
    /// The shape.
    pub shape: Vec<usize>,
}

impl HeldBox {
    /// The number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// The programs of consecutive ranks of a mesh. It dereferences to these programs in the order of their ranks, where positions
/// begin at 0; an index of `RankPrograms` itself is a rank.
#[derive(Clone, Debug, PartialEq)]
pub struct RankPrograms {
    programs: Vec<RankProgram>,
    /// What is known of the other ranks; `None` if there are none.
    placed: Option<PlacedEnds>,
}

/// What all ranks of a placed program have in common.
#[derive(Clone, Debug, PartialEq)]
pub struct PlacedEnds {
    /// The types of the inputs, in the order of the rank programs' inputs.
    pub inputs: Vec<Type>,
    /// The types of the outputs, in order.
    pub outputs: Vec<Type>,
    /// A digest of everything that the rank programs follow from. Equal ones make rank programs that fit together.
    pub source: u64,
}

impl PlacedEnds {
    fn ty(&self, end: End) -> &Type {
        match end {
            End::Input(input) => &self.inputs[input],
            End::Output(output) => &self.outputs[output],
        }
    }
}

impl RankPrograms {
    /// The programs of some consecutive ranks of a placed program.
    pub fn of_some(programs: Vec<RankProgram>, placed: PlacedEnds) -> Self {
        RankPrograms { programs, placed: Some(placed) }
    }

    /// The mesh; that of a single rank if there are no programs.
    pub fn mesh(&self) -> Mesh {
        self.programs.first().map_or_else(Mesh::single, |program| program.mesh.clone())
    }

    /// The ranks whose programs these are.
    pub fn held(&self) -> Range<usize> {
        let first = self.programs.first().map_or(0, |program| program.rank);
        first..first + self.programs.len()
    }

    /// Whether these are the programs of all ranks.
    pub fn is_complete(&self) -> bool {
        self.placed.is_none()
    }

    /// The number of ranks of the mesh.
    pub fn ranks(&self) -> usize {
        match self.placed {
            Some(_) => self.programs.first().map_or(0, |program| program.mesh.ranks()),
            None => self.programs.len(),
        }
    }

    /// The program of a rank; `None` if it is not one of these.
    pub fn get(&self, rank: usize) -> Option<&RankProgram> {
        self.programs.get(rank.checked_sub(self.held().start)?)
    }

    /// The programs of some of the held ranks, in order.
    ///
    /// # Panics
    /// If one of them is not held.
    pub fn of_ranks(&self, ranks: Range<usize>) -> &[RankProgram] {
        let first = self.held().start;
        &self.programs[ranks.start - first..ranks.end - first]
    }

    /// The digest of everything that the programs follow from; `None` if these are the programs of all ranks, which say
    /// it themselves.
    pub fn source(&self) -> Option<u64> {
        self.placed.as_ref().map(|placed| placed.source)
    }

    /// The box that any rank of the mesh holds of an input or an output.
    ///
    /// # Panics
    /// If the programs have no such input or output.
    pub fn held_box(&self, end: End, rank: usize) -> HeldBox {
        if let Some(program) = self.get(rank) {
            let Binding { view, start, .. } = program.binding(end);
            return HeldBox { start: start.clone(), shape: view.shape.clone() };
        }
        let Some(placed) = &self.placed else { panic!("there is no rank {rank}") };
        let mesh = &self.programs[0].mesh;
        let chunks = placed.ty(end).local(mesh, &mesh.coords(rank));
        HeldBox {
            start: chunks.iter().map(|chunk| chunk.offset).collect(),
            shape: chunks.iter().map(|chunk| chunk.len).collect(),
        }
    }

    /// The distinct boxes that ranks hold of an input or an output, each with the first rank that holds it, in the order of
    /// these ranks. A single one means that every rank holds the same.
    ///
    /// # Panics
    /// If the programs have no such input or output.
    pub fn boxes(&self, end: End) -> Vec<(usize, HeldBox)> {
        let is_replicated = self.placed.as_ref().is_some_and(|placed| placed.ty(end).sharding.is_replicated());
        let ranks = if is_replicated { 1 } else { self.ranks() };
        let mut seen: FxHashSet<HeldBox> = FxHashSet::default();
        let held = (0..ranks).map(|rank| (rank, self.held_box(end, rank)));
        held.filter(|(_, held)| seen.insert(held.clone())).collect()
    }

    /// Gives all programs of every rank the largest of their arenas.
    ///
    /// # Panics
    /// If the programs are of different ranks.
    pub fn share_arenas(all: &mut [&mut RankPrograms]) {
        let Some(held) = all.first().map(|programs| programs.held()) else { return };
        assert!(all.iter().all(|programs| programs.held() == held), "programs that share arenas are of the same ranks");
        for at in 0..held.len() {
            let largest = all.iter().map(|ranks| ranks.programs[at].arena_bytes).max().unwrap_or(0);
            all.iter_mut().for_each(|ranks| ranks.programs[at].arena_bytes = largest);
        }
    }

    /// These programs, in the order of their ranks.
    pub fn into_vec(self) -> Vec<RankProgram> {
        self.programs
    }
}

impl From<Vec<RankProgram>> for RankPrograms {
    /// The programs of all ranks of a mesh.
    fn from(programs: Vec<RankProgram>) -> Self {
        RankPrograms { programs, placed: None }
    }
}

impl Deref for RankPrograms {
    type Target = [RankProgram];

    fn deref(&self) -> &[RankProgram] {
        &self.programs
    }
}

impl Index<usize> for RankPrograms {
    type Output = RankProgram;

    /// The program of a rank.
    fn index(&self, rank: usize) -> &RankProgram {
        match self.get(rank) {
            Some(program) => program,
            None => panic!("the program of rank {rank} is not one of those of ranks {:?}", self.held()),
        }
    }
}

impl<'a> IntoIterator for &'a RankPrograms {
    type Item = &'a RankProgram;
    type IntoIter = std::slice::Iter<'a, RankProgram>;

    fn into_iter(self) -> Self::IntoIter {
        self.programs.iter()
    }
}
