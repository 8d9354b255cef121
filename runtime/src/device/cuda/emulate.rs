//! Executes generated kernels on the CPU, to check what they mean without a GPU: g++ compiles the module with a small
//! header (`shim.h`) that runs the threads of a block as fibers.
//!
//! The emulation is neither fast nor a complete device: it does not model incoherent memory or warps that run ahead. It
//! does find wrong results, barriers that not all threads reach, and kernels whose result depends on the order in which
//! threads or blocks run (by running them in reverse).

use super::emit::{DevicePlan, Item, Kernels, Launch, plan};
use super::library::Library;
use super::reference;
use crate::device::attached::{Device, StepReport};
use crate::device::cpu::arena::Arena;
use crate::device::cpu::has_avx2;
use crate::error::RuntimeError;
use std::ffi::c_int;
use std::fmt::Write as _;
use std::ops::Range;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use tpc_ir::program::{Binding, RankProgram};

/// Why kernels could not be executed on the CPU.
#[derive(Debug, thiserror::Error)]
pub enum EmulationError {
    /// A program that cannot be planned.
    #[error(transparent)]
    Plan(#[from] RuntimeError),
    /// No compiler, or a kernel that it refuses.
    #[error("the generated kernels cannot be compiled for the CPU: {0}; `g++` has to be installed")]
    Compile(String),
    /// There is not enough memory.
    #[error("{0} bytes of memory could not be allocated for the emulated device")]
    Memory(usize),
    /// Threads of a block that do not synchronize as they should.
    #[error("kernel `{kernel}`: {reason}")]
    Barrier {
        /// The kernel.
        kernel: String,
        /// The fault.
        reason: &'static str,
    },
    /// Ranks that wait for each other.
    #[error("rank {rank} waits for a collective that not all of its group start")]
    Deadlock {
        /// The rank.
        rank: usize,
    },
}

/// The order in which threads and blocks run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// From the first to the last.
    Forward,
    /// From the last to the first.
    Reverse,
}

type Run = unsafe extern "C" fn(usize, u32, u32, c_int, c_int, *mut u8, *const i64) -> c_int;

/// Kernels compiled for the CPU.
struct Compiled {
    run: Run,
    /// The shared library, deleted when it is no longer needed.
    file: PathBuf,
}

impl Drop for Compiled {
    fn drop(&mut self) {
        // A file that remains in the temporary directory does no harm.
        let _ = std::fs::remove_file(&self.file);
    }
}

/// A device emulated on the CPU: programs, their memory, and their kernels.
pub struct Emulator {
    programs: Vec<RankProgram>,
    plan: DevicePlan,
    memory: Arena,
    compiled: Arc<Compiled>,
    /// For every rank's collectives, whether the latest step executed it.
    executed: Vec<Vec<bool>>,
}

/// The C++ source of all kernels, and a function that runs one by its number.
fn source(kernels: &Kernels) -> String {
    let mut text = String::from(include_str!("shim.h"));
    text.push_str(&kernels.source());
    for k in kernels.list() {
        let args: String = (0..k.params).fold(String::new(), |mut s, i| {
            let _ = write!(s, ", a[{i}]");
            s
        });
        let _ = writeln!(text, "static void run_{0}(char* A, const long long* a) {{ {0}(A{args}); }}", k.name);
    }
    text.push_str("static void (*const all[])(char*, const long long*) = {");
    kernels.list().iter().for_each(|k| _ = write!(text, "run_{}, ", k.name));
    text.push_str(
        "0};\nextern \"C\" int run(unsigned long kernel, unsigned grid, unsigned block, int cooperative, int reverse, \
         char* A, const long long* args) {\n    return run_kernel(all[kernel], grid, block, cooperative, reverse, A, args);\n}\n",
    );
    text
}

fn compile(kernels: &Kernels) -> Result<Compiled, EmulationError> {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let fail = |e: std::io::Error| EmulationError::Compile(e.to_string());
    let unique = format!("tpc-emulated-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let folder = std::env::temp_dir();
    let (text, file) = (folder.join(format!("{unique}.cpp")), folder.join(format!("{unique}.so")));
    std::fs::write(&text, source(kernels)).map_err(fail)?;
    let mut command = Command::new("g++");
    // The compiler must not contract: every fused multiply-add is explicit in the kernels. The headers are those of C,
    // because reading C++'s <math.h> takes several times as long as compiling a small program.
    command.args(["-std=c++17", "-nostdinc++", "-O1", "-w", "-shared", "-fPIC"]);
    command.args(["-ffp-contract=off", "-fno-strict-aliasing"]);
    if has_avx2() {
        command.args(["-mavx2", "-mfma"]);
    }
    let output = command.arg("-o").arg(&file).arg(&text).output().map_err(fail)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said: Vec<&str> = said.lines().take(12).collect();
        return Err(EmulationError::Compile(format!("{} (source in {})", said.join("\n"), text.display())));
    }
    std::fs::remove_file(&text).map_err(fail)?;
    let library = Library::open(&file, false).map_err(EmulationError::Compile)?;
    // SAFETY: the source above defines it with this type.
    let run = unsafe { library.function::<Run>("run") }.map_err(EmulationError::Compile)?;
    Ok(Compiled { run, file })
}

