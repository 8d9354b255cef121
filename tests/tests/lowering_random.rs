//! Random programs of several phases and micro-batches, with and without recomputation and epilogues: all ways compute
//! the same, move no more memory, and hold no more.
//!
//! For every value, the generator knows a bound of its elements and of their rounding error. Integers are exact as long
//! as their type can represent them, and are then compared exactly.

use proptest::prelude::*;
use std::fmt::Write as _;
use tpc_ir::interpret::Tensor;
use tpc_ir::program::{Action, RankProgram, Step};
use tpc_ir::{DType, InputId, random};
use tpc_passes::lower::LowerOptions;
use tpc_tests::named::program;
use tpc_tests::switches::{WAYS, idle_loops, lowered, most_bytes, moved_bytes, touched_bytes};
use tpc_tests::{executed_programs, on_ranks};

/// Draws choices from a list of random bytes.
struct Dice<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Dice<'_> {
    fn below(&mut self, n: usize) -> usize {
        let byte = usize::from(self.bytes[self.at % self.bytes.len()]) + 31 * (self.at / self.bytes.len());
        self.at += 1;
        byte % n
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    fn shuffled(&mut self, dims: &str) -> String {
        let mut all: Vec<char> = dims.chars().collect();
        if self.one_in(3) {
            for i in (1..all.len()).rev() {
                let j = self.below(i + 1);
                all.swap(i, j);
            }
        }
        all.into_iter().collect()
    }
}

#[derive(Clone, Debug)]
struct Named {
    name: String,
    dims: String,
    dtype: DType,
    partial: Option<(&'static str, &'static str)>,
    /// A bound of the absolute value of its elements.
    max: f64,
    /// A bound of the rounding error of its elements.
    off: f64,
    /// Whether its elements are integers.
    whole: bool,
}

impl Named {
    fn is_exact(&self) -> bool {
        self.off == 0.0
    }
}

/// Half the distance between numbers of a type near 1.
fn step(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 2f64.powi(-53),
        DType::F32 => 2f64.powi(-24),
        _ => 2f64.powi(-9),
    }
}

/// The largest integer up to which a type represents all integers, also when they are added in any order.
fn holds(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 2f64.powi(40),
        DType::F32 => 2f64.powi(22),
        _ => 128.0,
    }
}

/// Values with larger bounds are not generated.
const MOST: f64 = 3e3;

struct Letter {
    letter: char,
    size: usize,
    axis: Option<&'static str>,
    /// Other letters of the same size, each with the axis that cuts it; `None` if none does.
    twins: Vec<(Option<&'static str>, char)>,
}

struct Writer<'a> {
    dice: Dice<'a>,
    letters: Vec<Letter>,
    axes: Vec<&'static str>,
    dtypes: Vec<DType>,
    /// The text that ends each line: its origin.
    origin: String,
    text: String,
    count: usize,
    values: Vec<Named>,
    read: Vec<bool>,
}

