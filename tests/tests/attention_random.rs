//! Random programs around a softmax: they mean the same with and without attention kernels.

use proptest::prelude::*;
use std::fmt::Write as _;
use tpc_passes::lower::{LowerOptions, lower_with};
use tpc_passes::targets::Target;
use tpc_tests::named::{inputs, program};
use tpc_tests::{executed_programs, on_ranks, wrong};

/// Draws from a list of random bytes.
struct Dice<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Dice<'_> {
    fn below(&mut self, n: usize) -> usize {
        let byte = self.bytes[self.at % self.bytes.len()];
        self.at += 1;
        byte as usize % n
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// The same indices in another order.
    fn shuffled(&mut self, letters: &str) -> String {
        let mut all: Vec<char> = letters.chars().collect();
        if !self.one_in(3) {
            for i in (1..all.len()).rev() {
                let j = self.below(i + 1);
                all.swap(i, j);
            }
        }
        all.into_iter().collect()
    }
}

/// A value: its name, the letters of its dimensions, and the axes over which it is partial.
#[derive(Clone)]
struct Named {
    name: String,
    letters: String,
    partial: Option<&'static str>,
}

struct Writer<'a> {
    dice: Dice<'a>,
    sizes: Vec<(char, usize)>,
    /// The axis that cuts the dimension of each letter.
    axes: Vec<(char, &'static str)>,
    dtype: &'static str,
    text: String,
    count: usize,
}

impl Writer<'_> {
    fn axis(&self, letter: char) -> Option<&'static str> {
        self.axes.iter().find(|a| a.0 == letter).map(|a| a.1)
    }

    fn ty(&self, dtype: &str, letters: &str, partial: Option<&str>) -> String {
        let size = |l: char| self.sizes.iter().find(|s| s.0 == l).unwrap().1;
        let dims: Vec<String> = letters
            .chars()
            .map(|l| format!("{}{}", size(l), self.axis(l).map_or(String::new(), |a| format!("@{a}"))))
            .collect();
        format!("{dtype}[{}]{}", dims.join(", "), partial.map_or(String::new(), |a| format!(" +sum@{a}")))
    }

    fn line(&mut self, dtype: &str, letters: &str, partial: Option<&'static str>, what: &str) -> Named {
        let name = format!("v{}", self.count);
        self.count += 1;
        let ty = self.ty(dtype, letters, partial);
        let _ = writeln!(self.text, "%{name} = {what} : {ty}");
        Named { name, letters: letters.into(), partial }
    }

    fn input(&mut self, name: &str, dtype: &str, letters: &str) -> Named {
        let letters = self.dice.shuffled(letters);
        self.line(dtype, &letters, None, &format!("input data \"{name}\""))
    }

    /// A function of values, with all letters of its operands.
    fn map_of(&mut self, dtype: &str, f: &str, of: &[&Named]) -> Named {
        let mut letters = String::new();
        for v in of {
            let new: String = v.letters.chars().filter(|l| !letters.contains(*l)).collect();
            letters += &new;
        }
        let letters = self.dice.shuffled(&letters);
        let rows: Vec<&str> = of.iter().map(|v| v.letters.as_str()).collect();
        let names: Vec<String> = of.iter().map(|v| value(v)).collect();
        let partial = of.iter().find_map(|v| v.partial);
        let what = format!("{f} \"{}->{letters}\" {}", rows.join(","), names.join(", "));
        self.line(dtype, &letters, partial, &what)
    }

    fn map(&mut self, f: &str, of: &[&Named]) -> Named {
        self.map_of(self.dtype, f, of)
    }

    fn number(&self, x: f64) -> Named {
        Named { name: format!("{}:{x:?}", self.dtype), letters: String::new(), partial: None }
    }

    fn drawn(&mut self, of: &[f64]) -> Named {
        let x = self.dice.pick(of);
        self.number(x)
    }

    fn reduce(&mut self, f: &str, of: &Named, over: char) -> Named {
        let kept: String = of.letters.chars().filter(|l| *l != over).collect();
        let kept = self.dice.shuffled(&kept);
        self.line(self.dtype, &kept, of.partial, &format!("{f} \"{}->{kept}\" {}", of.letters, value(of)))
    }

    fn einsum(&mut self, a: &Named, b: &Named, letters: &str) -> Named {
        let letters = self.dice.shuffled(letters);
        let (a, b) = if self.dice.one_in(2) { (a, b) } else { (b, a) };
        let all: Vec<char> = a.letters.chars().chain(b.letters.chars()).collect();
        let summed = all.iter().filter(|l| !letters.contains(**l)).filter_map(|&l| self.axis(l));
        let axes: Vec<&str> = summed.chain(a.partial).chain(b.partial).collect();
        let partial = match (axes.iter().any(|x| x.contains('a')), axes.iter().any(|x| x.contains('b'))) {
            (true, true) => Some("(a,b)"),
            (true, false) => Some("a"),
            (false, true) => Some("b"),
            (false, false) => None,
        };
        let what = format!("einsum \"{},{}->{letters}\" {}, {}", a.letters, b.letters, value(a), value(b));
        self.line(self.dtype, &letters, partial, &what)
    }

    fn summed(&mut self, v: Named) -> Named {
        match v.partial {
            None => v,
            Some(axis) => {
                let what = format!("all_reduce {axis} sum %{}", v.name);
                self.line(self.dtype, &v.letters.clone(), None, &what)
            }
        }
    }
}

