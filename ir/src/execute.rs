//! The reference executor: it defines what rank programs mean, without regard to speed.
//!
//! [`execute`] runs the programs of all ranks of a mesh together, each on an arena of its own, action by action as
//! [`program`](crate::program) defines them. It shares nothing with a device: it has no kernels, evaluates in one fixed
//! order, and rounds only as [`Precision`](crate::interpret::Precision) says. A comparison with
//! [`simulate`](crate::interpret::simulate) shows whether lowering preserves the meaning of a placed program.
//!
//! Memory is part of the meaning. The arena records which bytes hold an element of which type, so it is an error to
//! read what was never written, what another buffer has overwritten, or half of an element. Temporary buffers hold
//! nothing before a step, and the target of a collective holds nothing between its start and its wait.

use crate::attention::{Attention, Operand};
use crate::input::InputId;
use crate::interpret::{Options, Tensor, largest};
use crate::op::{MapFn, ReduceOp};
use crate::program::{
    Action, Collective, CollectiveKind, Contract, Instruction, Loop, Part, RankProgram, View, dense_strides,
};
use crate::{DType, OutputKind, random};
use std::collections::HashMap;

/// Why rank programs could not be executed.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum ExecuteError {
    /// The list does not consist of one program for each rank of one mesh.
    #[error("{programs} programs are not those of the ranks of {mesh}")]
    Ranks {
        /// The length of the list.
        programs: usize,
        /// The mesh of the first program.
        mesh: String,
    },
    /// An input was not given, or has another number of elements.
    #[error("input {name:?} has {found} elements but needs {expected}")]
    Input {
        /// Its name.
        name: String,
        /// The number of elements that the program reads.
        expected: usize,
        /// The number of elements that were given; 0 if the input is missing.
        found: usize,
    },
    /// A step does something that memory or the definition of its action does not allow.
    #[error("rank {rank}, step {step} (`{label}`): {fault}")]
    Step {
        /// The rank.
        rank: usize,
        /// The index of the step, or the number of steps if an output could not be read.
        step: usize,
        /// A description of the step.
        label: String,
        /// The fault.
        fault: MemoryFault,
    },
    /// Every rank waits for a collective that another rank has not started.
    #[error("no rank can continue: {0}")]
    Deadlock(String),
    /// Two ranks hold different values of one element of an output.
    #[error("output {output:?} differs between ranks: rank {rank} holds {found}, an earlier rank {expected}")]
    Replicas {
        /// The output.
        output: OutputKind,
        /// The element that an earlier rank holds.
        expected: f64,
        /// The element that this rank holds.
        found: f64,
        /// The rank.
        rank: usize,
    },
}

/// A faulty access to memory.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum MemoryFault {
    /// The bytes hold no element of the type.
    #[error("reads element {element} of b{buffer} ({label}) as {dtype}, where no such element was written")]
    Unwritten {
        /// The buffer.
        buffer: u32,
        /// The label of the buffer.
        label: String,
        /// The index of the element, counted in elements of the type from the start of the buffer.
        element: isize,
        /// The type that it is read as.
        dtype: DType,
    },
    /// The element lies outside its buffer.
    #[error("touches element {element} of b{buffer} ({label}), which has {bytes} bytes")]
    Outside {
        /// The buffer.
        buffer: u32,
        /// The label of the buffer.
        label: String,
        /// Which element.
        element: isize,
        /// Size of the buffer.
        bytes: usize,
    },
    /// Anything else that the definition of the action excludes.
    #[error("{0}")]
    Action(String),
}

type Outcome<T> = Result<T, MemoryFault>;