impl Writer<'_> {
    fn letter(&self, letter: char) -> &Letter {
        self.letters.iter().find(|l| l.letter == letter).unwrap()
    }

    fn size(&self, dims: &str) -> f64 {
        dims.chars().map(|l| self.letter(l).size as f64).product()
    }

    fn new_letter(&mut self, size: usize, axis: Option<&'static str>) -> Option<char> {
        let letter = (b'a'..=b'z').chain(b'A'..=b'Z').nth(self.letters.len())? as char;
        self.letters.push(Letter { letter, size, axis, twins: vec![(axis, letter)] });
        Some(letter)
    }

    /// A letter of the same size on another axis.
    fn twin(&mut self, letter: char, axis: Option<&'static str>) -> Option<char> {
        if let Some(found) = self.letter(letter).twins.iter().find(|t| t.0 == axis) {
            return Some(found.1);
        }
        let new = self.new_letter(self.letter(letter).size, axis)?;
        let mut twins = self.letter(letter).twins.clone();
        twins.push((axis, new));
        for l in self.letters.iter_mut().filter(|l| twins.iter().any(|t| t.1 == l.letter)) {
            l.twins = twins.clone();
        }
        Some(new)
    }

    /// Whether a value may have these dimensions and be partial over this axis.
    fn is_placed(&self, dims: &str, partial: Option<(&str, &str)>) -> bool {
        let used: Vec<&str> = dims.chars().filter_map(|l| self.letter(l).axis).chain(partial.map(|p| p.1)).collect();
        let distinct = (1..used.len()).all(|i| !used[..i].contains(&used[i]));
        distinct && dims.chars().enumerate().all(|(i, l)| !dims[..i].contains(l)) && self.size(dims) <= 3000.0
    }

    /// Writes a line.
    fn line(&mut self, what: &str, of: &[&Named], made: Named) -> Option<usize> {
        if !self.is_placed(&made.dims, made.partial) {
            return None;
        }
        let limit = holds(made.dtype);
        let mut made = made;
        if made.dtype.is_float() {
            if !(made.whole && made.is_exact() && made.max <= limit) {
                // Twice: partial terms are rounded before they are summed, and a sum of three after every term.
                made.off += 2.0 * step(made.dtype) * made.max;
                made.whole = false;
            }
            if made.max > MOST || made.off > 0.05 * made.max.max(1.0) {
                return None;
            }
        }
        let size = |l: char| {
            let l = self.letter(l);
            format!("{}{}", l.size, l.axis.map_or(String::new(), |a| format!("@{a}")))
        };
        let dims: Vec<String> = made.dims.chars().map(size).collect();
        let partial = made.partial.map_or(String::new(), |(op, axis)| format!(" +{op}@{axis}"));
        let names: Vec<String> =
            of.iter().map(|v| if v.name.contains(':') { v.name.clone() } else { format!("%{}", v.name) }).collect();
        let name = format!("v{}", self.count);
        self.count += 1;
        let (names, dims) = (names.join(", "), dims.join(", "));
        let origin = if what.starts_with("input") { "" } else { &self.origin };
        let _ = writeln!(self.text, "%{name} = {what} {names} : {}[{dims}]{partial}{origin}", made.dtype);
        for v in of {
            if let Some(i) = self.values.iter().position(|o| o.name == v.name) {
                self.read[i] = true;
            }
        }
        self.values.push(Named { name, ..made });
        self.read.push(false);
        Some(self.values.len() - 1)
    }

    /// A value of this kind, preferably a recent one.
    fn any(&mut self, is: impl Fn(&Named) -> bool) -> Option<Named> {
        let fit: Vec<usize> = (0..self.values.len()).filter(|&i| is(&self.values[i])).collect();
        if fit.is_empty() {
            return None;
        }
        let from = if self.dice.one_in(2) { fit.len().saturating_sub(4) } else { 0 };
        let at = from + self.dice.below(fit.len() - from);
        Some(self.values[fit[at]].clone())
    }

    fn real(&mut self) -> Option<Named> {
        self.any(|v| v.dtype.is_float() && v.partial.is_none())
    }

    /// Another value that can be combined with this one element by element.
    fn beside(&mut self, v: &Named) -> Option<Named> {
        if self.dice.one_in(8) {
            let x = self.dice.pick(&[2.0f64, -1.0, 1.0, 0.25]);
            let name = format!("{}:{x:?}", v.dtype);
            let whole = x != 0.25;
            return Some(Named {
                name,
                dims: String::new(),
                dtype: v.dtype,
                partial: None,
                max: x.abs(),
                off: 0.0,
                whole,
            });
        }
        let same = self.dice.one_in(2);
        let (dtype, dims) = (v.dtype, v.dims.clone());
        let alike = |o: &Named| {
            let common = o.dims.chars().filter(|l| dims.contains(*l)).count();
            common == dims.len() && common == o.dims.len() || !same && common > 0
        };
        self.any(|o| o.dtype == dtype && o.partial.is_none() && alike(o))
    }

    fn map(&mut self, f: &str, of: &[&Named], dtype: DType, max: f64, off: f64, whole: bool) -> Option<usize> {
        let mut dims = String::new();
        for v in of {
            let new: String = v.dims.chars().filter(|l| !dims.contains(*l)).collect();
            dims += &new;
        }
        let partial = of.iter().find_map(|v| v.partial);
        if dims.len() > 4 || !self.is_placed(&dims, partial) {
            return None;
        }
        let dims = self.dice.shuffled(&dims);
        let rows: Vec<&str> = of.iter().map(|v| v.dims.as_str()).collect();
        let what = format!("{f} \"{}->{dims}\"", rows.join(","));
        self.line(&what, of, Named { name: String::new(), dims, dtype, partial, max, off, whole })
    }

    fn sum(&mut self, of: &[&Named]) -> Option<usize> {
        let (max, off) = (of.iter().map(|v| v.max).sum(), of.iter().map(|v| v.off).sum());
        self.map("add", of, of[0].dtype, max, off, of.iter().all(|v| v.whole))
    }

    fn unary(&mut self) -> Option<usize> {
        let v = self.real()?;
        let (f, max, off, whole) = match self.dice.below(10) {
            0 => ("neg", v.max, v.off, v.whole),
            1 => ("abs", v.max, v.off, v.whole),
            2 => ("sin", 1.0, v.off, false),
            3 => ("sigmoid", 1.0, v.off, false),
            4 => ("erf", 1.0, 1.2 * v.off, false),
            5 if v.max < 4.0 => ("exp", v.max.exp(), v.max.exp() * 2.0 * v.off, false),
            6 => ("identity", v.max, v.off, v.whole),
            _ => ("tanh", 1.0, v.off, false),
        };
        // The functions themselves are not quite exact.
        let off = if whole { off } else { off + 8.0 * step(v.dtype) * max };
        self.map(f, &[&v], v.dtype, max, off, whole)
    }

    fn binary(&mut self) -> Option<usize> {
        let a = self.real()?;
        let b = self.beside(&a)?;
        let (a, b) = if self.dice.one_in(2) && !b.name.contains(':') { (b, a) } else { (a, b) };
        let whole = a.whole && b.whole;
        match self.dice.below(7) {
            0 => self.map("sub", &[&a, &b], a.dtype, a.max + b.max, a.off + b.off, whole),
            1 => self.map("max", &[&a, &b], a.dtype, a.max.max(b.max), a.off.max(b.off), whole),
            2 | 3 => {
                let off = a.max * b.off + b.max * a.off;
                self.map("mul", &[&a, &b], a.dtype, a.max * b.max, off, whole)
            }
            4 => {
                let c = self.beside(&a)?;
                self.sum(&[&a, &b, &c])
            }
            _ => self.sum(&[&a, &b]),
        }
    }

    /// A selection by a comparison, which needs exact values.
    fn select(&mut self) -> Option<usize> {
        let a = self.any(|v| v.dtype.is_float() && v.partial.is_none() && v.is_exact())?;
        let b = self.beside(&a).filter(Named::is_exact)?;
        let f = self.dice.pick(&["gt", "le", "eq"]);
        let at = self.map(f, &[&a, &b], DType::Bool, 1.0, 0.0, true)?;
        let condition = self.values[at].clone();
        let x = self.real()?;
        if self.dice.one_in(4) {
            return self.map(&format!("cast.{}", x.dtype), &[&condition], x.dtype, 1.0, 0.0, true);
        }
        let y = self.beside(&x)?;
        self.map("select", &[&condition, &x, &y], x.dtype, x.max.max(y.max), x.off.max(y.off), x.whole && y.whole)
    }

    fn product_of(&mut self, a: &Named, b: &Named, dims: &str) -> Option<usize> {
        let summed: String = a.dims.chars().filter(|l| b.dims.contains(*l) && !dims.contains(*l)).collect();
        let axes: Vec<&'static str> = summed.chars().filter_map(|l| self.letter(l).axis).collect();
        let partial = match axes[..] {
            [] => None,
            [axis] => Some(("sum", axis)),
            _ => return None,
        };
        if !self.is_placed(dims, partial) {
            return None;
        }
        let n = self.size(&summed);
        let max = n * a.max * b.max;
        let whole = a.whole && b.whole;
        // Sums may be computed in f32.
        let sums = if whole && max <= holds(DType::F32) { 0.0 } else { n * max * step(a.dtype).min(step(DType::F32)) };
        let off = n * (a.max * b.off + b.max * a.off + a.off * b.off) + sums;
        let what = format!("einsum \"{},{}->{dims}\"", a.dims, b.dims);
        let made = Named { name: String::new(), dims: dims.into(), dtype: a.dtype, partial, max, off, whole };
        self.line(&what, &[a, b], made)
    }

    /// A product, often followed by the operations that become its epilogue.
    fn product(&mut self) -> Option<usize> {
        let a = self.real()?;
        let (dtype, of_a) = (a.dtype, a.dims.clone());
        let b = self.any(|o| {
            o.dtype == dtype && o.partial.is_none() && (of_a.is_empty() || o.dims.chars().any(|l| of_a.contains(l)))
        })?;
        let (mut batch, mut own) = (String::new(), String::new());
        for l in a.dims.chars().chain(b.dims.chars()) {
            let (in_a, in_b) = (a.dims.contains(l), b.dims.contains(l));
            if !(in_a && in_b) {
                own.push(l);
            } else if !batch.contains(l) && self.dice.one_in(3) {
                batch.push(l);
            }
        }
        let dims = self.dice.shuffled(&(batch + &own));
        if dims.len() > 4 {
            return None;
        }
        let first = self.product_of(&a, &b, &dims)?;
        if self.dice.one_in(2) {
            return Some(first);
        }
        // More products of the same kind, possibly with something between them, and their sum.
        let mut terms = vec![self.values[first].clone()];
        for _ in 0..self.dice.pick(&[0usize, 1, 1, 1, 2]) {
            let (x, y) = match self.dice.below(3) {
                0 => (b.clone(), a.clone()),
                1 => (a.clone(), self.like(&b)?),
                _ => (self.like(&a)?, b.clone()),
            };
            if self.dice.one_in(4) {
                self.anything();
            }
            let dims = if self.dice.one_in(6) { self.dice.shuffled(&dims) } else { dims.clone() };
            let at = self.product_of(&x, &y, &dims)?;
            terms.push(self.values[at].clone());
        }
        if let Some(bias) = self.beside(&terms[0]).filter(|_| terms[0].partial.is_none() && self.dice.one_in(2)) {
            terms.push(bias);
        }
        if self.dice.one_in(10) {
            terms.push(terms[0].clone());
        }
        if self.dice.one_in(3) {
            terms.reverse();
        }
        if terms.len() > 1 && terms.iter().all(|t| t.partial == terms[0].partial) {
            let of: Vec<&Named> = terms.iter().collect();
            return self.sum(&of);
        }
        Some(first)
    }

    /// Another value with the same letters in the same order.
    fn like(&mut self, v: &Named) -> Option<Named> {
        let v = v.clone();
        self.any(|o| o.dims == v.dims && o.dtype == v.dtype && o.partial.is_none())
    }

    fn reduce(&mut self) -> Option<usize> {
        let v = self.real().filter(|v| !v.dims.is_empty())?;
        let all: Vec<char> = v.dims.chars().collect();
        let mut over = String::from(self.dice.pick(&all));
        if self.dice.one_in(4) {
            over = v.dims.clone();
        }
        let kept: String = v.dims.chars().filter(|l| !over.contains(*l)).collect();
        let kept = self.dice.shuffled(&kept);
        let max = self.dice.one_in(4);
        let axes: Vec<&'static str> = over.chars().filter_map(|l| self.letter(l).axis).collect();
        let op = if max { "max" } else { "sum" };
        let partial = match axes[..] {
            [] => None,
            [axis] => Some((op, axis)),
            _ => return None,
        };
        // The maximum of no elements is −∞.
        let n = self.size(&over);
        if max && n == 0.0 || max && partial.is_some() && n < 8.0 {
            return None;
        }
        let (most, off) = if max { (v.max, v.off) } else { (n * v.max, n * v.off + n * n * v.max * step(v.dtype)) };
        let off = if v.whole && v.is_exact() && (max || most <= holds(v.dtype)) { 0.0 } else { off };
        let what = format!("reduce_{op} \"{}->{kept}\"", v.dims);
        let made = Named { name: String::new(), dims: kept, dtype: v.dtype, partial, max: most, off, whole: v.whole };
        self.line(&what, &[&v], made)
    }

    fn cast(&mut self) -> Option<usize> {
        let v = self.real()?;
        let to = self.dice.pick(&self.dtypes.clone());
        self.map(&format!("cast.{to}"), &[&v], to, v.max, v.off, v.whole)
    }

    /// A view, or a reshape.
    fn view(&mut self) -> Option<usize> {
        let v = self.real()?;
        let free: Vec<usize> =
            (0..v.dims.len()).filter(|&d| self.letter(v.dims.chars().nth(d).unwrap()).axis.is_none()).collect();
        if free.is_empty() {
            return None;
        }
        let d = self.dice.pick(&free);
        let letter = v.dims.chars().nth(d).unwrap();
        let size = self.letter(letter).size;
        let with = |new: &str| format!("{}{new}{}", &v.dims[..d], &v.dims[d + 1..]);
        let (what, dims) = match self.dice.below(4) {
            0 if size > 0 => (format!("index dim={d} index={}", self.dice.below(size)), with("")),
            1 if size > 1 => {
                let (start, step) = (self.dice.below(2), 1 + self.dice.below(2));
                let new = self.new_letter((size - start).div_ceil(step), None)?;
                (format!("slice dim={d} start={start} step={step}"), with(&new.to_string()))
            }
            2 if !self.axes.is_empty() => {
                let axis = self.dice.pick(&self.axes.clone());
                let new = self.twin(letter, Some(axis))?;
                (format!("shard_slice {axis} dim={d}"), with(&new.to_string()))
            }
            _ if v.dims.chars().all(|l| self.letter(l).axis.is_none()) => {
                let new = self.new_letter(self.size(&v.dims) as usize, None)?;
                ("reshape".into(), new.to_string())
            }
            _ => return None,
        };
        if !self.is_placed(&dims, None) {
            return None;
        }
        self.line(&what, &[&v], Named { dims, ..v.clone() })
    }

    /// A collective.
    fn collective(&mut self) -> Option<usize> {
        let partial = self.any(|v| v.partial.is_some());
        if let Some(v) = partial.filter(|_| !self.dice.one_in(4)) {
            return self.reduced(&v);
        }
        let v = self.real()?;
        let cut: Vec<(usize, char)> =
            v.dims.chars().enumerate().filter(|(_, l)| self.letter(*l).axis.is_some()).collect();
        if cut.is_empty() {
            let axis = self.dice.pick(&self.axes.clone());
            let partial = Some(("sum", axis));
            let what = format!("to_partial {axis} sum");
            return if self.is_placed(&v.dims, partial) {
                self.line(&what, &[&v], Named { partial, ..v.clone() })
            } else {
                None
            };
        }
        let (d, letter) = self.dice.pick(&cut);
        let axis = self.letter(letter).axis?;
        let new = self.twin(letter, None)?;
        let mut dims: Vec<char> = v.dims.chars().collect();
        dims[d] = new;
        let open: Vec<usize> = (0..dims.len()).filter(|&e| e != d && self.letter(dims[e]).axis.is_none()).collect();
        if !open.is_empty() && self.dice.one_in(3) {
            let e = self.dice.pick(&open);
            dims[e] = self.twin(dims[e], Some(axis))?;
            let what = format!("all_to_all {axis} from={d} to={e}");
            return self.line(&what, &[&v], Named { dims: dims.into_iter().collect(), ..v.clone() });
        }
        let what = format!("all_gather {axis} dim={d}");
        self.line(&what, &[&v], Named { dims: dims.into_iter().collect(), ..v.clone() })
    }

    /// Sums a partial value.
    fn reduced(&mut self, v: &Named) -> Option<usize> {
        let (op, axis) = v.partial?;
        let open: Vec<(usize, char)> =
            v.dims.chars().enumerate().filter(|(_, l)| self.letter(*l).axis.is_none()).collect();
        if !open.is_empty() && op == "sum" && self.dice.one_in(3) {
            let (d, letter) = self.dice.pick(&open);
            let new = self.twin(letter, Some(axis))?;
            let mut dims: Vec<char> = v.dims.chars().collect();
            dims[d] = new;
            let what = format!("reduce_scatter {axis} sum dim={d}");
            return self.line(&what, &[v], Named { dims: dims.into_iter().collect(), partial: None, ..v.clone() });
        }
        let what = format!("all_reduce {axis} {op}");
        self.line(&what, &[v], Named { partial: None, ..v.clone() })
    }

    /// A sum of partial values, or a partial value times another value.
    fn of_partial(&mut self) -> Option<usize> {
        let a = self.any(|v| v.partial.is_some_and(|p| p.0 == "sum"))?;
        let (partial, dtype) = (a.partial, a.dtype);
        if self.dice.one_in(2) {
            let b = self.any(|o| o.partial == partial && o.dtype == dtype)?;
            return self.sum(&[&a, &b]);
        }
        let b = self.beside(&a)?;
        self.map("mul", &[&a, &b], dtype, a.max * b.max, a.max * b.off + b.max * a.off, a.whole && b.whole)
    }

    fn drawn(&mut self) -> Option<usize> {
        let v = self.real()?;
        let seed = self.any(|v| v.dtype == DType::I64)?;
        let stream = self.count;
        let made = Named { dtype: DType::Bool, max: 1.0, off: 0.0, whole: true, ..v.clone() };
        let at = self.line(&format!("random bernoulli(0.5) stream={stream}"), &[&seed], made)?;
        let kept = self.values[at].clone();
        let zero = Named {
            name: format!("{}:0.0", v.dtype),
            dims: String::new(),
            max: 0.0,
            off: 0.0,
            whole: true,
            ..v.clone()
        };
        self.map("select", &[&kept, &v, &zero], v.dtype, v.max, v.off, v.whole)
    }

    fn anything(&mut self) -> Option<usize> {
        match self.dice.below(24) {
            0..=3 => self.unary(),
            4..=8 => self.binary(),
            9 => self.select(),
            10..=14 => self.product(),
            15 | 16 => self.reduce(),
            17 => self.cast(),
            18 => self.view(),
            19 => self.drawn(),
            20 => self.of_partial(),
            _ if !self.axes.is_empty() => self.collective(),
            _ => self.binary(),
        }
    }

    /// The new value of an input; in half of the cases it is computed from the input's own elements only.
    fn update(&mut self, input: &Named) -> Option<usize> {
        let v = input.clone();
        let other = self.any(|o| {
            o.dtype == v.dtype
                && o.partial.is_none()
                && !o.dims.is_empty()
                && o.dims.chars().all(|l| v.dims.contains(l))
        })?;
        let (f, max, off) = match self.dice.below(3) {
            0 => ("mul", v.max * other.max, v.max * other.off),
            1 => ("sub", v.max + other.max, other.off),
            _ => ("add", v.max + other.max, other.off),
        };
        let what = format!("{f} \"{},{}->{}\"", v.dims, other.dims, v.dims);
        let made = Named { max, off, whole: v.whole && other.whole, ..v.clone() };
        self.line(&what, &[&v, &other], made)
    }
}

