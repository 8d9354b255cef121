//! Convolutions as sums of products over the kernel's taps.
//!
//! `out = Σ_taps einsum("nchw,oc->nohw", x under the tap, the tap's weights)`. The products are ordinary ones, so a
//! convolution is sharded like a linear layer: over the batch, over output channels (a column split) or over input
//! channels (a row split). Groups are an outer factor of both channel dimensions, and a batch dimension of the
//! products. A transposed convolution is the input gradient of a convolution.

use super::window::Window;
use super::{Builder, Imports};
use burn_ir::{ModuleOperationIr as M, TensorIr};
use tpc_ir::{Op, ReduceOp, Type, Value};

/// A convolution without its tensors.
struct Convolution {
    window: Window,
    groups: usize,
}

/// Letters of the dimensions of products; spatial dimensions follow.
const BATCH: u8 = 0;
const GROUP: u8 = 1;
const OUT: u8 = 2;
const IN: u8 = 3;
const SPACE: u8 = 4;

impl Convolution {
    /// The convolution from a `wide` tensor to a `narrow` one (input and output; for a transposed convolution, output
    /// and input).
    fn new(
        wide: &TensorIr,
        narrow: &TensorIr,
        weight: &TensorIr,
        steps: [&[usize]; 2],
        low: &[usize],
        groups: usize,
    ) -> Self {
        let spatial = |t: &TensorIr| t.shape.to_vec()[2..].to_vec();
        let window = Window {
            kernel: spatial(weight),
            stride: steps[0].to_vec(),
            dilation: steps[1].to_vec(),
            low: low.to_vec(),
            extent: spatial(wide),
            count: spatial(narrow),
        };
        Convolution { window, groups }
    }

    /// Letters of a tensor of images with these channels.
    fn image(&self, channels: u8) -> Vec<u8> {
        let space = SPACE..SPACE + self.window.rank() as u8;
        [BATCH].into_iter().chain(self.group()).chain([channels]).chain(space).collect()
    }

    /// Letters of the weights of one tap.
    fn tap(&self) -> Vec<u8> {
        self.group().into_iter().chain([OUT, IN]).collect()
    }

    fn group(&self) -> Option<u8> {
        (self.groups > 1).then_some(GROUP)
    }
}

/// The convolution of an operation; the padding before the first index is `$low` of the padding.
macro_rules! convolution {
    ($o:ident, $wide:expr, $narrow:expr, $weight:expr, $low:expr) => {
        Convolution::new(
            $wide,
            $narrow,
            $weight,
            [&$o.options.stride, &$o.options.dilation],
            &$o.options.padding.map($low),
            $o.options.groups,
        )
    };
}

/// Padding before the first index, for padding that may differ between the two sides and for padding that may not.
fn before((low, _): (usize, usize)) -> usize {
    low
}

fn both(padding: usize) -> usize {
    padding
}

macro_rules! forward {
    ($b:ident, $o:ident, $low:expr) => {{
        let c = convolution!($o, &$o.x, &$o.out, &$o.weight, $low);
        let (x, w) = ($b.get(&$o.x), $b.get(&$o.weight));
        let v = $b.convolved(x, w, &c);
        $b.called(&$o.x, &$o.weight, &$o.bias, &$o.out);
        $b.biased(v, &$o.bias, &$o.out)
    }};
}

macro_rules! input_gradient {
    ($b:ident, $o:ident, $low:expr) => {{
        let c = convolution!($o, &$o.out, &$o.output_grad, &$o.weight, $low);
        let (g, w) = ($b.get(&$o.output_grad), $b.get(&$o.weight));
        let v = $b.transposed_convolved(g, w, &c);
        $b.set(&$o.out, v)
    }};
}

macro_rules! weight_gradient {
    ($b:ident, $o:ident, $low:expr) => {{
        let c = convolution!($o, &$o.x, &$o.output_grad, &$o.weight, $low);
        let (x, g) = ($b.get(&$o.x), $b.get(&$o.output_grad));
        let v = $b.tap_products(x, g, &c);
        $b.set(&$o.out, v)
    }};
}

macro_rules! transposed {
    ($b:ident, $o:ident) => {{
        let c = convolution!($o, &$o.out, &$o.x, &$o.weight, both);
        let (x, w) = ($b.get(&$o.x), $b.get(&$o.weight));
        let v = $b.transposed_convolved(x, w, &c);
        $b.called(&$o.x, &$o.weight, &$o.bias, &$o.out);
        $b.biased(v, &$o.bias, &$o.out)
    }};
}

macro_rules! transposed_weight_gradient {
    ($b:ident, $o:ident) => {{
        let c = convolution!($o, &$o.output_grad, &$o.x, &$o.weight, both);
        let (x, g) = ($b.get(&$o.x), $b.get(&$o.output_grad));
        let v = $b.tap_products(g, x, &c);
        $b.set(&$o.out, v)
    }};
}

