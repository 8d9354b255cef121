//! Compiling, loading and running the programs that generate text.

use super::error::GenerateError;
use super::program::{FIRST, LOGITS, POSITIONS, Room, SLOTS, TOKENS, capture};
use super::prompts::{Placed, Run, filled};
use super::sampling::{Sampling, choose};
use crate::error::Error;
use crate::feed::{check_memory, feed};
use crate::models::{ModelConfig, ModelDir};
use crate::pretrained::{load_weights, names};
use crate::program::{CompileOptions, compile_inference_in};
use crate::shared_session::{self, SessionPlacements, SharedSession, own_ranks};
use crate::target;
use crate::together::all_lowered;
use burn::tensor::TensorData;
use std::collections::HashMap;
use tpc_ir::{InputKind, Mesh, OutputKind};
use tpc_passes::options::Held;
use tpc_passes::styles::Plan;
use tpc_runtime::session::LaunchOptions;
use tpc_runtime::{ProgramId, RuntimeError, Session};

/// The sizes that programs are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Number of sequences that are generated at a time.
    pub batch: usize,
    /// Number of tokens of the longest prompt.
    pub prompt: usize,
    /// Maximum number of new tokens per prompt.
    pub new_tokens: usize,
}

/// Maximum number of tokens of a prompt that are read at once.
const CHUNK: usize = 64;
/// Minimum number of slots that a program for single tokens sees; each further program sees twice as many.
const SEEN: usize = 128;

impl Limits {
    fn chunk(&self) -> usize {
        self.prompt.clamp(1, CHUNK)
    }

    fn room(&self) -> Room {
        // The last generated token is never read.
        Room { batch: self.batch, slots: filled(self.prompt, self.chunk()) + self.new_tokens.saturating_sub(1) }
    }
}

/// A request to generate text.
#[derive(Clone, Debug, Default)]
pub struct Generate {
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Maximum number of new tokens per prompt; must not exceed the limit that the programs are compiled for.
    pub new_tokens: usize,
    /// Tokens that end a sequence and are included in it.
    pub ends: Vec<i64>,
}

/// A token that was just chosen.
#[derive(Clone, Copy, Debug)]
pub struct Chosen<'a> {
    /// The position of its prompt.
    pub prompt: usize,
    /// The token.
    pub token: i64,
    /// The logits that it was chosen from, one for each token of the vocabulary.
    pub logits: &'a [f64],
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It has as many new tokens as requested.
    Length,
    /// It contains a token that ends a sequence.
    End,
    /// The listener stopped it.
    Stopped,
}

/// The text generated from one prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// The new tokens.
    pub tokens: Vec<i64>,
    /// Why it ended.
    pub why: Why,
}

/// The programs that generate text, with their weights and cache on the ranks.
///
/// With several processes, each has a generator, and all make the same calls in the same order.
pub struct Generator {
    session: Session,
    config: ModelConfig,
    mesh: Mesh,
    plan: Plan,
    options: CompileOptions,
    launch: LaunchOptions,
    limits: Limits,
    placements: SessionPlacements,
    constants: HashMap<String, TensorData>,
    prefill: ProgramId,
    /// Programs that read one token of each sequence, with the number of slots that they see.
    decode: Vec<(usize, ProgramId)>,
}

impl Generator {
    /// Compiles a model for a mesh and a plan, and starts its ranks. With bf16 precision, weights and cache are stored
    /// in bf16. The weights have to be loaded before the first run, by
    /// [`load_weights`](crate::pretrained::load_weights) with [`Generator::session`].
    ///
    /// # Errors
    /// A model that does not generate, a plan that does not fit, sizes that exceed the memory, a CPU target on CUDA.
    pub fn launch(
        config: &ModelConfig,
        mesh: &Mesh,
        plan: &Plan,
        options: &CompileOptions,
        launch: LaunchOptions,
        limits: Limits,
    ) -> Result<Self, Error> {
        check(config, &limits)?;
        target::check(&options.target, launch.backend)?;
        let mut options = options.clone();
        if let Some(precision) = &mut options.step.precision {
            precision.held = Held::Compute;
        }
        let room = limits.room();
        let names = names(config);
        let rename = |path: &str| names.get(path).cloned().unwrap_or_else(|| path.to_string());
        let captured = capture(config, room, limits.chunk(), room.slots)?;
        let session = SharedSession { ranks: own_ranks(&launch, mesh), ..SharedSession::default() };
        let program = compile_inference_in(&captured, mesh, plan, &options, &rename, &session);
        let program = all_lowered(&launch, program)?;
        let placements = SessionPlacements::of(&program.stages.placed);
        let ranks = program.stages.ranks;
        check_memory(&ranks, &launch, |_| 0)?;
        let mut session = Session::launch(ranks, launch.clone())?;
        feed(&mut session, InputKind::Constant, &program.constants)?;
        clear(&mut session)?;
        let prefill = session.selected();
        Ok(Generator {
            session,
            config: config.clone(),
            mesh: mesh.clone(),
            plan: plan.clone(),
            options,
            launch,
            limits,
            placements,
            constants: program.constants,
            prefill,
            decode: Vec::new(),
        })
    }