/// Executes one step of all ranks on global inputs, whose elements are in row-major order. Returns the outputs in the
/// order of the first rank's program, assembled from the boxes of all ranks, in the shapes that the model knows.
///
/// Ranks that hold the same element of an output must agree up to 1e-6 of the larger value, because each may add its
/// terms in another order.
///
/// # Errors
/// The list of programs does not fit the mesh, an input is missing, a step accesses memory that its definition does not
/// allow, the ranks deadlock, or replicas differ.
pub fn execute(
    programs: &[RankProgram],
    inputs: &HashMap<InputId, Tensor>,
    options: &Options,
) -> Result<Vec<Tensor>, ExecuteError> {
    let mesh = programs.first().map(|p| p.mesh.clone()).unwrap_or_default();
    if programs.len() != mesh.ranks() || programs.iter().enumerate().any(|(i, p)| p.rank != i) {
        return Err(ExecuteError::Ranks { programs: programs.len(), mesh: mesh.to_string() });
    }
    let mut ranks = programs.iter().map(|p| Rank::new(p, inputs, *options)).collect::<Result<Vec<_>, _>>()?;
    loop {
        let before: usize = ranks.iter().map(|r| r.at).sum();
        for i in 0..ranks.len() {
            while ranks[i].at < ranks[i].program.steps.len() {
                let step = &programs[i].steps[ranks[i].at];
                let proceeded = match &step.action {
                    Action::Wait { tag } => wait(&mut ranks, i, *tag),
                    action => ranks[i].run(action).map(|()| true),
                };
                if !proceeded.map_err(|fault| ranks[i].failed(fault))? {
                    break;
                }
                ranks[i].at += 1;
            }
        }
        if ranks.iter().all(|r| r.at == r.program.steps.len()) {
            break;
        }
        if before == ranks.iter().map(|r| r.at).sum::<usize>() {
            let waits = ranks.iter().map(|r| format!("rank {} is at step {}", r.program.rank, r.at));
            return Err(ExecuteError::Deadlock(waits.collect::<Vec<_>>().join(", ")));
        }
    }
    (0..programs[0].outputs.len()).map(|o| assemble(&ranks, o)).collect()
}

/// Assembles an output from the boxes of all ranks.
fn assemble(ranks: &[Rank<'_>], output: usize) -> Result<Tensor, ExecuteError> {
    let first = &ranks[0].program.outputs[output];
    let global = &first.binding.global;
    let strides = dense_strides(global);
    let mut whole: Vec<Option<f64>> = vec![None; global.iter().product()];
    for r in ranks {
        let bound = &r.program.outputs[output].binding;
        let start: isize = bound.start.iter().zip(&strides).map(|(&s, &stride)| s as isize * stride).sum();
        let local = r.elements(&bound.view).map_err(|fault| r.failed(fault))?;
        let mut local = local.into_iter();
        for at in offsets(&bound.view.shape, &strides) {
            let found = local.next().unwrap_or_default();
            let expected = *whole[(start + at) as usize].get_or_insert(found);
            let close = (found - expected).abs() <= 1e-6 * found.abs().max(expected.abs()).max(1e-30);
            if !(close || found == expected || found.is_nan() && expected.is_nan()) {
                let output = first.kind.clone();
                return Err(ExecuteError::Replicas { output, expected, found, rank: r.program.rank });
            }
        }
    }
    let data = whole.into_iter().map(Option::unwrap_or_default).collect();
    Ok(Tensor { dtype: first.binding.view.dtype, shape: first.binding.layout.clone(), data })
}

/// The offsets of all elements of a shape with given strides, in row-major order.
fn offsets(shape: &[usize], strides: &[isize]) -> Vec<isize> {
    let mut all = vec![0];
    for (&n, &stride) in shape.iter().zip(strides) {
        all = all.iter().flat_map(|&at| (0..n as isize).map(move |i| at + i * stride)).collect();
    }
    all
}

/// All indices of a shape, in row-major order.
fn indices(shape: &[usize]) -> Vec<Vec<usize>> {
    let mut all = vec![Vec::new()];
    for &n in shape {
        all = all.iter().flat_map(|at: &Vec<usize>| (0..n).map(move |i| [&at[..], &[i]].concat())).collect();
    }
    all
}

fn dot(index: &[usize], strides: &[isize]) -> isize {
    index.iter().zip(strides).map(|(&i, &s)| i as isize * s).sum()
}

/// A collective that a rank has started, with the elements that it sends.
struct Flight {
    collective: Collective,
    /// Its number among the collectives of its group.
    number: usize,
    sent: Vec<f64>,
}

struct Rank<'a> {
    program: &'a RankProgram,
    /// For each byte of the arena, the element that begins there.
    arena: Vec<Option<(DType, f64)>>,
    options: Options,
    /// The next step.
    at: usize,
    /// The number of collectives that this rank has started in each group.
    started: HashMap<Vec<usize>, usize>,
    /// All collectives that this rank has started.
    flights: Vec<Flight>,
}

