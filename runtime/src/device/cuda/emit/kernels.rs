//! Kernels without duplicates, and their launches.

use fnv::FnvHasher;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::hash::Hasher;

/// A generated kernel. Its parameters are the device allocation and one `long long` for each argument of its launches.
#[derive(Clone, Debug, PartialEq)]
pub struct Kernel {
    /// Its name in the module: a description, and a hash of its text.
    pub name: String,
    /// CUDA C++, without the prelude.
    pub source: String,
    /// Threads per block.
    pub block: u32,
    /// Number of arguments.
    pub params: usize,
    /// Whether threads of a block synchronize.
    pub cooperative: bool,
    /// Bytes of shared memory that a launch has to ask for.
    pub shared: u32,
}

/// One execution of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// Index of the kernel.
    pub kernel: usize,
    /// Number of blocks.
    pub grid: u32,
    /// Arguments: byte offsets into the device allocation, and numbers.
    pub args: Vec<i64>,
}

/// The kernels of a module. Equal texts are stored once.
#[derive(Clone, Debug, Default)]
pub struct Kernels {
    list: Vec<Kernel>,
    by_text: HashMap<String, usize>,
}

/// The beginning of every module.
pub const PRELUDE: &str = include_str!("prelude.cuh");
/// The additional beginning of modules with kernels of attention.
const ATTENTION: &str = include_str!("attention/attention.cuh");

impl Kernels {
    /// All kernels.
    pub fn list(&self) -> &[Kernel] {
        &self.list
    }

    /// The source of a module with all kernels.
    pub fn source(&self) -> String {
        self.source_of(0..self.list.len())
    }

    /// The source of a module with some kernels.
    ///
    /// # Panics
    /// If there are fewer kernels.
    pub fn source_of(&self, which: std::ops::Range<usize>) -> String {
        let mut text = String::from(PRELUDE);
        if self.list[which.clone()].iter().any(|k| k.name.starts_with("attention")) {
            text.push_str(ATTENTION);
        }
        for k in &self.list[which] {
            text.push('\n');
            text.push_str(&k.source);
        }
        text
    }

    /// Adds a kernel with this body, whose parameters are `char* A` and `i64 a0, a1, …`, unless it exists. Returns its
    /// index.
    pub(super) fn add(&mut self, what: &str, params: usize, block: u32, cooperative: bool, body: &str) -> usize {
        self.add_sharing(what, params, (block, 0), cooperative, body)
    }

    /// Like [`Kernels::add`], with additional bytes of shared memory.
    pub(super) fn add_sharing(
        &mut self,
        what: &str,
        params: usize,
        (block, shared): (u32, u32),
        cooperative: bool,
        body: &str,
    ) -> usize {
        let text = format!("{what} {params} {block} {shared}\n{body}");
        if let Some(&k) = self.by_text.get(&text) {
            return k;
        }
        let name = format!("{what}_{:016x}", fnv(text.as_bytes()));
        // Without this bound, the assembler spills f64 sums of products and rows in order to run more blocks at the
        // same time.
        let blocks = if what == "contract" || what == "rows" || what.starts_with("attention") { ", 1" } else { "" };
        let mut source = format!("extern \"C\" __global__ void __launch_bounds__({block}{blocks}) {name}(char* A");
        (0..params).for_each(|i| _ = write!(source, ", i64 a{i}"));
        let _ = writeln!(source, ") {{\n{body}}}");
        self.by_text.insert(text, self.list.len());
        self.list.push(Kernel { name, source, block, params, cooperative, shared });
        self.list.len() - 1
    }
}

/// The FNV-1a hash of some bytes.
pub(crate) fn fnv(bytes: &[u8]) -> u64 {
    let mut hasher = FnvHasher::default();
    hasher.write(bytes);
    hasher.finish()
}
