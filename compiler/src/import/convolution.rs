//! Convolutions as sums of products over the kernel's taps.

use super::{Builder, Imports};
use burn_ir::ModuleOperationIr as M;

impl Builder {
    pub(super) fn convolution(&mut self, _op: &M) -> Imports {
        Err(self.unsupported("there is no rule for it"))
    }
}