/// Completes a collective on one rank if all ranks of the group have started it. Returns whether they have.
fn wait(ranks: &mut [Rank<'_>], me: usize, tag: u32) -> Outcome<bool> {
    let Some(own) = ranks[me].flights.iter().find(|f| f.collective.tag == tag) else {
        return Err(MemoryFault::Action(format!("waits for #{tag}, which it has not started")));
    };
    let (group, number) = (own.collective.group.clone(), own.number);
    let mut sent: Vec<&[f64]> = Vec::new();
    for &r in &group {
        let same = |f: &&Flight| f.collective.group == group && f.number == number;
        let Some(flight) = ranks[r].flights.iter().find(same) else { return Ok(false) };
        if flight.collective.name() != own.collective.name() {
            return Err(MemoryFault::Action(format!("#{tag} is a different collective on rank {r}")));
        }
        sent.push(&flight.sent);
    }
    let collective = own.collective.clone();
    let received = received(&collective, &sent);
    let received = received.ok_or_else(|| MemoryFault::Action(format!("pieces of #{tag} do not fit together")))?;
    ranks[me].put_all(&collective.to, &received)?;
    Ok(true)
}

/// The result of a collective on a rank, given the operands of all ranks of the group. `None` if the sizes do not fit.
fn received(c: &Collective, sent: &[&[f64]]) -> Option<Vec<f64>> {
    let combine = |op: ReduceOp, pieces: &[&[f64]]| -> Option<Vec<f64>> {
        let mut sum = pieces.first()?.to_vec();
        for piece in &pieces[1..] {
            (piece.len() == sum.len()).then_some(())?;
            sum.iter_mut().zip(*piece).for_each(|(a, &b)| *a = op.combine(*a, b));
        }
        Some(sum)
    };
    match &c.kind {
        CollectiveKind::AllReduce(op) => combine(*op, sent),
        CollectiveKind::AllGather { parts } => {
            let mut whole = Vec::new();
            let mut starts = vec![0; sent.len()];
            for part in parts {
                for o in 0..part.outer {
                    for (r, piece) in sent.iter().enumerate() {
                        let n = part.lens[r] * part.inner;
                        whole.extend_from_slice(piece.get(starts[r] + o * n..starts[r] + (o + 1) * n)?);
                    }
                }
                starts.iter_mut().enumerate().for_each(|(r, start)| *start += part.shard(r));
            }
            Some(whole)
        }
        CollectiveKind::ReduceScatter { op, parts } => {
            let sum = combine(*op, sent)?;
            let mut shard = Vec::new();
            let mut start = 0;
            for Part { outer, lens, inner } in parts {
                let row: usize = lens.iter().sum::<usize>() * inner;
                let before: usize = lens[..c.position].iter().sum::<usize>() * inner;
                for o in 0..*outer {
                    let from = start + o * row + before;
                    shard.extend_from_slice(sum.get(from..from + lens[c.position] * inner)?);
                }
                start += outer * row;
            }
            Some(shard)
        }
        CollectiveKind::AllToAll { shape, cut, join, cut_lens, join_lens } => {
            let mut to = shape.clone();
            to[*cut] = cut_lens[c.position];
            to[*join] = join_lens.iter().sum();
            let before: usize = cut_lens[..c.position].iter().sum();
            let element = |index: Vec<usize>| {
                let (mut index, mut from) = (index, 0);
                while index[*join] >= join_lens[from] {
                    index[*join] -= join_lens[from];
                    from += 1;
                }
                index[*cut] += before;
                let mut theirs = shape.clone();
                theirs[*join] = join_lens[from];
                sent[from].get(dot(&index, &dense_strides(&theirs)) as usize).copied()
            };
            indices(&to).into_iter().map(element).collect()
        }
    }
}

/// A register of a body: one number per iteration of the row.
type Register = Vec<f64>;

/// The iterations for which a body is executed together: those of the last dimension of a loop, or a single one.
#[derive(Clone, Copy)]
struct Row<'a> {
    /// The index in every dimension except that of the row; for a single iteration, in every dimension.
    outer: &'a [usize],
    /// The number of iterations.
    len: usize,
}

impl Row<'_> {
    /// The offset of the first iteration's element and the step to each next one, given the strides of all dimensions.
    fn walk(self, strides: &[isize]) -> (isize, isize) {
        (dot(self.outer, strides), strides.get(self.outer.len()).copied().unwrap_or(0))
    }

    /// The index in a dimension at an iteration.
    fn index(self, dim: usize, iteration: usize) -> usize {
        self.outer.get(dim).copied().unwrap_or(iteration)
    }
}