impl Emulator {
    /// Whether the compiler, `g++`, is installed.
    pub fn is_available() -> bool {
        Command::new("g++").arg("--version").output().is_ok_and(|o| o.status.success())
    }

    /// Plans the programs of all ranks of a mesh, compiles their kernels, and allocates zeroed memory for them.
    ///
    /// # Errors
    /// Programs that cannot be planned; no compiler; too little memory.
    pub fn new(programs: Vec<RankProgram>) -> Result<Self, EmulationError> {
        Ok(Emulator::batch(vec![programs])?.remove(0))
    }

    /// Like [`Emulator::new`] for many meshes, whose kernels are compiled together.
    ///
    /// # Errors
    /// The errors of [`Emulator::new`].
    pub fn batch(worlds: Vec<Vec<RankProgram>>) -> Result<Vec<Self>, EmulationError> {
        let mut kernels = Kernels::default();
        let mut plans = Vec::new();
        for programs in &worlds {
            let plan = plan(programs, kernels)?;
            kernels = plan.kernels.clone();
            plans.push(plan);
        }
        let compiled = Arc::new(compile(&kernels)?);
        let make = |(programs, plan): (Vec<RankProgram>, DevicePlan)| {
            // Whole pages, and some space after the last byte.
            let bytes = plan.bytes.next_multiple_of(1 << 12) + (1 << 12);
            let memory = Arena::new(bytes).ok_or(EmulationError::Memory(bytes))?;
            let executed = plan.ranks.iter().map(|r| vec![false; r.collectives.len()]).collect();
            Ok(Emulator { programs, plan, memory, compiled: compiled.clone(), executed })
        };
        worlds.into_iter().zip(plans).map(make).collect()
    }

    /// The executed plan.
    pub fn plan(&self) -> &DevicePlan {
        &self.plan
    }

    /// The programs.
    pub fn programs(&self) -> &[RankProgram] {
        &self.programs
    }

    fn place(&self, rank: usize, binding: &Binding) -> (*mut u8, usize) {
        let place = crate::device::extent::resolve(
            self.programs[rank].arena_bytes,
            &self.programs[rank].buffers,
            &binding.view,
            &binding.view.shape,
            &binding.view.strides,
        );
        let place = place.unwrap_or_else(|e| panic!("a binding is out of bounds: {e}"));
        let at = self.memory.base().wrapping_add(self.plan.ranks[rank].base + place.base);
        (at, binding.view.elements() * binding.view.dtype.bytes())
    }

    /// The dense bytes of a binding of the program at this position.
    ///
    /// # Panics
    /// If the binding does not belong to the program.
    pub fn read(&self, rank: usize, binding: &Binding) -> Vec<u8> {
        let (at, len) = self.place(rank, binding);
        // SAFETY: the view is in the memory, and nothing runs.
        unsafe { std::slice::from_raw_parts(at, len) }.to_vec()
    }

    /// Writes the dense bytes of a binding of the program at this position.
    ///
    /// # Panics
    /// If the binding does not belong to the program, or has another number of bytes.
    pub fn write(&mut self, rank: usize, binding: &Binding, bytes: &[u8]) {
        let (at, len) = self.place(rank, binding);
        assert_eq!(len, bytes.len());
        // SAFETY: the view is in the memory, and nothing runs.
        unsafe { std::slice::from_raw_parts_mut(at, len) }.copy_from_slice(bytes);
    }

    fn launch(&self, l: &Launch, order: Order) -> Result<(), EmulationError> {
        let k = &self.plan.kernels.list()[l.kernel];
        let reverse = c_int::from(order == Order::Reverse);
        let cooperative = c_int::from(k.cooperative);
        let base = self.memory.base();
        // SAFETY: the kernel is in the library, and takes as many arguments as the launch has. All addresses were
        // checked to be in the memory during planning, and `step` has exclusive access to it.
        let said =
            unsafe { (self.compiled.run)(l.kernel, l.grid, k.block, cooperative, reverse, base, l.args.as_ptr()) };
        let reason = match said {
            0 => return Ok(()),
            1 => "some threads ended while others waited for them",
            _ => "threads of a block waited at different barriers",
        };
        Err(EmulationError::Barrier { kernel: k.name.clone(), reason })
    }

