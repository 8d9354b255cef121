//! Writing inputs and reading outputs, between steps.
//!
//! Writing takes the whole tensor, or a loader, on every process, and fills the boxes of its own ranks. Reading returns
//! the same bytes on every process: elements of its own ranks come from their arenas, the others come from the other
//! processes.

use super::Session;
use super::bindings::output_name;
use super::name::InputName;
use super::rank::Engine;
use crate::boxes::{BoxRequest, Runs, meet_all};
use crate::digest::Digest;
use crate::element;
use crate::error::RuntimeError;
use std::borrow::Cow;
use std::fmt::Display;
use std::ops::Range;
use tpc_ir::program::{Binding, End, RankProgram};
use tpc_ir::{InputKind, OutputKind};

/// Fills the dense bytes of a box.
pub type BoxReader<'a> = dyn FnMut(&BoxRequest, &mut [u8]) -> Result<(), String> + 'a;
/// Takes the dense bytes of a box.
pub type BoxWriter<'a> = dyn FnMut(&BoxRequest, &[u8]) -> Result<(), String> + 'a;

impl Session {
    fn input(&self, name: InputName<'_>) -> Result<usize, RuntimeError> {
        name.find(&self.interface().inputs)
    }

    fn output(&self, kind: &OutputKind) -> Result<usize, RuntimeError> {
        let outputs = &self.interface().outputs;
        outputs.iter().position(|o| o.kind == *kind).ok_or_else(|| RuntimeError::Unknown {
            what: "output",
            name: output_name(kind),
            known: outputs.iter().map(|o| output_name(&o.kind)).collect(),
        })
    }

    /// The bytes of a binding in the arena of a rank of this process. Between steps only the session uses the arenas.
    fn bytes(&self, rank: usize, binding: &Binding) -> Result<(*mut u8, usize), RuntimeError> {
        let elsewhere = || RuntimeError::Launch(format!("rank {rank} is run by another process, or on a device"));
        let arena = self.local(rank).and_then(|(loaded, _)| loaded.arena.as_ref()).ok_or_else(elsewhere)?;
        let place = arena.resolve_view(&self.program(rank).buffers, &binding.view);
        let place = place.map_err(RuntimeError::Launch)?;
        Ok((place.base, binding.view.elements() * binding.view.dtype.bytes()))
    }

    /// Calls `fill` to write the dense bytes of a rank's box of an input; the rank belongs to this process.
    ///
    /// # Safety
    /// Nothing else may read or write the box during the call: the session is borrowed mutably, and concurrent calls
    /// must be for different boxes.
    unsafe fn fill<E: From<RuntimeError>>(
        &self,
        rank: usize,
        input: usize,
        fill: impl FnOnce(&BoxRequest, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let binding = &self.program(rank).inputs[input].binding;
        let request = BoxRequest::of(binding);
        match &self.shared().engine {
            Engine::Threads(_) => {
                let (base, len) = self.bytes(rank, binding)?;
                // SAFETY: the view was checked to be in the arena, it is dense (checked when loading), and the ranks
                // are between steps, which only a mutable borrow of the session can change. Ranks of other processes
                // access it in collectives only, which end before a step does. Nothing else uses the box, as the caller
                // promises.
                fill(&request, unsafe { std::slice::from_raw_parts_mut(base, len) })?;
            }
            Engine::Device(device) => {
                let mut bytes = vec![0; binding.view.elements() * binding.view.dtype.bytes()];
                fill(&request, &mut bytes)?;
                device.write(rank, binding, &bytes)?;
            }
        }
        if let Some((loaded, _)) = self.local(rank) {
            loaded.written[input].set();
        }
        Ok(())
    }

    /// Some of the dense bytes of a binding of a rank of this process.
    fn part_of(&self, rank: usize, binding: &Binding, bytes: Range<usize>) -> Result<Cow<'_, [u8]>, RuntimeError> {
        if let Engine::Device(device) = &self.shared().engine {
            return device.read(rank, binding, bytes).map(Cow::Owned);
        }
        let (base, len) = self.bytes(rank, binding)?;
        // SAFETY: as in `Session::fill`; nothing writes while `&self` is borrowed.
        Ok(Cow::Borrowed(&unsafe { std::slice::from_raw_parts(base, len) }[bytes]))
    }