impl<'a> Rank<'a> {
    fn new(
        program: &'a RankProgram,
        inputs: &HashMap<InputId, Tensor>,
        options: Options,
    ) -> Result<Rank<'a>, ExecuteError> {
        let arena = vec![None; program.arena_bytes];
        let mut rank = Rank { program, arena, options, at: 0, started: HashMap::new(), flights: Vec::new() };
        for input in &program.inputs {
            let (bound, id) = (&input.binding, input.id());
            let expected: usize = bound.global.iter().product();
            let found = inputs.get(&id).map_or(0, |t| t.data.len());
            let Some(whole) = inputs.get(&id).filter(|_| found == expected) else {
                return Err(ExecuteError::Input { name: input.name.clone(), expected, found });
            };
            let strides = dense_strides(&bound.global);
            let start = dot(&bound.start, &strides);
            let local: Vec<f64> =
                offsets(&bound.view.shape, &strides).into_iter().map(|at| whole.data[(start + at) as usize]).collect();
            rank.put_all(&bound.view, &local).map_err(|fault| rank.failed(fault))?;
        }
        Ok(rank)
    }

    fn failed(&self, fault: MemoryFault) -> ExecuteError {
        let label = self.program.steps.get(self.at).map_or("outputs".into(), |s| s.label.to_string());
        ExecuteError::Step { rank: self.program.rank, step: self.at, label, fault }
    }

    /// The byte of the arena at which an element of the buffer of a view begins.
    fn byte(&self, view: &View, element: isize) -> Outcome<usize> {
        let buffer = &self.program.buffers[view.buffer.0 as usize];
        let size = view.dtype.bytes();
        let inside = usize::try_from(element).ok().map(|e| e * size).filter(|&b| b + size <= buffer.bytes);
        let at = inside.map(|b| buffer.offset + b).filter(|&at| at + size <= self.arena.len());
        at.ok_or_else(|| MemoryFault::Outside {
            buffer: view.buffer.0,
            label: buffer.label.to_string(),
            element,
            bytes: buffer.bytes,
        })
    }

    fn get(&self, view: &View, offset: isize) -> Outcome<f64> {
        let element = view.offset as isize + offset;
        match self.arena[self.byte(view, element)?] {
            Some((dtype, x)) if dtype == view.dtype => Ok(x),
            _ => {
                let label = self.program.buffers[view.buffer.0 as usize].label.to_string();
                Err(MemoryFault::Unwritten { buffer: view.buffer.0, label, element, dtype: view.dtype })
            }
        }
    }

    /// Forgets every element that overlaps the given bytes.
    fn clear(&mut self, at: usize, bytes: usize) {
        const WIDEST: usize = 8;
        for start in at.saturating_sub(WIDEST - 1)..at + bytes {
            if self.arena[start].is_some_and(|(dtype, _)| start + dtype.bytes() > at) {
                self.arena[start] = None;
            }
        }
    }

    fn put(&mut self, view: &View, offset: isize, x: f64) -> Outcome<()> {
        let at = self.byte(view, view.offset as isize + offset)?;
        self.clear(at, view.dtype.bytes());
        self.arena[at] = Some((view.dtype, self.options.precision.round(view.dtype, x)));
        Ok(())
    }

    /// All elements of a view in row-major order.
    fn elements(&self, view: &View) -> Outcome<Vec<f64>> {
        offsets(&view.shape, &view.strides).into_iter().map(|at| self.get(view, at)).collect()
    }

    fn put_all(&mut self, view: &View, elements: &[f64]) -> Outcome<()> {
        let at = offsets(&view.shape, &view.strides);
        if at.len() != elements.len() {
            return Err(MemoryFault::Action(format!("writes {} elements to {}", elements.len(), at.len())));
        }
        at.into_iter().zip(elements).try_for_each(|(at, &x)| self.put(view, at, x))
    }

    fn run(&mut self, action: &Action) -> Outcome<()> {
        match action {
            Action::Loop(l) => self.run_loop(l),
            Action::Contract(c) => self.contract(c),
            Action::Attention(a) => self.attention(a),
            Action::Take { table, index, out, first_row } => {
                let (rows, width) = (table.shape[0], table.shape[1]);
                for (t, i) in self.elements(index)?.into_iter().enumerate() {
                    let row = i - *first_row as f64;
                    for h in 0..width {
                        let x = match row >= 0.0 && row < rows as f64 {
                            true => self.get(table, dot(&[row as usize, h], &table.strides))?,
                            false => 0.0,
                        };
                        self.put(out, dot(&[t, h], &out.strides), x)?;
                    }
                }
                Ok(())
            }
            Action::ScatterAdd { index, update, out, first_row } => {
                let (rows, width) = (out.shape[0], out.shape[1]);
                let mut sums = vec![0.0; rows * width];
                for (t, i) in self.elements(index)?.into_iter().enumerate() {
                    let row = i - *first_row as f64;
                    for h in (0..width).filter(|_| row >= 0.0 && row < rows as f64) {
                        sums[row as usize * width + h] += self.get(update, dot(&[t, h], &update.strides))?;
                    }
                }
                self.put_all(out, &sums)
            }
            Action::Put { table, index, rows, first_row } => {
                let (count, width) = (table.shape[0], table.shape[1]);
                for (t, i) in self.elements(index)?.into_iter().enumerate() {
                    let row = i - *first_row as f64;
                    for h in (0..width).filter(|_| row >= 0.0 && row < count as f64) {
                        let x = self.get(rows, dot(&[t, h], &rows.strides))?;
                        self.put(table, dot(&[row as usize, h], &table.strides), x)?;
                    }
                }
                Ok(())
            }
            Action::Copy { from, to } => {
                let elements = self.elements(from)?;
                self.put_all(to, &elements)
            }
            Action::CumSum { from, to, dim } => {
                let mut sums = self.elements(from)?;
                let inner: usize = from.shape[dim + 1..].iter().product();
                for block in sums.chunks_mut((from.shape[*dim] * inner).max(1)) {
                    (inner..block.len()).for_each(|i| block[i] += block[i - inner]);
                }
                self.put_all(to, &sums)
            }
            Action::TopK { from, values, indices } => {
                let (n, k) = (from.shape.last().copied().unwrap_or(1), values.shape.last().copied().unwrap_or(1));
                let (mut best, mut positions) = (Vec::new(), Vec::new());
                for row in self.elements(from)?.chunks(n.max(1)) {
                    let order = largest(row, k);
                    best.extend(order.iter().map(|&i| row[i]));
                    positions.extend(order.iter().map(|&i| i as f64));
                }
                self.put_all(values, &best)?;
                self.put_all(indices, &positions)
            }
            Action::Start(c) => {
                let sent = self.elements(&c.from)?;
                if c.from != c.to {
                    for at in offsets(&c.to.shape, &c.to.strides) {
                        let byte = self.byte(&c.to, c.to.offset as isize + at)?;
                        self.clear(byte, c.to.dtype.bytes());
                    }
                }
                let number = self.started.entry(c.group.clone()).or_default();
                self.flights.push(Flight { collective: (**c).clone(), number: *number, sent });
                *number += 1;
                Ok(())
            }
            Action::Wait { .. } => Ok(()),
        }
    }

    fn run_loop(&mut self, l: &Loop) -> Outcome<()> {
        for instruction in &l.body {
            if let Instruction::Store { view, strides, accumulate: Some(op), .. } = instruction {
                // The target is set even if the loop has no iterations because a dimension in which the target does not
                // move is empty.
                let sizes: Vec<usize> = l.dims.iter().zip(strides).map(|(&n, &s)| if s == 0 { 1 } else { n }).collect();
                for at in offsets(&sizes, strides) {
                    self.put(view, at, op.identity_of(view.dtype))?;
                }
            }
        }
        let (row, outer) = l.dims.split_last().map_or((1, &[][..]), |(&row, outer)| (row, outer));
        for index in indices(outer) {
            self.body(&l.body, Row { outer: &index, len: row }, &|_| None)?;
        }
        Ok(())
    }

    /// Executes a body for one row, instruction by instruction, each for all iterations. Returns the registers.
    fn body(
        &mut self,
        body: &[Instruction],
        row: Row<'_>,
        given: &dyn Fn(usize) -> Option<f64>,
    ) -> Outcome<Vec<Register>> {
        let mut registers: Vec<Register> = Vec::with_capacity(body.len());
        for instruction in body {
            let round = |dtype: DType, x: f64| self.options.precision.round(dtype, x);
            let register = match instruction {
                Instruction::Load { view, strides } => {
                    let (first, step) = row.walk(strides);
                    (0..row.len as isize).map(|i| self.get(view, first + i * step)).collect::<Outcome<Register>>()?
                }
                Instruction::Constant(x, dtype) => vec![round(*dtype, x.as_f64()); row.len],
                Instruction::Given { index, dtype } => {
                    let x = given(*index)
                        .ok_or_else(|| MemoryFault::Action("the action gives the body no such value".into()))?;
                    vec![round(*dtype, x); row.len]
                }
                Instruction::Index { dim, offset, dtype } => {
                    (0..row.len).map(|i| round(*dtype, (row.index(*dim, i) + offset) as f64)).collect()
                }
                Instruction::Random { distribution, stream, seed, index, dtype } => (0..row.len)
                    .map(|i| {
                        let at: usize =
                            index.iter().map(|&(d, offset, stride)| (row.index(d, i) + offset) * stride).sum();
                        let words = random::philox(registers[*seed][i] as i64 as u64, *stream, at as u64);
                        round(*dtype, random::element(*distribution, words))
                    })
                    .collect(),
                Instruction::Map { f, args, dtype } => {
                    // A cast is the identity here: every instruction rounds to the type of its result.
                    let f = if matches!(f, MapFn::Cast(_)) { &MapFn::Identity } else { f };
                    let of = |i: usize| args.iter().map(|&a| registers[a][i]).collect::<Vec<f64>>();
                    (0..row.len).map(|i| round(*dtype, f.eval(&of(i)))).collect()
                }
                Instruction::ReduceRow { op, arg, dtype } => {
                    let sum = registers[*arg].iter().fold(op.identity_of(*dtype), |a, &b| op.combine(a, b));
                    vec![round(*dtype, sum); row.len]
                }
                Instruction::Store { view, strides, arg, accumulate } => {
                    let (first, step) = row.walk(strides);
                    for (i, &x) in registers[*arg].iter().enumerate() {
                        let at = first + i as isize * step;
                        let x = match accumulate {
                            Some(op) => op.combine(self.get(view, at)?, x),
                            None => x,
                        };
                        self.put(view, at, x)?;
                    }
                    Vec::new()
                }
            };
            registers.push(register);
        }
        Ok(registers)
    }

    fn contract(&mut self, c: &Contract) -> Outcome<()> {
        let sizes: Vec<usize> = c.dims().map(|d| d.size).collect();
        let summed = indices(&c.k.iter().map(|d| d.size).collect::<Vec<_>>());
        let along = |f: fn(&crate::program::ContractDim) -> isize| c.dims().map(f).collect::<Vec<_>>();
        let (left, right, out) = (along(|d| d.left), along(|d| d.right), along(|d| d.out));
        let [of_left, of_right] =
            [0, 1].map(|i| c.k.iter().map(|d| if i == 0 { d.left } else { d.right }).collect::<Vec<_>>());
        // All products come first: an epilogue may overwrite an operand that no later product needs.
        let mut products = Vec::new();
        let all = indices(&sizes);
        for index in &all {
            let (l, r) = (dot(index, &left), dot(index, &right));
            let mut sum = 0.0;
            for k in &summed {
                sum += self.get(&c.left, l + dot(k, &of_left))? * self.get(&c.right, r + dot(k, &of_right))?;
            }
            products.push(sum * c.scale);
        }
        for (index, product) in all.into_iter().zip(products) {
            if c.epilogue.is_empty() {
                self.put(&c.out, dot(&index, &out), product)?;
            } else {
                self.body(&c.epilogue, Row { outer: &index, len: 1 }, &|_| Some(product))?;
            }
        }
        Ok(())
    }

    /// The value of the last instruction of a body.
    fn last(&mut self, body: &[Instruction], index: &[usize], given: &[f64]) -> Outcome<f64> {
        let registers = self.body(body, Row { outer: index, len: 1 }, &|i| given.get(i).copied())?;
        let last = registers.last().and_then(|r| r.first()).copied();
        last.ok_or_else(|| MemoryFault::Action("a body of an attention has no result".into()))
    }

    fn at(&self, o: &Operand, index: &[usize], own: &[usize]) -> Outcome<f64> {
        self.get(&o.view, dot(index, &o.dims) + dot(own, &o.own))
    }

    fn attention(&mut self, a: &Attention) -> Outcome<()> {
        let (batch, columns) = (&a.dims[..=a.batch()], a.columns());
        let (inner, width) = (indices(&a.inner), indices(&a.width));
        let backward = a.backward.as_ref();
        let wanted = backward.map(|b| [(&b.grad_query, &a.inner), (&b.grad_key, &a.inner), (&b.grad_value, &a.width)]);
        let wanted: Vec<_> = wanted.into_iter().flatten().collect();
        let mut gradients = vec![HashMap::<isize, f64>::new(); wanted.len()];
        for ((o, own), sums) in wanted.iter().zip(&mut gradients) {
            let Some(o) = o else { continue };
            // Every element is written, even if its sum has no terms.
            let moves = |(&n, &stride): (&usize, &isize)| if stride == 0 { 1 } else { n };
            let sizes: Vec<usize> = a.dims.iter().zip(&o.dims).map(moves).chain(own.iter().copied()).collect();
            sums.extend(offsets(&sizes, &[&o.dims[..], &o.own].concat()).into_iter().map(|at| (at, 0.0)));
        }
        for row in indices(batch) {
            let cells: Vec<Vec<usize>> = (0..columns).map(|c| [&row[..], &[c]].concat()).collect();
            let stat = dot(&row, &dense_strides(batch));
            let (mut products, mut scores) = (Vec::new(), Vec::new());
            for cell in &cells {
                let mut product = 0.0;
                for i in &inner {
                    product += self.at(&a.query, cell, i)? * self.at(&a.key, cell, i)?;
                }
                products.push(product);
                scores.push(self.last(&a.score, cell, &[product])?);
            }
            let (max, sum) = match a.backward {
                Some(_) => (self.get(&a.max, stat)?, self.get(&a.sum, stat)?),
                None => {
                    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    (max, scores.iter().map(|s| (s - max).exp()).sum())
                }
            };
            let mut weighted = Vec::new();
            let p: Vec<f64> = scores.iter().map(|s| (s - max).exp() / sum).collect();
            let mut weights = Vec::new();
            for (cell, p) in cells.iter().zip(&p) {
                let weight = if a.weight.is_empty() { 1.0 } else { self.last(&a.weight, cell, &[])? };
                weights.push(weight);
                weighted.push(p * weight);
            }
            let Some(b) = &a.backward else {
                for w in &width {
                    let mut out = 0.0;
                    for (cell, x) in cells.iter().zip(&weighted) {
                        out += x * self.at(&a.value, cell, w)?;
                    }
                    self.put(&a.out.view, dot(&row, &a.out.dims) + dot(w, &a.out.own), out)?;
                }
                self.put(&a.max, stat, max)?;
                self.put(&a.sum, stat, sum)?;
                continue;
            };
            let mut delta = 0.0;
            for w in &width {
                delta += self.at(&b.grad_out, &row, w)? * self.at(&a.out, &row, w)?;
            }
            for (c, cell) in cells.iter().enumerate() {
                let mut g = 0.0;
                for w in &width {
                    g += self.at(&b.grad_out, &row, w)? * self.at(&a.value, cell, w)?;
                }
                let s = p[c] * (g * weights[c] - delta);
                let d = match b.gradient.is_empty() || s == 0.0 {
                    true => 0.0,
                    false => self.last(&b.gradient, cell, &[s, products[c]])?,
                };
                let mut add = |k: usize, o: &Operand, own: &[usize], x: f64| {
                    *gradients[k].entry(dot(cell, &o.dims) + dot(own, &o.own)).or_default() += x;
                };
                for i in &inner {
                    if let Some(o) = &b.grad_query {
                        add(0, o, i, d * self.at(&a.key, cell, i)?);
                    }
                    if let Some(o) = &b.grad_key {
                        add(1, o, i, d * self.at(&a.query, cell, i)?);
                    }
                }
                for w in &width {
                    if let Some(o) = &b.grad_value {
                        add(2, o, w, weighted[c] * self.at(&b.grad_out, &row, w)?);
                    }
                }
            }
        }
        for ((o, _), sums) in wanted.into_iter().zip(gradients) {
            let Some(o) = o else { continue };
            sums.into_iter().try_for_each(|(at, x)| self.put(&o.view, at, x))?;
        }
        Ok(())
    }
}
