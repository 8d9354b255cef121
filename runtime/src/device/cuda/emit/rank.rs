//! State shared by emitting the actions of one rank.

use super::kernels::{Kernels, Launch};
use crate::device::extent::{self, Extent};
use crate::device::nodes::{self, Scan};
use tpc_ir::DType;
use tpc_ir::program::{Buffer, BufferId, Loop, RankProgram, View};

/// The scratch is split into pieces of whole lines.
const LINE: usize = 256;

/// One rank whose program is being emitted.
pub(super) struct Rank<'a> {
    pub(super) program: &'a RankProgram,
    /// The rank's offset in the device allocation.
    pub(super) base: i64,
    pub(super) kernels: &'a mut Kernels,
    /// The buffers of the program, followed by the scratch of the current action that views refer to.
    buffers: Vec<Buffer>,
    /// Scratch that the current action uses, and the maximum over all actions.
    used: usize,
    most: usize,
}

impl<'a> Rank<'a> {
    pub(super) fn new(program: &'a RankProgram, base: usize, kernels: &'a mut Kernels) -> Self {
        Rank { program, base: base as i64, kernels, buffers: program.buffers.clone(), used: 0, most: 0 }
    }

    /// Frees all scratch: actions run one after the other, and of several ways to run an action only one is taken.
    pub(super) fn free_scratch(&mut self) {
        self.used = 0;
        self.buffers.truncate(self.program.buffers.len());
    }

    /// Allocates scratch after the arena. Returns its offset from the rank's first byte.
    pub(super) fn scratch(&mut self, bytes: usize) -> usize {
        let at = self.used;
        self.used += bytes.next_multiple_of(LINE);
        self.most = self.most.max(self.used);
        self.program.arena_bytes.next_multiple_of(LINE) + at
    }

    /// Allocates scratch for some elements, as a view that loops and products of the current action can refer to.
    pub(super) fn scratch_view(&mut self, dtype: DType, elements: usize) -> View {
        let bytes = elements * dtype.bytes();
        let offset = self.scratch(bytes);
        let buffer = BufferId(self.buffers.len() as u32);
        self.buffers.push(Buffer { offset, bytes, persistent: false, label: "scratch".into() });
        View::dense(buffer, dtype, vec![elements])
    }

    /// The end of the memory that views may refer to: the arena, followed by scratch with views.
    fn end(&self) -> usize {
        if self.buffers.len() > self.program.buffers.len() { self.bytes() } else { self.program.arena_bytes }
    }

    /// Bytes of the arena and the scratch together.
    pub(super) fn bytes(&self) -> usize {
        self.program.arena_bytes.next_multiple_of(LINE) + self.most
    }

    /// The memory of a view in the arena.
    pub(super) fn view(&self, view: &View) -> Result<Extent, String> {
        self.extent(view, &view.shape, &view.strides)
    }

    /// The bytes that a view accesses with these sizes and strides.
    pub(super) fn extent(&self, view: &View, sizes: &[usize], strides: &[isize]) -> Result<Extent, String> {
        extent::resolve(self.end(), &self.buffers, view, sizes, strides)
    }

    /// The memory accesses of a loop.
    pub(super) fn scan(&self, l: &Loop) -> Result<Scan, String> {
        nodes::scan(l, self.end(), &self.buffers)
    }

    /// The offset in the device allocation of a byte of the rank's memory.
    pub(super) fn at(&self, byte: usize) -> i64 {
        self.base + byte as i64
    }

    /// Adds a kernel with this body and returns its launch.
    pub(super) fn launch(
        &mut self,
        what: &str,
        (grid, block): (usize, usize),
        cooperative: bool,
        args: Vec<i64>,
        body: &str,
    ) -> Result<Launch, String> {
        self.launch_sharing(what, (grid, block, 0), cooperative, args, body)
    }

    /// Like [`Rank::launch`], with additional bytes of shared memory per block.
    pub(super) fn launch_sharing(
        &mut self,
        what: &str,
        (grid, block, shared): (usize, usize, usize),
        cooperative: bool,
        args: Vec<i64>,
        body: &str,
    ) -> Result<Launch, String> {
        let grid = u32::try_from(grid).ok().filter(|&g| g < 1 << 31);
        let grid = grid.ok_or_else(|| "more blocks than a grid can have".to_string())?;
        let kernel = self.kernels.add_sharing(what, args.len(), (block as u32, shared as u32), cooperative, body);
        Ok(Launch { kernel, grid, args })
    }
}