fn value(v: &Named) -> String {
    if v.name.contains(':') { v.name.clone() } else { format!("%{}", v.name) }
}

fn union(a: &str, b: &str) -> String {
    a.chars().chain(b.chars().filter(|l| !a.contains(*l))).collect()
}

fn without(a: &str, letters: &str) -> String {
    a.chars().filter(|l| !letters.contains(*l)).collect()
}

fn renamed(v: &Named, from: char, to: char) -> Named {
    Named { letters: v.letters.replace(from, &to.to_string()), ..v.clone() }
}

/// A program, and the number of its attention kernels, or `None` if that is uncertain.
fn generate(bytes: &[u8]) -> (String, Option<usize>) {
    let dice = Dice { bytes, at: 0 };
    let mut w = Writer { dice, sizes: vec![], axes: vec![], dtype: "f32", text: String::new(), count: 0 };
    w.dtype = w.dice.pick(&["f32", "f64"]);
    for (letter, of) in [
        ('h', &[1usize, 2, 3][..]),
        ('n', &[1, 2, 3]),
        ('r', &[1, 2, 3, 7, 70, 130]),
        ('c', &[1, 2, 7, 33, 70]),
        ('i', &[1, 3, 4, 9]),
        ('w', &[1, 2, 4, 8, 17]),
    ] {
        let size = w.dice.pick(of);
        w.sizes.push((letter, size));
    }
    // Which operand has which batch dimensions.
    let mut sets = [String::from("ri"), String::from("ci"), String::from("cw")];
    for letter in ['h', 'n'] {
        let which = w.dice.pick(&[7usize, 7, 7, 0, 1, 2, 3, 5, 6, 4]);
        for (i, set) in sets.iter_mut().enumerate() {
            if which >> i & 1 == 1 {
                set.push(letter);
            }
        }
    }
    let [of_q, of_k, of_v] = sets;
    let scores = without(&union(&of_q, &of_k), "i");
    let of_out = without(&union(&scores, &of_v), "c");
    let own = without(&of_v, &scores);
    // Aliases: the same value as query and key, as key and value.
    let size = |w: &Writer<'_>, l: char| w.sizes.iter().find(|s| s.0 == l).unwrap().1;
    let same_qk = w.dice.one_in(6) && without(&of_q, "r") == without(&of_k, "c");
    let same_kv = w.dice.one_in(6) && without(&of_k, "i") == without(&of_v, "w");
    for (same, from, to) in [(same_qk, 'r', 'c'), (same_kv, 'i', 'w')] {
        if same {
            let n = size(&w, from);
            w.sizes.iter_mut().filter(|s| s.0 == to).for_each(|s| s.1 = n);
        }
    }
    // The mesh: one or two axes, over different letters.
    let mesh = w.dice.pick(&["<>", "<>", "<a=2>", "<a=3>", "<a=2, b=2>", "<a=3, b=2>"]);
    let all = union(&scores, "hnrw");
    let mut free: Vec<char> = "hnrw"
        .chars()
        .filter(|l| union(&all, &of_v).contains(*l) && !(same_qk && *l == 'r') && !(same_kv && *l == 'w'))
        .collect();
    free.retain(|l| scores.contains(*l) || of_v.contains(*l));
    for axis in ["a", "b"] {
        if mesh.contains(axis) && !free.is_empty() && !w.dice.one_in(5) {
            let at = w.dice.below(free.len());
            w.axes.push((free.remove(at), axis));
        }
    }
    let _ = writeln!(w.text, "mesh {mesh}");
    let q = w.input("q", w.dtype, &of_q);
    let k = if same_qk { renamed(&q, 'r', 'c') } else { w.input("k", w.dtype, &of_k) };
    let v = if same_kv { renamed(&k, 'i', 'w') } else { w.input("v", w.dtype, &of_v) };
    // The score.
    let product = w.einsum(&q, &k, &scores);
    let mut score = product.clone();
    let scale = w.dice.one_in(2);
    if scale {
        score = w.map("mul", &[&score, &w.number(0.25)]);
    }
    let cap = w.dice.one_in(5);
    let mut tanh = score.clone();
    if cap {
        tanh = w.map("tanh", &[&score]);
        score = w.map("mul", &[&tanh, &w.number(3.0)]);
    }
    let mut bias = None;
    if w.dice.one_in(4) {
        let letters = w.dice.pick(&["rc", "c", "r", "rcb"]);
        let letters = if letters == "rcb" { scores.clone() } else { letters.to_string() };
        let b = w.input("bias", w.dtype, &letters);
        score = w.map("add", &[&score, &b]);
        bias = Some(b);
    }
    let mut mask = None;
    let kind = w.dice.below(6);
    if kind < 5 {
        let row = w.line("i64", "r", None, "iota");
        let column = w.line("i64", "c", None, "iota");
        let mut hidden = match kind {
            0 => w.map_of("bool", "gt", &[&column, &row]),
            // The last rows see the last columns.
            1 => {
                let seven = Named { name: "i64:3".into(), letters: String::new(), partial: None };
                let shifted = w.map_of("i64", "add", &[&row, &seven]);
                w.map_of("bool", "gt", &[&column, &shifted])
            }
            // A window, in which rows after the last column see nothing.
            2 => {
                let seven = Named { name: "i64:9".into(), letters: String::new(), partial: None };
                let early = w.map_of("i64", "sub", &[&row, &seven]);
                let early = w.map_of("bool", "lt", &[&column, &early]);
                let late = w.map_of("bool", "gt", &[&column, &row]);
                w.map_of("bool", "or", &[&early, &late])
            }
            // Another mask in each batch.
            3 if scores.contains('h') => {
                let batch = w.line("i64", "h", None, "iota");
                let sum = w.map_of("i64", "add", &[&row, &batch]);
                w.map_of("bool", "gt", &[&column, &sum])
            }
            _ => w.input("pad", "bool", "c"),
        };
        if w.dice.one_in(4) {
            let letters = if scores.contains('h') { "hc" } else { "c" };
            let pad = w.input("pad2", "bool", letters);
            hidden = w.map_of("bool", "or", &[&hidden, &pad]);
        }
        let small = w.drawn(&[-1e30, -1e4, -3.0]);
        if w.dice.one_in(3) {
            // -1e4 would round the value that it is added to.
            let small = w.drawn(&[-1e30, -3.0]);
            let zero = w.number(0.0);
            let added = w.map("select", &[&hidden, &small, &zero]);
            score = w.map("add", &[&score, &added]);
        } else {
            score = w.map("select", &[&hidden, &small, &score]);
            mask = Some(hidden);
        }
    }
    // The softmax.
    let max = w.reduce("reduce_max", &score, 'c');
    let shifted = w.map("sub", &[&score, &max]);
    let exp = w.map("exp", &[&shifted]);
    let sum = w.reduce("reduce_sum", &exp, 'c');
    let p = w.map("div", &[&exp, &sum]);
    let mut weighted = p.clone();
    let mut weight = None;
    if w.dice.one_in(3) {
        let drawn = w.dice.shuffled(&scores);
        let seed = w.line("i64", "", None, "input scalar \"seed\"");
        let kept = w.line("bool", &drawn, None, &format!("random bernoulli(0.75) stream=5 %{}", seed.name));
        let kept = w.map_of(w.dtype, &format!("cast.{}", w.dtype), &[&kept]);
        weighted = w.map("mul", &[&weighted, &kept]);
        weighted = w.map("mul", &[&weighted, &w.number(1.5)]);
        weight = Some(kept);
    }
    let out = w.einsum(&weighted, &v, &of_out);
    let mut results = vec![("o", out)];
    let mut internal = vec![score.clone(), exp.clone(), p.clone(), weighted.clone()];
    let backward = !w.dice.one_in(4);
    let mut want = [false; 3];
    let mut late = false;
    if backward {
        want = [(); 3].map(|()| !w.dice.one_in(4));
        let g = w.input("g", w.dtype, &of_out);
        // The gradient of the value comes before the others or after them.
        let early = w.dice.one_in(2);
        if want[2] && early {
            let made = w.einsum(&weighted, &g, &of_v);
            results.push(("dv", made));
        }
        if want[0] || want[1] {
            let mut dp = w.einsum(&g, &v, &scores);
            internal.push(dp.clone());
            if let Some(kept) = &weight {
                dp = w.map("mul", &[&dp, &w.number(1.5)]);
                dp = w.map("mul", &[&dp, kept]);
            }
            let ds = match w.dice.below(3) {
                0 => {
                    let t = w.map("mul", &[&p, &dp]);
                    let r = w.reduce("reduce_sum", &t, 'c');
                    let u = w.map("sub", &[&dp, &r]);
                    w.map("mul", &[&u, &p])
                }
                1 => {
                    let over = w.map("recip", &[&sum]);
                    let a = w.map("mul", &[&dp, &over]);
                    let negative = w.map("neg", &[&exp]);
                    let square = w.map("mul", &[&sum, &sum]);
                    let b = w.map("div", &[&negative, &square]);
                    let t = w.map("mul", &[&dp, &b]);
                    let r = w.reduce("reduce_sum", &t, 'c');
                    let u = w.map("add", &[&a, &r]);
                    w.map("mul", &[&exp, &u])
                }
                _ => {
                    let ed = w.map("mul", &[&exp, &dp]);
                    let t = w.reduce("reduce_sum", &ed, 'c');
                    let square = w.map("mul", &[&sum, &sum]);
                    let t = w.map("div", &[&t, &square]);
                    let a = w.map("div", &[&ed, &sum]);
                    let b = w.map("mul", &[&exp, &t]);
                    w.map("sub", &[&a, &b])
                }
            };
            internal.push(ds.clone());
            let mut d = ds;
            if let Some(hidden) = &mask {
                let zero = w.number(0.0);
                d = if d.partial.is_some() {
                    // It is read but computed after the value's gradient: nothing is found.
                    late = want[2] && early;
                    let seen = w.map_of("bool", "not", &[hidden]);
                    let seen = w.map_of(w.dtype, &format!("cast.{}", w.dtype), &[&seen]);
                    w.map("mul", &[&d, &seen])
                } else {
                    w.map("select", &[hidden, &zero, &d])
                };
            }
            if cap {
                d = w.map("mul", &[&d, &w.number(3.0)]);
                let square = w.map("mul", &[&tanh, &tanh]);
                let slope = w.map("sub", &[&w.number(1.0), &square]);
                d = w.map("mul", &[&d, &slope]);
            }
            if scale {
                d = w.map("mul", &[&d, &w.number(0.25)]);
            }
            internal.push(d.clone());
            if want[0] {
                let made = w.einsum(&d, &k, &of_q);
                results.push(("dq", made));
            }
            if want[1] {
                let made = w.einsum(&d, &q, &of_k);
                results.push(("dk", made));
            }
        }
        if want[2] && !early {
            let made = w.einsum(&weighted, &g, &of_v);
            results.push(("dv", made));
        }
    }
    // Another operation reads one of the values.
    let more = w.dice.one_in(6);
    if more {
        let at = w.dice.below(internal.len());
        results.push(("more", internal.swap_remove(at)));
    }
    let _ = bias;
    // One of several axes over which a value is summed.
    let results: Vec<(&str, Named)> = results.into_iter().map(|(name, v)| (name, w.summed(v))).collect();
    for (name, v) in results {
        let _ = writeln!(w.text, "output result \"{name}\" %{}", v.name);
    }
    let _ = own;
    let expected = match (more || late, backward && want.contains(&true)) {
        (true, _) => None,
        (false, false) => Some(1),
        // Only the gradient of the value is computed: the gradient of the result is unknown.
        (false, true) if !want[0] && !want[1] => Some(0),
        (false, true) => Some(2),
    };
    (w.text, expected)
}