impl Builder {
    pub(super) fn convolution(&mut self, op: &M) -> Imports {
        match op {
            M::Conv1d(o) => forward!(self, o, before),
            M::Conv2d(o) => forward!(self, o, before),
            M::Conv3d(o) => forward!(self, o, both),
            M::Conv1dXBackward(o) => input_gradient!(self, o, before),
            M::Conv2dXBackward(o) => input_gradient!(self, o, before),
            M::Conv3dXBackward(o) => input_gradient!(self, o, both),
            M::Conv1dWeightBackward(o) => weight_gradient!(self, o, before),
            M::Conv2dWeightBackward(o) => weight_gradient!(self, o, before),
            M::Conv3dWeightBackward(o) => weight_gradient!(self, o, both),
            M::ConvTranspose1d(o) => transposed!(self, o),
            M::ConvTranspose2d(o) => transposed!(self, o),
            M::ConvTranspose3d(o) => transposed!(self, o),
            M::ConvTranspose1dWeightBackward(o) => transposed_weight_gradient!(self, o),
            M::ConvTranspose2dWeightBackward(o) => transposed_weight_gradient!(self, o),
            M::ConvTranspose3dWeightBackward(o) => transposed_weight_gradient!(self, o),
            M::Conv1dBiasBackward(o) => self.bias_gradient(&o.output_grad, &o.out),
            M::Conv2dBiasBackward(o) => self.bias_gradient(&o.output_grad, &o.out),
            M::Conv3dBiasBackward(o) => self.bias_gradient(&o.output_grad, &o.out),
            M::ConvTranspose1dBiasBackward(o) => self.bias_gradient(&o.output_grad, &o.out),
            M::ConvTranspose2dBiasBackward(o) => self.bias_gradient(&o.output_grad, &o.out),
            M::ConvTranspose3dBiasBackward(o) => self.bias_gradient(&o.output_grad, &o.out),
            op => self.pooling(op),
        }
    }

    /// `[n, c, …], [o, c/g, k…] -> [n, o, …]`, with separate group dimensions.
    fn convolved(&mut self, x: Value, w: Value, c: &Convolution) -> Value {
        let (x, w) = (self.grouped(x, 1, c), self.grouped(w, 0, c));
        let inputs = self.windowed(x, &c.window, 0.0);
        let weights = self.weights_of_taps(w, &c.window);
        let products: Vec<Value> = inputs
            .into_iter()
            .zip(weights)
            .map(|(x, w)| self.einsum(x, w, [&c.image(IN), &c.tap()], &c.image(OUT)))
            .collect();
        self.total(&products)
    }

    /// `[n, o, …], [o, c/g, k…] -> [n, c, …]`, with separate group dimensions: every element times the kernel, added
    /// where the windows overlap.
    fn transposed_convolved(&mut self, g: Value, w: Value, c: &Convolution) -> Value {
        let (g, w) = (self.grouped(g, 1, c), self.grouped(w, 0, c));
        let products: Vec<Value> = self
            .weights_of_taps(w, &c.window)
            .into_iter()
            .map(|w| self.einsum(g, w, [&c.image(OUT), &c.tap()], &c.image(IN)))
            .collect();
        self.overlapped(products, &c.window)
    }

    /// `[n, c, …], [n, o, …] -> [o, c/g, taps]`, with separate group dimensions: the gradient of the weights.
    fn tap_products(&mut self, x: Value, g: Value, c: &Convolution) -> Value {
        let (x, g) = (self.grouped(x, 1, c), self.grouped(g, 1, c));
        let mut taps = Vec::new();
        for x in self.windowed(x, &c.window, 0.0) {
            let v = self.einsum(x, g, [&c.image(IN), &c.image(OUT)], &c.tap());
            let shape = [&self.shape(v)[..], &[1]].concat();
            taps.push(self.reshaped(v, &shape));
        }
        if let [one] = taps[..] {
            return one;
        }
        let dim = self.shape(taps[0]).len() - 1;
        let mut shape = self.shape(taps[0]);
        shape[dim] = taps.len();
        let ty = Type::new(self.graph.ty(taps[0]).dtype, shape);
        self.push(Op::Concat { dim }, &taps, ty)
    }

    /// Splits a channel dimension into groups and the channels of a group.
    fn grouped(&mut self, v: Value, dim: usize, c: &Convolution) -> Value {
        if c.groups == 1 {
            return v;
        }
        let mut shape = self.shape(v);
        shape[dim] /= c.groups;
        shape.insert(dim, c.groups);
        self.reshaped(v, &shape)
    }

    /// The weights of every tap, in row-major order.
    fn weights_of_taps(&mut self, w: Value, window: &Window) -> Vec<Value> {
        let dim = self.shape(w).len() - window.rank();
        let mut taps = vec![w];
        for &n in &window.kernel {
            let mut next = Vec::new();
            for v in taps {
                let ty = self.graph.ty(v).clone();
                let rest: Vec<usize> = [&ty.shape[..dim], &ty.shape[dim + 1..]].concat();
                for index in 0..n {
                    next.push(self.push(Op::Index { dim, index }, &[v], Type::new(ty.dtype, rest.clone())));
                }
            }
            taps = next;
        }
        taps
    }

    /// Adds the bias of every channel.
    fn biased(&mut self, v: Value, bias: &Option<TensorIr>, out: &TensorIr) -> Imports {
        let shape = out.shape.to_vec();
        let v = self.reshaped(v, &shape);
        let v = match bias {
            Some(bias) => {
                let bias = self.get(bias);
                self.per_channel(tpc_ir::MapFn::Add, v, bias)
            }
            None => v,
        };
        self.set(out, v)
    }

    /// A function of a tensor `[n, c, …]` and one number per channel.
    pub(super) fn per_channel(&mut self, f: tpc_ir::MapFn, v: Value, channels: Value) -> Value {
        let shape = self.shape(v);
        let mut wide = vec![1; shape.len() - 1];
        wide[0] = shape[1];
        let channels = self.reshaped(channels, &wide);
        self.broadcast(f, &[v, channels], &shape)
    }

    fn bias_gradient(&mut self, g: &TensorIr, out: &TensorIr) -> Imports {
        let g = self.get(g);
        let dims: Vec<usize> = (0..self.shape(g).len()).filter(|&d| d != 1).collect();
        let v = self.reduced(g, ReduceOp::Sum, &dims);
        self.set(out, v)
    }
}