    /// All dense bytes of a binding, and their box.
    pub(crate) fn box_of(&self, rank: usize, binding: &Binding) -> Result<(BoxRequest, Cow<'_, [u8]>), RuntimeError> {
        let len = binding.view.elements() * binding.view.dtype.bytes();
        Ok((BoxRequest::of(binding), self.part_of(rank, binding, 0..len)?))
    }

    /// Passes on what a rank of this process holds of the wanted elements: dense bytes, and the position of their first
    /// element among the wanted ones.
    fn show_held(
        &self,
        rank: usize,
        binding: &Binding,
        wanted: &Runs,
        show: &mut dyn FnMut(&[u8], usize),
    ) -> Result<(), RuntimeError> {
        let size = binding.view.dtype.bytes();
        let request = BoxRequest::of(binding);
        // Transfers only the requested part of a box on a device.
        let mut span: Option<(usize, usize)> = None;
        meet_all(request.element_runs(), wanted.clone(), &mut |a, _, n| {
            let (first, end) = span.unwrap_or((a, a + n));
            span = Some((first.min(a), end.max(a + n)));
        });
        let Some((first, end)) = span else { return Ok(()) };
        let from = self.part_of(rank, binding, first * size..end * size)?;
        meet_all(request.element_runs(), wanted.clone(), &mut |a, b, n| {
            show(&from[(a - first) * size..(a - first + n) * size], b);
        });
        Ok(())
    }