    /// [`Generator::launch`] on threads of this process, with the weights of a directory.
    ///
    /// # Errors
    /// The errors of [`Generator::launch`]; a tensor that cannot be read.
    pub fn pretrained(dir: &ModelDir, mesh: &Mesh, plan: &Plan, limits: Limits) -> Result<Self, Error> {
        let launch = LaunchOptions::default();
        let options = CompileOptions::for_backend(launch.backend);
        let mut generator = Self::launch(&dir.config, mesh, plan, &options, launch, limits)?;
        load_weights(generator.session()?, &dir.weight_map(), &dir.weights)?;
        Ok(generator)
    }

    /// The ranks' session, with the program selected that reads prompts.
    ///
    /// # Errors
    /// A device that cannot load that program.
    pub fn session(&mut self) -> Result<&mut Session, Error> {
        self.session.select(self.prefill)?;
        Ok(&mut self.session)
    }

    /// The ranks' session, with the program selected that ran last.
    pub fn latest(&self) -> &Session {
        &self.session
    }

    /// The sizes that the programs are compiled for.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Generates from prompts, all at the same time. `listen` receives every new token as soon as it is chosen, and
    /// returns whether to continue the sequence.
    ///
    /// # Errors
    /// A prompt that does not fit ([`GenerateError`]); a rank that fails.
    pub fn generate(
        &mut self,
        prompts: &[Vec<i64>],
        asked: &Generate,
        listen: &mut dyn FnMut(Chosen<'_>) -> bool,
    ) -> Result<Vec<Generated>, Error> {
        self.check_prompts(prompts)?;
        let new_tokens = asked.new_tokens.min(self.limits.new_tokens);
        let mut texts: Vec<Vec<i64>> = prompts.to_vec();
        let mut ended: Vec<Option<Why>> = vec![(new_tokens == 0).then_some(Why::Length); prompts.len()];
        if new_tokens == 0 {
            return Ok(finished(prompts, texts, &ended));
        }
        let mut sequences: Vec<&[i64]> = prompts.iter().map(Vec::as_slice).collect();
        sequences.resize(self.limits.batch, &[]);
        let (mut placed, runs) = Placed::read(&sequences, self.limits.chunk());
        self.session.select(self.prefill)?;
        for run in &runs {
            self.run(run)?;
        }
        for count in 1.. {
            let logits = self.logits()?;
            let vocabulary = logits.len() / self.limits.batch;
            let mut chosen = vec![0; self.limits.batch];
            for (at, text) in texts.iter_mut().enumerate() {
                if ended[at].is_some() {
                    continue;
                }
                let row = &logits[at * vocabulary..][..vocabulary];
                if row.iter().any(|x| x.is_nan()) {
                    return Err(GenerateError::NotFinite { sequence: at, tokens: text.len() }.into());
                }
                let token = choose(row, text, &asked.sampling, at as u64, text.len() as u64);
                text.push(token);
                chosen[at] = token;
                let goes_on = listen(Chosen { prompt: at, token, logits: row });
                ended[at] = match () {
                    () if asked.ends.contains(&token) => Some(Why::End),
                    () if !goes_on => Some(Why::Stopped),
                    () => (count == new_tokens).then_some(Why::Length),
                };
            }
            if ended.iter().all(Option::is_some) {
                break;
            }
            let run = placed.next(chosen);
            self.select_decode(&run)?;
            self.run(&run)?;
        }
        Ok(finished(prompts, texts, &ended))
    }

    /// Writes the inputs of a run into the selected program, and runs it.
    fn run(&mut self, run: &Run) -> Result<(), Error> {
        let session = &mut self.session;
        for (name, values) in
            [(TOKENS, &run.tokens), (POSITIONS, &run.positions), (SLOTS, &run.slots), (FIRST, &run.first)]
        {
            // A model whose positions are relative to its keys does not read any.
            if session.interface().inputs.iter().any(|input| input.kind == InputKind::Data && input.name == name) {
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
                session.write_bytes((InputKind::Data, name), &bytes)?;
            }
        }
        session.step()?;
        Ok(())
    }

    fn logits(&self) -> Result<Vec<f64>, Error> {
        Ok(self.session.read_f64(&OutputKind::Result(LOGITS.into()))?)
    }

    /// Selects the program for a run on one token of each sequence. Each program sees twice as many slots as the
    /// previous one, so that short sequences do not read a long cache. Programs are compiled when they are first
    /// needed.
    fn select_decode(&mut self, run: &Run) -> Result<(), Error> {
        let room = self.limits.room();
        let needed = run.slots.last().map_or(1, |slot| *slot as usize + 1);
        let seen = needed.next_power_of_two().max(SEEN).min(room.slots);
        let known = self.decode.iter().find(|(slots, _)| *slots == seen);
        if let Some((_, program)) = known {
            return Ok(self.session.select(*program)?);
        }
        let names = names(&self.config);
        let rename = |path: &str| names.get(path).cloned().unwrap_or_else(|| path.to_string());
        let captured = capture(&self.config, room, 1, seen)?;
        let session = SharedSession {
            placements: Some(&self.placements),
            constants: self.constants.clone(),
            programs: self.session.programs().collect(),
            aim: None,
            ranks: own_ranks(&self.launch, &self.mesh),
        };
        let program = compile_inference_in(&captured, &self.mesh, &self.plan, &self.options, &rename, &session);
        let program = all_lowered(&self.launch, program)?;
        let id = shared_session::add(&mut self.session, &self.launch, program.stages.ranks, &program.constants)?;
        self.constants = program.constants;
        self.decode.push((seen, id));
        Ok(())
    }

    fn check_prompts(&self, prompts: &[Vec<i64>]) -> Result<(), GenerateError> {
        let Limits { batch, prompt: most, .. } = self.limits;
        if prompts.len() > batch {
            return Err(GenerateError::TooMany { prompts: prompts.len(), batch });
        }
        let vocabulary = self.config.vocab_size();
        for (prompt, tokens) in prompts.iter().enumerate() {
            if tokens.is_empty() {
                return Err(GenerateError::NoTokens { prompt });
            }
            if tokens.len() > most {
                return Err(GenerateError::TooLong { prompt, tokens: tokens.len(), most });
            }
            let outside = |token: &i64| !usize::try_from(*token).is_ok_and(|token| token < vocabulary);
            if let Some(position) = tokens.iter().position(outside) {
                return Err(GenerateError::Token { prompt, token: tokens[position], position, vocabulary });
            }
        }
        Ok(())
    }
}

/// The new tokens of each sequence.
fn finished(prompts: &[Vec<i64>], texts: Vec<Vec<i64>>, ended: &[Option<Why>]) -> Vec<Generated> {
    let of = |((prompt, mut text), why): ((&Vec<i64>, Vec<i64>), &Option<Why>)| Generated {
        tokens: text.split_off(prompt.len()),
        why: why.unwrap_or(Why::Length),
    };
    prompts.iter().zip(texts).zip(ended).map(of).collect()
}

/// Checks that a model can generate within these limits.
fn check(config: &ModelConfig, limits: &Limits) -> Result<(), GenerateError> {
    let model_type = config.model_type();
    if !config.is_causal() {
        return Err(GenerateError::NotCausal { model_type });
    }
    if config.caches().is_empty() {
        return Err(GenerateError::NoCache { model_type });
    }
    let Limits { batch, prompt, new_tokens } = *limits;
    if batch == 0 || new_tokens == 0 {
        return Err(GenerateError::Empty { batch, new_tokens });
    }
    // The last generated token has no position, because it is never read.
    let (needed, positions) = (prompt + new_tokens - 1, config.max_positions());
    if config.learns_positions() && needed > positions {
        return Err(GenerateError::Positions { prompt, new_tokens, needed, model_type, positions });
    }
    Ok(())
}

/// Fills the cache with zeros. Slots outside of a sequence are masked, but must not contain NaN.
fn clear(session: &mut Session) -> Result<(), RuntimeError> {
    let inputs = session.interface().inputs.iter().enumerate();
    let states: Vec<usize> = inputs.filter(|(_, i)| i.kind == InputKind::State).map(|(at, _)| at).collect();
    session.fill_ranks(&|rank| {
        states.iter().try_for_each(|state| {
            rank.write(*state, |_, to| {
                to.fill(0);
                Ok::<_, RuntimeError>(())
            })
        })
    })
}