struct Program {
    lines: String,
    /// How far each output may be off.
    off: Vec<f64>,
    /// Whether the inputs are integers.
    integers: bool,
    /// Whether some values may be unused.
    some_dead: bool,
}

fn generate(bytes: &[u8]) -> Program {
    let mut dice = Dice { bytes, at: 0 };
    let mesh = dice.pick(&["<>", "<x=2>", "<x=2, y=2>", "<x=3>"]);
    let axes: Vec<&'static str> = ["x", "y"].into_iter().filter(|a| mesh.contains(a)).collect();
    let dtypes = match dice.below(6) {
        0 | 1 => vec![DType::F64],
        2 => vec![DType::F32],
        3 => vec![DType::F32, DType::BF16],
        4 => vec![DType::BF16],
        _ => vec![DType::F64, DType::F32],
    };
    let integers = dice.one_in(2);
    let mut w = Writer {
        dice,
        letters: Vec::new(),
        axes: axes.clone(),
        dtypes: dtypes.clone(),
        origin: String::new(),
        text: format!("mesh {mesh}\n"),
        count: 0,
        values: Vec::new(),
        read: Vec::new(),
    };
    for _ in 0..3 + w.dice.below(2) {
        let size = w.dice.pick(&[1usize, 2, 3, 5, 8, 9, 33]);
        let axis = if axes.is_empty() || w.dice.one_in(2) { None } else { Some(w.dice.pick(&axes)) };
        w.new_letter(size, axis);
    }
    let letters: Vec<char> = w.letters.iter().map(|l| l.letter).collect();
    let mut updatable = Vec::new();
    for i in 0..3 + w.dice.below(4) {
        let mut dims = String::new();
        for _ in 0..w.dice.pick(&[0usize, 1, 1, 2, 2, 2, 3]) {
            let l = w.dice.pick(&letters);
            if !dims.contains(l) && w.is_placed(&format!("{dims}{l}"), None) {
                dims.push(l);
            }
        }
        let kind = w.dice.pick(&["data", "data", "parameter", "state"]);
        let dtype = w.dice.pick(&dtypes);
        let made = Named { name: String::new(), dims, dtype, partial: None, max: 2.0, off: 0.0, whole: integers };
        let at = w.line(&format!("input {kind} \"i{i}\""), &[], made).unwrap();
        // Inputs that are not integers are exact, too.
        w.values[at].off = 0.0;
        if kind != "data" {
            updatable.push((w.values[at].clone(), format!("i{i}")));
        }
    }
    let seed = Named {
        name: String::new(),
        dims: String::new(),
        dtype: DType::I64,
        partial: None,
        max: 5.0,
        off: 0.0,
        whole: true,
    };
    let _ = w.line("input data \"seed\"", &[], seed);
    let stages: &[&str] = match w.dice.below(4) {
        0 => &["forward"],
        1 => &[
            "forward micro 0 in a",
            "backward micro 0 in a",
            "forward micro 1 in a",
            "backward micro 1 in a",
            "optimizer",
        ],
        _ => &["forward", "backward", "optimizer"],
    };
    let each = 2 + w.dice.below(24 / stages.len());
    let mut updates = Vec::new();
    for stage in stages {
        w.origin = format!(" ; {stage}");
        let last = *stage == "optimizer";
        for _ in 0..each {
            let _ = w.anything();
            if (last || w.dice.one_in(8)) && !updatable.is_empty() && w.dice.one_in(3) {
                let at = w.dice.below(updatable.len());
                let (input, name) = updatable.remove(at);
                if let Some(at) = w.update(&input) {
                    // The input keeps its place: other operations read its old value.
                    updates.push((at, name));
                }
            }
        }
    }
    // Unused values become results; in some programs they stay dead.
    let some_dead = w.dice.one_in(6);
    let mut results = Vec::new();
    for i in 0..w.values.len() {
        let wanted = if w.read[i] { w.dice.one_in(12) } else { !some_dead || !w.dice.one_in(4) };
        let is_input = w.text.contains(&format!("%{} = input", w.values[i].name));
        if !wanted || is_input && !w.dice.one_in(8) {
            continue;
        }
        let v = w.values[i].clone();
        let at = if v.partial.is_some() { w.reduced(&v) } else { Some(i) };
        results.extend(at);
    }
    let mut off = Vec::new();
    for (at, name) in updates {
        let _ = writeln!(w.text, "output update \"{name}\" %{}", w.values[at].name);
        off.push(w.values[at].off);
    }
    for (i, at) in results.into_iter().enumerate() {
        let _ = writeln!(w.text, "output result \"r{i}\" %{}", w.values[at].name);
        off.push(w.values[at].off);
    }
    Program { lines: w.text, off, integers, some_dead }
}