/// The errors of a program, and the number of its attention kernels.
fn tried(source: &str) -> (Vec<String>, usize) {
    let graph = program(source);
    let mut inputs = inputs(&graph);
    // If scores are far apart, a difference loses most of its digits in f32.
    for tensor in inputs.values_mut().filter(|t| t.dtype.is_float()) {
        tensor.data.iter_mut().for_each(|x| *x = tensor.dtype.round(*x * 0.4));
    }
    let want = on_ranks(&graph, &inputs);
    let tolerance = if source.contains("f64") { 1e-10 } else { 2e-3 };
    let (mut found, mut all) = (0, Vec::new());
    for attention in [true, false] {
        let programs =
            lower_with(&graph, Target::cpu(), &LowerOptions { attention, ..LowerOptions::default() }).unwrap();
        if attention {
            found = programs[0].steps.iter().filter(|s| s.label.starts_with("attention")).count();
        }
        let got = executed_programs(&graph, programs, &inputs);
        all.extend(wrong(&graph, &got, &want, tolerance).into_iter().map(|w| format!("attention {attention}: {w}")));
    }
    (all, found)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, max_shrink_iters: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn programs_mean_what_they_say(bytes in proptest::collection::vec(any::<u8>(), 60..240)) {
        let (source, expected) = generate(&bytes);
        let tried = std::panic::catch_unwind(|| tried(&source));
        prop_assert!(tried.is_ok(), "{source}");
        let (wrong, found) = tried.unwrap_or_default();
        prop_assert!(wrong.is_empty(), "{wrong:?}, {found} kernels\n{source}");
        prop_assert!(expected.is_none_or(|n| n == found), "{found} kernels, not {expected:?}\n{source}");
    }
}
