//! The engines that multiply tiles, and the sizes of tiles.

use super::super::body::element;
use tpc_ir::DType;
use tpc_ir::attention::Attention;
use tpc_ir::program::Instruction;

/// Shared memory per block: what every device since compute capability 8.0 has, minus what the driver takes.
const SHARED: usize = 96 << 10;
/// Registers per thread for sums, scores and gradients of scores. The rest is for operands and addresses, and for
/// bodies that load elements or draw random numbers.
const REGISTERS: [usize; 3] = [160, 112, 80];

/// The kinds of engines in `attention.cuh`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Engine {
    /// Tensor cores, for elements of 16 bits.
    Tensor(DType),
    /// Multiply-adds in f32 or f64.
    Plain(DType),
}

/// An engine with its tile sizes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tiling {
    pub(super) engine: Engine,
    warps: usize,
    /// Rows per thread.
    rows: usize,
    /// Rows per streamed block.
    pub(super) streamed: usize,
}

/// The tiles and registers that a kernel needs.
pub(super) struct Needs {
    /// Elements per row of all owned tiles, and of all streamed tiles.
    pub(super) own: usize,
    pub(super) streamed: usize,
    /// Number of tiles of each kind.
    pub(super) tiles: usize,
    /// Elements per row of all sums.
    pub(super) sums: usize,
    /// Number of score matrices: scores, or scores and their gradients.
    pub(super) scores: usize,
    /// The index in [`REGISTERS`], which depends on the registers that bodies need in addition.
    pub(super) bodies: usize,
}

/// 1 if bodies load elements, 2 if they draw random numbers.
pub(super) fn weight_of_bodies(a: &Attention) -> usize {
    let bodies = a.score.iter().chain(&a.weight).chain(a.backward.iter().flat_map(|b| &b.gradient));
    let of = |instruction: &Instruction| match instruction {
        Instruction::Random { .. } => 2,
        Instruction::Load { .. } => 1,
        _ => 0,
    };
    bodies.map(of).max().unwrap_or(0)
}

impl Engine {
    /// The engine for an attention.
    pub(super) fn of(a: &Attention, real: DType) -> Engine {
        let operands = [&a.query, &a.key, &a.value].into_iter().chain(a.backward.iter().map(|b| &b.grad_out));
        let all = |d: DType| operands.clone().all(|o| o.view.dtype == d);
        match [DType::BF16, DType::F16].into_iter().find(|&d| all(d)) {
            Some(narrow) => Engine::Tensor(narrow),
            None => Engine::Plain(real),
        }
    }

    /// The element type of tiles.
    pub(super) fn element(self) -> DType {
        match self {
            Engine::Tensor(d) | Engine::Plain(d) => d,
        }
    }

    /// Elements of padding between rows of a tile, so that rows begin in different banks.
    fn pad(self) -> usize {
        16 / self.element().bytes()
    }

    /// The largest tiles that fit; `None` if a single row is too wide.
    pub(super) fn tiling(self, owners: usize, needs: &Needs) -> Option<Tiling> {
        let sizes: &[(usize, usize)] = match self {
            Engine::Tensor(_) => &[(2, 64), (2, 32), (2, 16)],
            Engine::Plain(DType::F64) => &[(2, 32), (2, 16), (1, 16)],
            Engine::Plain(_) => &[(4, 64), (4, 32), (2, 32), (2, 16), (1, 16)],
        };
        let most = if matches!(self, Engine::Tensor(_)) { 4 } else { 8 };
        let of = |&(rows, streamed): &(usize, usize)| {
            let alone = Tiling { engine: self, warps: 1, rows, streamed };
            let warps = owners.div_ceil(alone.own()).next_power_of_two().clamp(1, most);
            Tiling { warps, ..alone }
        };
        sizes.iter().map(of).find(|t| t.shared(needs) <= SHARED && t.registers(needs) <= REGISTERS[needs.bodies])
    }
}

impl Tiling {
    /// Rows per block.
    pub(super) fn own(&self) -> usize {
        match self.engine {
            Engine::Tensor(_) => 16 * self.warps,
            Engine::Plain(_) => 2 * self.rows * self.warps,
        }
    }

    /// Whether tiles are larger than the smallest ones.
    pub(super) fn is_large(&self) -> bool {
        self.streamed > 16
    }

    /// Threads per block.
    pub(super) fn threads(&self) -> usize {
        32 * self.warps
    }

    /// Bytes of shared memory.
    pub(super) fn shared(&self, needs: &Needs) -> usize {
        let pads = needs.tiles * self.engine.pad();
        let tiles = self.own() * (needs.own + pads) + self.streamed * (needs.streamed + pads);
        let scratch = match self.engine {
            Engine::Tensor(_) => 0,
            Engine::Plain(_) => self.own() * (self.streamed + self.engine.pad()),
        };
        (tiles + scratch) * self.engine.element().bytes()
    }

    fn registers(&self, needs: &Needs) -> usize {
        let columns = needs.sums + needs.scores * self.streamed;
        match self.engine {
            Engine::Tensor(_) => columns / 2,
            Engine::Plain(d) => self.rows * columns / 16 * (d.bytes() / 4),
        }
    }

    /// The engine's type in the kernel's source.
    pub(super) fn text(&self) -> String {
        let (element, warps, rows) = (element(self.engine.element()), self.warps, self.rows);
        match self.engine {
            Engine::Tensor(_) => format!("Tensor<{element}, {warps}>"),
            Engine::Plain(_) => format!("Plain<{element}, {rows}, {warps}>"),
        }
    }
}