/// Inputs between −2 and 2.
fn inputs(graph: &tpc_ir::Graph, integers: bool) -> std::collections::HashMap<InputId, Tensor> {
    let tensor = |(node, id): (_, &InputId)| {
        let ty = &graph.node(node).types[0];
        let count: usize = ty.shape.iter().product();
        let seed = id.to_string().bytes().map(u64::from).sum();
        let number = |i: usize| {
            let n = random::philox(7, seed, i as u64)[0];
            match (ty.dtype.is_float(), integers) {
                (false, _) => f64::from(n % 5),
                (true, true) => f64::from(n % 5) - 2.0,
                (true, false) => f64::from(n % 65) / 16.0 - 2.0,
            }
        };
        (id.clone(), Tensor::new(ty.dtype, ty.shape.clone(), (0..count).map(number).collect()))
    };
    graph.inputs().map(tensor).collect()
}

/// Describes what is wrong with a program.
fn tried(p: &Program) -> Vec<String> {
    let graph = program(&p.lines);
    if graph.outputs.is_empty() {
        return Vec::new();
    }
    let inputs = inputs(&graph, p.integers);
    let want = on_ranks(&graph, &inputs);
    let mut all = Vec::new();
    let mut plans = Vec::new();
    for way in WAYS {
        let plain = lowered(&graph, way, &LowerOptions::plain());
        for rank in plain.iter().filter(|rank| way.0 && idle_loops(rank) > 0) {
            all.push(format!("{way:?}: rank {} has loops that write nothing", rank.rank));
        }
        plans.push(plain.into_iter().next().unwrap());
        let options = LowerOptions { memory_growth: 10.0, ..LowerOptions::default() };
        let got = executed_programs(&graph, lowered(&graph, way, &options), &inputs);
        for ((o, off), (x, y)) in graph.outputs.iter().zip(&p.off).zip(got.iter().zip(&want)) {
            let off = 4.0 * off;
            let far = |(x, y): &(&f64, &f64)| !(x == y || (*x - *y).abs() <= off);
            if let Some((x, y)) = x.data.iter().zip(&y.data).find(far) {
                all.push(format!("{way:?}: {:?} is {x}, not {y} ± {off:e}", o.kind));
            }
        }
    }
    if p.some_dead {
        return all;
    }
    // Recomputation moves no more and holds no more. Epilogues move no more, but the values that an epilogue reads and
    // writes are in memory together with the product's operands.
    let [neither, joined, again, both] = [0, 1, 2, 3].map(|i| (moved_bytes(&plans[i]), most_bytes(&plans[i])));
    let beside = [1, 3].map(|i| largest_product(&plans[i]));
    for (name, new, old, more) in [
        ("computing again", again, neither, 0),
        ("joining", joined, neither, beside[0]),
        ("joining what is computed again", both, again, beside[1]),
    ] {
        if new.0 > old.0 {
            all.push(format!("{name} moves {} bytes, not {}", new.0, old.0));
        }
        if new.1 > old.1 + more {
            all.push(format!("{name} holds {} bytes, not {} + {more}", new.1, old.1));
        }
    }
    all
}

/// The largest number of bytes that a product with an epilogue touches.
fn largest_product(program: &RankProgram) -> usize {
    let with = |s: &&Step| matches!(&s.action, Action::Contract(c) if !c.epilogue.is_empty());
    program.steps.iter().filter(with).map(|s| touched_bytes(&s.action)).max().unwrap_or(0)
}

/// The number of programs; `PROPTEST_CASES` raises it.
const CASES: u32 = 300;

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(CASES),
        max_shrink_iters: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn programs_mean_what_they_say(bytes in proptest::collection::vec(any::<u8>(), 100..400)) {
        let program = generate(&bytes);
        let source = &program.lines;
        let tried = std::panic::catch_unwind(|| tried(&program));
        prop_assert!(tried.is_ok(), "{source}");
        let wrong = tried.unwrap_or_default();
        prop_assert!(wrong.is_empty(), "{wrong:#?}\n{source}");
    }
}