    /// Writes an input from the dense bytes of the whole tensor, in its element type and native byte order; every rank
    /// gets its box.
    ///
    /// # Errors
    /// No such input, or the wrong number of bytes.
    pub fn write_bytes<'a>(&mut self, name: impl Into<InputName<'a>>, data: &[u8]) -> Result<(), RuntimeError> {
        let name = name.into();
        let (input, name) = (self.input(name)?, name.name);
        let binding = &self.interface().inputs[input].binding;
        let dtype = binding.view.dtype;
        let expected = binding.global.iter().product::<usize>() * dtype.bytes();
        if data.len() != expected {
            let shape = format!("{dtype}{:?}", binding.layout);
            return Err(RuntimeError::Size { name: name.into(), expected, given: data.len(), shape });
        }
        // Scalars and seeds follow from values that the caller declares to be equal.
        let of_step = matches!(self.interface().inputs[input].kind, InputKind::Scalar | InputKind::Seed);
        if self.processes().count() > 1 && !of_step {
            self.must_agree(&format!("the digest of input `{name}`"), Digest::of(data));
        }
        for rank in self.local_ranks() {
            let copy = |request: &BoxRequest, to: &mut [u8]| {
                request.runs(&mut |from, at, n| to[at..at + n].copy_from_slice(&data[from..from + n]));
                Ok::<(), RuntimeError>(())
            };
            // SAFETY: the session is borrowed mutably, and this is its only box.
            unsafe { self.fill(rank, input, copy) }?;
        }
        Ok(())
    }

    /// Writes an input from the whole tensor as floats, rounded to its element type.
    ///
    /// # Errors
    /// No such input, or the wrong number of elements.
    pub fn write_f64<'a>(&mut self, name: impl Into<InputName<'a>>, data: &[f64]) -> Result<(), RuntimeError> {
        let name = name.into();
        let dtype = self.interface().inputs[self.input(name)?].binding.view.dtype;
        self.write_bytes(name, &element::encode(dtype, data))
    }

    /// Lets a loader fill the box of one rank, so that no process holds the whole tensor; does nothing for a rank of
    /// another process.
    ///
    /// # Errors
    /// No such input, or the loader's error.
    pub fn write_box<'a>(
        &mut self,
        name: impl Into<InputName<'a>>,
        rank: usize,
        reader: &mut BoxReader<'_>,
    ) -> Result<(), RuntimeError> {
        let name = name.into();
        let (input, name) = (self.input(name)?, name.name);
        if !self.local_ranks().contains(&rank) {
            return Ok(());
        }
        let failed = |reason| RuntimeError::Transfer { name: name.into(), rank, reason };
        // SAFETY: as in `Session::write_bytes`.
        unsafe { self.fill(rank, input, |request, to| reader(request, to).map_err(failed)) }
    }

    /// Fills the boxes of all ranks at the same time, each in a separate thread of the rank's process.
    ///
    /// # Errors
    /// The error of the first failing rank of this process, otherwise the error of another process.
    pub fn fill_ranks<E: Send + Display + From<RuntimeError>>(
        &mut self,
        fill: &(dyn Fn(&mut RankInputs<'_>) -> Result<(), E> + Sync),
    ) -> Result<(), E> {
        let session = &*self;
        let filled = each_rank(session.local_ranks(), &|rank| fill(&mut RankInputs { session, rank })).map(drop);
        self.agree("fill inputs", filled, |_| Vec::new()).map(drop)
    }

    /// Combines the results of an operation that all processes perform together: an error if it failed on any of them.
    /// `to_bytes` makes the message to the others about a success.
    ///
    /// # Errors
    /// The error of this process, otherwise that of the lowest process that has one.
    pub fn agree<T, E: Display + From<RuntimeError>>(
        &self,
        purpose: &str,
        mine: Result<T, E>,
        to_bytes: impl FnOnce(&T) -> Vec<u8>,
    ) -> Result<(T, Vec<Vec<u8>>), E> {
        let told = mine.as_ref().map(to_bytes).map_err(ToString::to_string);
        let all = crate::comm::processes::agree(&**self.processes(), purpose, told, self.deadline())?;
        let mine = mine?;
        let all = all.map_err(|(rank, reason)| RuntimeError::Elsewhere { rank, reason })?;
        Ok((mine, all))
    }

    /// The type of an input or output and its global shape, apart from where a rank has it.
    fn global(&self, end: End) -> &Binding {
        self.interface().binding(end)
    }

    /// Where a rank of this process has an input or output.
    fn binding(&self, rank: usize, end: End) -> &Binding {
        self.program(rank).binding(end)
    }

    /// Assembles any elements of a tensor from the boxes of all ranks, densely into `into`. If several ranks hold equal
    /// boxes, one is taken.
    fn gather(&self, name: &str, end: End, wanted: &Runs, into: &mut [u8]) -> Result<(), RuntimeError> {
        let global = self.global(end);
        let size = global.view.dtype.bytes();
        let total = wanted.elements();
        // The first rank with each box; every process finds the same ones, except for tensors that every rank has.
        let mut owners = self.shared().programs.boxes(end);
        let local = self.local_ranks();
        let is_everywhere = owners.len() == 1;
        owners.retain(|(_, held)| held.elements() > 0);
        if is_everywhere {
            owners.iter_mut().for_each(|(owner, _)| *owner = local.start);
        }
        let mut messages = Vec::new();
        if total > 0 && !is_everywhere && self.processes().count() > 1 {
            let mut mine = Vec::new();
            for &(owner, _) in owners.iter().filter(|(owner, _)| local.contains(owner)) {
                let binding = self.binding(owner, end);
                self.show_held(owner, binding, wanted, &mut |bytes, _| mine.extend_from_slice(bytes))?;
            }
            messages = self.processes().exchange(&format!("read {name}"), &mine, self.deadline())?;
        }
        let mut taken = vec![0; messages.len()];
        let mut held = 0;
        for (owner, of_owner) in owners {
            if local.contains(&owner) {
                self.show_held(owner, self.binding(owner, end), wanted, &mut |bytes, b| {
                    into[b * size..b * size + bytes.len()].copy_from_slice(bytes);
                    held += bytes.len() / size;
                })?;
            } else if total > 0 {
                let process = self.process_of(owner);
                let (message, taken) = (&messages[process], &mut taken[process]);
                let runs = BoxRequest::at(global, of_owner).element_runs();
                meet_all(runs, wanted.clone(), &mut |_, b, n| {
                    into[b * size..(b + n) * size].copy_from_slice(&message[*taken..*taken + n * size]);
                    *taken += n * size;
                    held += n;
                });
            }
        }
        if held == total { Ok(()) } else { Err(RuntimeError::Incomplete { name: name.into(), held, total }) }
    }

    /// The process of a rank: all processes have equally many ranks.
    fn process_of(&self, rank: usize) -> usize {
        rank / self.local_ranks().len()
    }

    fn whole(&self, name: &str, end: End) -> Result<Vec<u8>, RuntimeError> {
        let Binding { global, view, .. } = self.global(end);
        let total: usize = global.iter().product();
        let mut whole = vec![0; total * view.dtype.bytes()];
        self.gather(name, end, &Runs::range(0, total), &mut whole)?;
        Ok(whole)
    }

    /// Reads an output: the dense bytes of the whole tensor in its element type. If several ranks hold equal boxes, the
    /// first rank's is taken.
    ///
    /// # Errors
    /// No such output, or boxes that do not cover the whole tensor; a process that does not respond.
    pub fn read(&self, kind: &OutputKind) -> Result<Vec<u8>, RuntimeError> {
        let output = self.output(kind)?;
        self.whole(&output_name(kind), End::Output(output))
    }

    /// [`Session::read`] as floats.
    ///
    /// # Errors
    /// The errors of [`Session::read`].
    pub fn read_f64(&self, kind: &OutputKind) -> Result<Vec<f64>, RuntimeError> {
        let output = self.output(kind)?;
        Ok(element::decode(self.interface().outputs[output].binding.view.dtype, &self.read(kind)?))
    }

    /// Reads the current contents of an input, for example a parameter after some steps.
    ///
    /// # Errors
    /// No such input, or boxes that do not cover the whole tensor; a process that does not respond.
    pub fn read_input<'a>(&self, name: impl Into<InputName<'a>>) -> Result<Vec<u8>, RuntimeError> {
        let name = name.into();
        let (input, name) = (self.input(name)?, name.name);
        self.whole(name, End::Input(input))
    }

    /// [`Session::read_input`] as floats.
    ///
    /// # Errors
    /// The errors of [`Session::read_input`].
    pub fn read_input_f64<'a>(&self, name: impl Into<InputName<'a>>) -> Result<Vec<f64>, RuntimeError> {
        let name = name.into();
        let input = self.input(name)?;
        Ok(element::decode(self.interface().inputs[input].binding.view.dtype, &self.read_input(name)?))
    }

    /// Reads consecutive elements of an input's current contents, in row-major order of the whole tensor, so that a
    /// saver need not hold the whole tensor. `into` receives `first..end` densely in the input's element type.
    ///
    /// # Errors
    /// No such input, `into` of another size, or boxes that do not cover these elements; a process that does not
    /// respond.
    pub fn read_range<'a>(
        &self,
        name: impl Into<InputName<'a>>,
        first: usize,
        end: usize,
        into: &mut [u8],
    ) -> Result<(), RuntimeError> {
        self.read_runs(name, &Runs::range(first, end), into)
    }

    /// Reads any elements of an input's current contents, densely into `into`, in the input's element type.
    ///
    /// # Errors
    /// The errors of [`Session::read_range`].
    pub fn read_runs<'a>(
        &self,
        name: impl Into<InputName<'a>>,
        wanted: &Runs,
        into: &mut [u8],
    ) -> Result<(), RuntimeError> {
        let name = name.into();
        let (input, name) = (self.input(name)?, name.name);
        let dtype = self.global(End::Input(input)).view.dtype;
        let total = wanted.elements();
        let expected = total * dtype.bytes();
        if into.len() != expected {
            let shape = format!("{dtype}[{total}]");
            return Err(RuntimeError::Size { name: name.into(), expected, given: into.len(), shape });
        }
        self.gather(name, End::Input(input), wanted, into)
    }

    /// The bytes of one rank's box, on every process.
    fn one_box(&self, name: &str, rank: usize, end: End) -> Result<Vec<u8>, RuntimeError> {
        let mine = match self.local_ranks().contains(&rank) {
            true => self.box_of(rank, self.binding(rank, end))?.1.to_vec(),
            false => Vec::new(),
        };
        if self.processes().count() == 1 {
            return Ok(mine);
        }
        let mut all = self.processes().exchange(&format!("read {name} of rank {rank}"), &mine, self.deadline())?;
        Ok(all.swap_remove(self.process_of(rank)))
    }

    /// Reads one rank's box of an output.
    ///
    /// # Errors
    /// No such output; a process that does not respond.
    pub fn read_rank(&self, kind: &OutputKind, rank: usize) -> Result<Vec<u8>, RuntimeError> {
        let output = self.output(kind)?;
        self.one_box(&output_name(kind), rank, End::Output(output))
    }

    /// Passes one rank's box of an input to a saver, so that no process holds the whole tensor.
    ///
    /// # Errors
    /// No such input, or the saver's error; a process that does not respond.
    pub fn read_box<'a>(
        &self,
        name: impl Into<InputName<'a>>,
        rank: usize,
        writer: &mut BoxWriter<'_>,
    ) -> Result<(), RuntimeError> {
        let name = name.into();
        let (input, name) = (self.input(name)?, name.name);
        let end = End::Input(input);
        let written = match self.processes().count() {
            1 => self.box_of(rank, self.binding(rank, end)).map(|(request, from)| writer(&request, &from))?,
            _ => {
                let held = self.held_box(end, rank);
                writer(&BoxRequest::at(self.global(end), held), &self.one_box(name, rank, end)?)
            }
        };
        written.map_err(|reason| RuntimeError::Transfer { name: name.into(), rank, reason })
    }
}