    /// Runs all programs once. In forward order, matrix products run as generated kernels. In reverse order, products
    /// that the library can compute, and collectives, run as plain loops over the library's calls. A rank runs until it
    /// waits for a collective that others of its group have not started; a collective runs when the last of them starts
    /// it.
    ///
    /// # Errors
    /// Barriers that not all threads reach; ranks that wait forever.
    pub fn step(&mut self, order: Order) -> Result<(), EmulationError> {
        let ranks = self.plan.ranks.len();
        let mut next = vec![0; ranks];
        let mut started: Vec<Vec<bool>> = self.plan.ranks.iter().map(|r| vec![false; r.collectives.len()]).collect();
        let mut done = started.clone();
        loop {
            let mut moved = false;
            for r in 0..ranks {
                while let Some((_, item)) = self.plan.ranks[r].items.get(next[r]) {
                    match item {
                        Item::Launch(l) => self.launch(l, order)?,
                        Item::Product { library, kernels } => match library.first() {
                            Some(p) if order == Order::Reverse => {
                                p.packing.iter().try_for_each(|l| self.launch(l, order))?;
                                // SAFETY: all addresses were checked to be in the memory during planning.
                                unsafe { reference::run(&p.gemm, self.memory.base()) };
                                p.after.iter().try_for_each(|l| self.launch(l, order))?;
                            }
                            _ => kernels.iter().try_for_each(|l| self.launch(l, order))?,
                        },
                        Item::Start(i) => {
                            started[r][*i] = true;
                            self.progress(r, *i, &started, &mut done, order)?;
                        }
                        Item::Wait(i) if !done[r][*i] => break,
                        Item::Wait(_) => {}
                    }
                    next[r] += 1;
                    moved = true;
                }
            }
            let waiting = (0..ranks).find(|&r| next[r] < self.plan.ranks[r].items.len());
            match waiting {
                None => {
                    self.executed = done;
                    return Ok(());
                }
                Some(rank) if !moved => return Err(EmulationError::Deadlock { rank }),
                Some(_) => {}
            }
        }
    }

    /// Runs a collective if all ranks of its group have started it.
    fn progress(
        &self,
        r: usize,
        i: usize,
        started: &[Vec<bool>],
        done: &mut [Vec<bool>],
        order: Order,
    ) -> Result<(), EmulationError> {
        let c = &self.plan.ranks[r].collectives[i].collective;
        let mut members = Vec::new();
        for rank in &c.group {
            let Some(at) = self.programs.iter().position(|p| p.rank == *rank) else { return Ok(()) };
            let of_tag = |x: &super::emit::Placed| x.collective.tag == c.tag && x.collective.group == c.group;
            let Some(of) = self.plan.ranks[at].collectives.iter().position(of_tag) else { return Ok(()) };
            members.push((at, of));
        }
        if !members.iter().all(|&(at, of)| started[at][of]) {
            return Ok(());
        }
        if order == Order::Reverse {
            let placed: Vec<_> = members.iter().map(|&(at, of)| &self.plan.ranks[at].collectives[of]).collect();
            placed.iter().flat_map(|p| &p.wire.before).try_for_each(|l| self.launch(l, order))?;
            // SAFETY: all addresses were checked to be in the memory during planning.
            unsafe { reference::communicate(&placed, self.memory.base()) };
            placed.iter().flat_map(|p| &p.wire.after).try_for_each(|l| self.launch(l, order))?;
            members.into_iter().for_each(|(at, of)| done[at][of] = true);
            return Ok(());
        }
        let (first, of) = members[0];
        for l in &self.plan.ranks[first].collectives[of].local {
            self.launch(l, order)?;
        }
        members.into_iter().for_each(|(at, of)| done[at][of] = true);
        Ok(())
    }
}

impl Device for Emulator {
    fn programs(&self) -> &[RankProgram] {
        &self.programs
    }

    fn scratch_bytes(&self, rank: usize) -> usize {
        self.plan.ranks[rank].scratch_bytes
    }

    fn read_range(&self, rank: usize, binding: &Binding, bytes: Range<usize>) -> Result<Vec<u8>, RuntimeError> {
        Ok(Emulator::read(self, rank, binding)[bytes].to_vec())
    }

    fn write(&mut self, rank: usize, binding: &Binding, bytes: &[u8]) -> Result<(), RuntimeError> {
        Emulator::write(self, rank, binding, bytes);
        Ok(())
    }

    fn step(&mut self) -> Result<StepReport, RuntimeError> {
        let start = Instant::now();
        Emulator::step(self, Order::Forward).map_err(|e| RuntimeError::Emulated(e.to_string()))?;
        Ok(StepReport { seconds: start.elapsed().as_secs_f64() })
    }
    fn executed(&self, rank: usize) -> Vec<bool> {
        self.executed[rank].clone()
    }

    fn switch_to(&mut self, programs: Vec<RankProgram>) -> Result<(), RuntimeError> {
        let next = Emulator::new(programs).map_err(|e| RuntimeError::Emulated(e.to_string()))?;
        for (rank, program) in self.programs.iter().enumerate() {
            let from = self.memory.base().wrapping_add(self.plan.ranks[rank].base);
            let to = next.memory.base().wrapping_add(next.plan.ranks[rank].base);
            let bytes = program.arena_bytes.min(next.programs[rank].arena_bytes);
            // SAFETY: the arena of a rank is in the memory of its emulator, from the rank's base on; the two memories
            // are different.
            unsafe { std::ptr::copy_nonoverlapping(from, to, bytes) };
        }
        *self = next;
        Ok(())
    }
}
