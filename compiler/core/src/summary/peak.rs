//! What the arena of a rank holds when most of it is in use.

use super::rows::ByModule;
use std::collections::HashSet;
use std::fmt;
use tpc_ir::program::RankProgram;
use tpc_ir::{InputId, InputKind, ModulePath, OutputKind, Phase};
use tpc_passes::lower::{Life, lives};

/// What a piece of the arena holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Content {
    /// An input of the program: a parameter, a state of the optimizer, data of the batch, …
    Input(InputKind),
    /// Gradients of parameters: what the backward pass leaves to the optimizer, or to the caller.
    Gradient,
    /// What the forward pass leaves to a later phase.
    Saved,
    /// What is used in one phase.
    Temporary,
    /// The loss and other results.
    Result,
    /// Nothing: bytes between two pieces.
    Gap,
}

impl Content {
    /// A value that is in use from a step in the first phase to a step in the last one.
    fn between(first: Phase, last: Phase) -> Self {
        match (first, last) {
            (Phase::Forward, Phase::Backward | Phase::Optimizer) => Content::Saved,
            (Phase::Backward, Phase::Optimizer) => Content::Gradient,
            _ => Content::Temporary,
        }
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Content::Input(InputKind::Parameter) => "parameters",
            Content::Input(InputKind::State) => "state",
            Content::Input(InputKind::Data) => "data",
            Content::Input(InputKind::Scalar) => "scalars",
            Content::Input(InputKind::Seed) => "seeds",
            Content::Input(InputKind::Constant) => "constants",
            Content::Gradient => "gradients",
            Content::Saved => "saved values",
            Content::Temporary => "temporaries",
            Content::Result => "results",
            Content::Gap => "gaps",
        })
    }
}

/// The steps during which a buffer has its bytes in the arena.
pub(crate) fn in_use(program: &RankProgram, lives: &[Option<Life>], buffer: usize) -> Option<Life> {
    if program.buffers[buffer].persistent { Some((0, program.steps.len())) } else { lives[buffer] }
}

/// The module that an input belongs to, where these are the parameters of the program.
pub(crate) fn home(id: &InputId, parameters: &HashSet<&ModulePath>) -> ModulePath {
    match id {
        // A state belongs to a parameter or to a module.
        InputId::Parameter(path) | InputId::State { owner: path, .. } => {
            if parameters.contains(path) {
                path.holder()
            } else {
                path.clone()
            }
        }
        _ => ModulePath::default(),
    }
}

/// The module and the content of every buffer that is touched.
pub(crate) fn contents(program: &RankProgram, lives: &[Option<Life>]) -> Vec<Option<(ModulePath, Content)>> {
    let of_life = |&(first, last): &Life| {
        let step = program.steps.get(first)?;
        let last = program.steps.get(last).unwrap_or(step);
        Some((step.module.clone(), Content::between(step.phase, last.phase)))
    };
    let mut contents: Vec<_> = lives.iter().map(|life| life.as_ref().and_then(of_life)).collect();
    let inputs: Vec<InputId> = program.inputs.iter().map(|input| input.id()).collect();
    let parameters: HashSet<&ModulePath> = inputs.iter().filter_map(InputId::parameter).collect();
    let of_input = |id: &InputId| (home(id, &parameters), Content::Input(id.kind()));
    for output in &program.outputs {
        contents[output.binding.view.buffer.0 as usize] = Some(match &output.kind {
            OutputKind::Update(id) => of_input(id),
            OutputKind::Gradient(path) => (path.holder(), Content::Gradient),
            OutputKind::Result(_) | OutputKind::Loss => (ModulePath::default(), Content::Result),
        });
    }
    for (input, id) in program.inputs.iter().zip(&inputs) {
        contents[input.binding.view.buffer.0 as usize] = Some(of_input(id));
    }
    contents
}

/// The bytes of the arena by module and content at the step during which most of them are in use. They add up to the size
/// of the arena.
pub(super) fn peak(program: &RankProgram) -> ByModule<Content, usize> {
    let lives = lives(program);
    let in_use = |buffer: usize| in_use(program, &lives, buffer);
    let mut change = vec![0isize; program.steps.len() + 2];
    for (b, buffer) in program.buffers.iter().enumerate() {
        let Some((first, last)) = in_use(b) else { continue };
        change[first] += buffer.bytes as isize;
        change[last + 1] -= buffer.bytes as isize;
    }
    let (mut most, mut now, mut at) = (0, 0, 0);
    for (step, change) in change.into_iter().enumerate() {
        now += change;
        if now > most {
            (most, at) = (now, step);
        }
    }
    let mut held: ByModule<Content, usize> = ByModule::new();
    for (b, content) in contents(program, &lives).into_iter().enumerate() {
        let bytes = program.buffers[b].bytes;
        if let Some(key) = content
            && bytes > 0
            && in_use(b).is_some_and(|(first, last)| (first..=last).contains(&at))
        {
            *held.entry(key).or_default() += bytes;
        }
    }
    let gap = program.arena_bytes - most as usize;
    if gap > 0 {
        held.insert((ModulePath::default(), Content::Gap), gap);
    }
    held
}