/// The inputs of one rank, while those of all ranks are filled: see [`Session::fill_ranks`].
pub struct RankInputs<'a> {
    session: &'a Session,
    rank: usize,
}

impl RankInputs<'_> {
    /// The rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The rank's program.
    pub fn program(&self) -> &RankProgram {
        self.session.program(self.rank)
    }

    /// Calls `fill` to write the dense bytes of the rank's box of an input, given by its position among the program's
    /// inputs.
    ///
    /// # Errors
    /// Those of `fill`.
    ///
    /// # Panics
    /// If the program has no such input.
    pub fn write<E: From<RuntimeError>>(
        &mut self,
        input: usize,
        fill: impl FnOnce(&BoxRequest, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        // SAFETY: `Session::fill_ranks` borrows the session mutably and creates one of these for each rank, and each
        // rank has separate boxes; `&mut self` lets only one of them be written at a time.
        unsafe { self.session.fill(self.rank, input, fill) }?;
        self.session.processes().progress();
        Ok(())
    }
}

/// Calls `f` for ranks at the same time, and returns the result for each; of several errors, the lowest rank's.
pub(crate) fn each_rank<T: Send, E: Send>(
    ranks: std::ops::Range<usize>,
    f: &(dyn Fn(usize) -> Result<T, E> + Sync),
) -> Result<Vec<T>, E> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = ranks.map(|rank| scope.spawn(move || f(rank))).collect();
        let joined = threads.into_iter().map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        joined.collect::<Vec<_>>().into_iter().collect()
    })
}
