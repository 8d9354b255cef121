//! The walk from a product to everything that is computed from it.

use super::operand::{Dim, Operand};
use super::polynomial::{Base, Monomial, Polynomial, product};
use petgraph::graph::NodeIndex;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use tpc_ir::{Graph, MapFn, Op, ReduceOp, Subscripts, Value};

/// The greatest number of functions of a product that the walk visits. A residual stream has thousands.
const MOST: usize = 256;
/// The greatest depth to which functions of the incoming gradient are followed.
const DEEPEST: usize = 6;

/// The form of a value that depends on the product.
#[derive(Clone, Debug, PartialEq)]
enum Form {
    /// An elementwise function of the product.
    Score,
    /// The maximum of a score over the columns.
    Max(NodeIndex),
    /// A score minus its maximum.
    Shifted(NodeIndex),
    /// A polynomial in the exponentials.
    Polynomial(Polynomial),
    /// The gradient of the score.
    Root,
    /// An elementwise function of the gradient of the score that is 0 where this gradient is.
    Gradient,
}

/// The state of the walk: what has been recognized so far.
pub(super) struct Walk<'a> {
    graph: &'a Graph,
    pub(super) product: NodeIndex,
    /// The form of every value that was recognized, and the dimensions of the scores that its dimensions are.
    forms: BTreeMap<NodeIndex, (Form, Vec<usize>)>,
    pub(super) query: Operand,
    pub(super) key: Operand,
    pub(super) columns: Option<usize>,
    /// The score whose exponentials are the softmax.
    score: Option<NodeIndex>,
    value: Option<Operand>,
    out: Option<Operand>,
    /// The weighted probabilities that the second product reads, and their weight.
    weighted: Option<(NodeIndex, Monomial, f64)>,
    /// `grad_out · value`.
    incoming: Option<NodeIndex>,
    /// The functions of `incoming` that do not depend on the scores.
    between: BTreeSet<NodeIndex>,
    grad_out: Option<Operand>,
    /// Products that were visited before `grad_out` was known.
    early: Vec<NodeIndex>,
    /// The gradient of the product that the last products read, before conversions.
    gradient: Option<Value>,
    grad_query: Option<Operand>,
    grad_key: Option<Operand>,
    grad_value: Option<Operand>,
}

/// Both operands of a product. Dimensions with summed letters are not dimensions of the scores.
fn operands_of(graph: &Graph, node: NodeIndex, subs: &Subscripts) -> Option<[Operand; 2]> {
    let mut own: Vec<u8> = Vec::new();
    let operands = graph.operands(node);
    let mut operand = |i: usize| {
        let dims = subs.operands[i].iter().map(|l| match subs.result.iter().position(|r| r == l) {
            Some(d) => Some(Dim::Score(d)),
            None if !subs.operands[1 - i].contains(l) => None,
            None => {
                let at = own.iter().position(|o| o == l).unwrap_or_else(|| {
                    own.push(*l);
                    own.len() - 1
                });
                Some(Dim::Own(at))
            }
        });
        Some(Operand { value: operands[i], dims: dims.collect::<Option<_>>()? })
    };
    let both = [operand(0)?, operand(1)?];
    (!own.is_empty()).then_some(both)
}

impl<'a> Walk<'a> {
    /// Walks from a product. `None` if no attention begins with it.
    pub(super) fn from(graph: &'a Graph, product: NodeIndex) -> Option<Self> {
        let node = graph.node(product);
        let Op::Einsum { subs } = &node.op else { return None };
        if !node.types[0].dtype.is_float() {
            return None;
        }
        let [query, key] = operands_of(graph, product, subs)?;
        let all = (0..node.types[0].rank()).collect();
        let mut walk = Walk {
            graph,
            product,
            forms: BTreeMap::from([(product, (Form::Score, all))]),
            query,
            key,
            columns: None,
            score: None,
            value: None,
            out: None,
            weighted: None,
            incoming: None,
            between: BTreeSet::new(),
            grad_out: None,
            early: Vec::new(),
            gradient: None,
            grad_query: None,
            grad_key: None,
            grad_value: None,
        };
        walk.run();
        (walk.out.is_some() && walk.rows_are_clear()).then_some(walk)
    }

    fn run(&mut self) {
        let mut next: BinaryHeap<Reverse<NodeIndex>> =
            self.graph.users(self.product).map(|(u, _)| Reverse(u)).collect();
        let mut last = None;
        while let Some(Reverse(node)) = next.pop() {
            if last == Some(node) || self.forms.len() > MOST {
                continue;
            }
            last = Some(node);
            let operands = self.graph.operands(node);
            let form = match &self.graph.node(node).op {
                Op::Map { f, subs } => self.map(*f, subs, &operands),
                Op::Reduce { op, subs } => self.reduce(*op, subs, operands[0]),
                Op::Einsum { subs } => {
                    self.end(node, subs, &operands);
                    None
                }
                _ => None,
            };
            if let Some(form) = form {
                if let Form::Shifted(score) = form.0 {
                    self.score.get_or_insert(score);
                }
                self.forms.insert(node, form);
                next.extend(self.graph.users(node).map(|(u, _)| Reverse(u)));
            }
        }
        // The gradient of `value` may be computed before the others.
        for node in std::mem::take(&mut self.early) {
            if let Op::Einsum { subs } = &self.graph.node(node).op {
                self.end(node, subs, &self.graph.operands(node));
            }
        }
    }

    fn form(&self, value: Value) -> Option<&(Form, Vec<usize>)> {
        self.forms.get(&value.node)
    }

    fn rank(&self) -> usize {
        self.graph.node(self.product).types[0].rank()
    }

    fn map(&mut self, f: MapFn, subs: &Subscripts, operands: &[Value]) -> Option<(Form, Vec<usize>)> {
        let dims_of = self.letters(subs, operands)?;
        let dims: Vec<usize> = subs.result.iter().map(|l| dims_of.get(l).copied()).collect::<Option<_>>()?;
        let forms: Vec<Option<Form>> = operands.iter().map(|&v| self.form(v).map(|f| f.0.clone())).collect();
        let known = || forms.iter().flatten();
        let float = self.graph.ty(*operands.first()?).dtype.is_float();
        let form = match (f, forms.as_slice()) {
            (MapFn::Sub, [Some(Form::Score), Some(Form::Max(of))]) if operands[0].node == *of => Form::Shifted(*of),
            (MapFn::Cast(to), [Some(Form::Shifted(of))]) if to.is_float() => Form::Shifted(*of),
            (MapFn::Exp, [Some(Form::Shifted(of))]) if self.score.is_none_or(|s| s == *of) => {
                Form::Polynomial(Polynomial::base(Base::Exp))
            }
            _ if known().all(|f| *f == Form::Score) => Form::Score,
            _ if known().all(|f| matches!(f, Form::Score | Form::Root | Form::Gradient)) => {
                let nothing = |v: &Value| self.graph.fill_of(*v) == Some(0.0);
                let zero = |i: usize| {
                    matches!(forms[i], Some(Form::Root | Form::Gradient)) || operands.get(i).is_some_and(nothing)
                };
                if !stays_zero(f, operands.len(), zero) {
                    return None;
                }
                Form::Gradient
            }
            (MapFn::Cast(to), _) if !to.is_float() || !float => return None,
            (f, _) => {
                let rows: Vec<Vec<usize>> = subs
                    .operands
                    .iter()
                    .map(|row| row.iter().map(|l| dims_of.get(l).copied()).collect::<Option<_>>())
                    .collect::<Option<_>>()?;
                let x = operands.iter().zip(rows).map(|(&v, d)| self.polynomial(v, d)).collect::<Option<Vec<_>>>()?;
                let made = arithmetic(f, &x)?;
                if self.is_gradient_of_score(&made) { Form::Root } else { Form::Polynomial(made) }
            }
        };
        Some((form, dims))
    }

    /// The dimension of the scores of each letter. If no recognized operand has a letter of the result, and there is
    /// only one such letter, it is the remaining dimension.
    fn letters(&self, subs: &Subscripts, operands: &[Value]) -> Option<BTreeMap<u8, usize>> {
        let mut dims_of: BTreeMap<u8, usize> = BTreeMap::new();
        for (&v, row) in operands.iter().zip(&subs.operands) {
            let Some((_, dims)) = self.form(v) else { continue };
            for (&l, &d) in row.iter().zip(dims) {
                if *dims_of.entry(l).or_insert(d) != d {
                    return None;
                }
            }
        }
        let missing: Vec<u8> = subs.result.iter().copied().filter(|l| !dims_of.contains_key(l)).collect();
        if let [letter] = missing[..]
            && subs.result.len() == self.rank()
        {
            let free = (0..self.rank()).find(|d| !dims_of.values().any(|x| x == d))?;
            dims_of.insert(letter, free);
        }
        let distinct: BTreeSet<_> = dims_of.values().collect();
        (distinct.len() == dims_of.len()).then_some(dims_of)
    }

    fn polynomial(&mut self, value: Value, dims: Vec<usize>) -> Option<Polynomial> {
        match self.form(value) {
            Some((Form::Polynomial(p), _)) => Some(p.clone()),
            Some(_) => None,
            None => Some(self.outside(value, dims, 0)),
        }
    }

    fn reduce(&mut self, op: ReduceOp, subs: &Subscripts, operand: Value) -> Option<(Form, Vec<usize>)> {
        let (form, dims) = self.form(operand)?.clone();
        let at = |l: &u8| subs.operands[0].iter().position(|o| o == l).map(|i| dims[i]);
        let kept: Vec<usize> = subs.result.iter().map(at).collect::<Option<_>>()?;
        let reduced: Vec<usize> = dims.iter().copied().filter(|d| !kept.contains(d)).collect();
        let [column] = reduced[..] else { return None };
        match (op, form) {
            (ReduceOp::Max, Form::Score) if self.columns.is_none_or(|c| c == column) => {
                if self.columns.is_none() {
                    match (self.query.has(column), self.key.has(column)) {
                        (false, true) => {}
                        (true, false) => std::mem::swap(&mut self.query, &mut self.key),
                        _ => return None,
                    }
                    self.columns = Some(column);
                }
                Some((Form::Max(operand.node), kept))
            }
            (ReduceOp::Sum, Form::Polynomial(p)) if self.columns == Some(column) => {
                Some((Form::Polynomial(self.sum(&p, column)?), kept))
            }
            _ => None,
        }
    }

    /// The sum of a polynomial over the columns.
    fn sum(&self, p: &Polynomial, column: usize) -> Option<Polynomial> {
        if p.equals(&Polynomial::base(Base::Exp)) {
            return Some(Polynomial::base(Base::Sum));
        }
        // The terms must be multiples of p · weight · gradient. Factors that do not vary along the columns are taken
        // out of the sum.
        let (_, weight, factor) = self.weighted.as_ref()?;
        let mut inner = weight.clone();
        inner.extend([(Base::Exp, 1), (Base::Sum, -1), (Base::Gradient, 1)]);
        let mut all = Polynomial::default();
        for (monomial, x) in &p.0 {
            let mut rest = product(monomial, &inner, -1);
            let varies = |base: &Base| match base {
                Base::Exp | Base::Gradient => true,
                Base::Sum | Base::Inner => false,
                Base::Other(_, dims) => dims.contains(&column),
            };
            if rest.keys().any(varies) {
                return None;
            }
            *rest.entry(Base::Inner).or_insert(0) += 1;
            all = all.plus(Polynomial::of(rest, x / factor));
        }
        Some(all)
    }

    /// Whether a polynomial is `p · (weight · gradient − Σ p · weight · gradient)`.
    fn is_gradient_of_score(&self, p: &Polynomial) -> bool {
        let Some((_, weight, factor)) = &self.weighted else { return false };
        let probability = Monomial::from([(Base::Exp, 1), (Base::Sum, -1)]);
        let mut first = product(&probability, weight, 1);
        first.insert(Base::Gradient, 1);
        let mut second = probability;
        second.insert(Base::Inner, 1);
        p.equals(&Polynomial::of(first, *factor).plus(Polynomial::of(second, -1.0)))
    }

    /// The polynomial of a value that was not recognized. It is expanded if it depends on the incoming gradient. The
    /// first product that can be the incoming gradient is taken as such.
    fn outside(&mut self, value: Value, dims: Vec<usize>, depth: usize) -> Polynomial {
        if let Some(x) = self.graph.fill_of(value) {
            return Polynomial::constant(x);
        }
        let node = value.node;
        match &self.graph.node(node).op {
            Op::Einsum { subs } if self.incoming.is_none_or(|g| g == node) => {
                // If it is read along other dimensions, it is a different value.
                if let Some(grad_out) = self.grad_out_of(node, subs, &dims)
                    && self.grad_out.as_ref().is_none_or(|g| *g == grad_out)
                {
                    self.incoming = Some(node);
                    self.grad_out = Some(grad_out);
                    return Polynomial::base(Base::Gradient);
                }
            }
            Op::Map { f, subs } if depth < DEEPEST && self.form(value).is_none() => {
                let mut x = Vec::new();
                for (operand, row) in self.graph.operands(node).into_iter().zip(&subs.operands) {
                    let at = |l: &u8| subs.result.iter().position(|r| r == l).map(|d| dims[d]);
                    x.extend(
                        row.iter().map(at).collect::<Option<Vec<_>>>().map(|of| self.outside(operand, of, depth + 1)),
                    );
                }
                let made = arithmetic(*f, &x).filter(|made| made.0.keys().any(|m| m.contains_key(&Base::Gradient)));
                if let Some(made) = made {
                    self.between.insert(node);
                    return made;
                }
            }
            _ => {}
        }
        Polynomial::base(Base::Other(value, dims))
    }

    /// The other operand of a product with `value`, if the product sums over the dimensions of `value` that the scores
    /// do not have.
    fn grad_out_of(&self, node: NodeIndex, subs: &Subscripts, dims: &[usize]) -> Option<Operand> {
        let value = self.value.as_ref()?;
        let both = operands_of(self.graph, node, subs)?;
        let (mine, other) = match &both {
            [a, b] if a.value == value.value => (a, b),
            [a, b] if b.value == value.value => (b, a),
            _ => return None,
        };
        // For each summed letter, the dimension of `value` that it is.
        let mut own: BTreeMap<usize, usize> = BTreeMap::new();
        for (here, there) in mine.dims.iter().zip(&value.dims) {
            match (here, there) {
                (Dim::Score(d), Dim::Score(s)) if dims[*d] == *s => {}
                (Dim::Own(o), Dim::Own(w)) => _ = own.insert(*o, *w),
                _ => return None,
            }
        }
        let dims = other.dims.iter().map(|dim| match dim {
            Dim::Score(d) if Some(dims[*d]) == self.columns => None,
            Dim::Score(d) => Some(Dim::Score(dims[*d])),
            Dim::Own(o) => own.get(o).map(|&w| Dim::Own(w)),
        });
        Some(Operand { value: other.value, dims: dims.collect::<Option<_>>()? })
    }

    /// Examines a product of a recognized value: it may compute the result of the attention or one of the gradients.
    fn end(&mut self, node: NodeIndex, subs: &Subscripts, operands: &[Value]) {
        let inside: Vec<usize> = (0..2).filter(|&i| self.form(operands[i]).is_some()).collect();
        let [mine] = inside[..] else { return };
        let Some((form, dims)) = self.form(operands[mine]).cloned() else { return };
        let other = Operand { value: operands[1 - mine], dims: Vec::new() };
        match form {
            Form::Polynomial(p) if self.out.is_none() => self.second_product(node, subs, mine, &dims, &p, other),
            Form::Polynomial(p) => {
                if self.grad_out.is_none() {
                    return self.early.push(node);
                }
                let Some(grad_out) = self.grad_out.clone().filter(|g| g.value == other.value) else { return };
                let Some(value) = self.value.clone() else { return };
                let weighted = self.weighted.as_ref().is_some_and(|(_, weight, factor)| {
                    let monomial = product(&Monomial::from([(Base::Exp, 1), (Base::Sum, -1)]), weight, 1);
                    p.equals(&Polynomial::of(monomial, *factor))
                });
                if let Some(result) = self.result(node, subs, mine, &dims, &grad_out, &value).filter(|_| weighted) {
                    self.grad_value.get_or_insert(result);
                }
            }
            Form::Root | Form::Gradient => {
                let root = self.unconverted(operands[mine]);
                if *self.gradient.get_or_insert(root) != root {
                    return;
                }
                let (query, key) = (self.query.clone(), self.key.clone());
                if key.value == other.value
                    && let Some(result) = self.result(node, subs, mine, &dims, &key, &query)
                {
                    self.grad_query.get_or_insert(result);
                } else if query.value == other.value
                    && let Some(result) = self.result(node, subs, mine, &dims, &query, &key)
                {
                    self.grad_key.get_or_insert(result);
                }
            }
            Form::Score | Form::Max(_) | Form::Shifted(_) => {}
        }
    }

    /// The value before conversions of its element type.
    fn unconverted(&self, value: Value) -> Value {
        match &self.graph.node(value.node).op {
            Op::Map { f: MapFn::Cast(to), subs }
                if to.is_float()
                    && subs.is_elementwise()
                    && self.form(value).is_some_and(|f| f.0 == Form::Gradient) =>
            {
                self.unconverted(self.graph.operands(value.node)[0])
            }
            _ => value,
        }
    }

    fn second_product(
        &mut self,
        node: NodeIndex,
        subs: &Subscripts,
        mine: usize,
        dims: &[usize],
        p: &Polynomial,
        other: Operand,
    ) {
        let Some(columns) = self.columns else { return };
        let Some((monomial, factor)) = p.single() else { return };
        let mut weight = monomial.clone();
        let probability = weight.remove(&Base::Exp) == Some(1) && weight.remove(&Base::Sum) == Some(-1);
        if !probability || weight.keys().any(|b| !matches!(b, Base::Other(..))) || dims.len() != self.rank() {
            return;
        }
        let row = &subs.operands[mine];
        let score = |l: &u8| row.iter().position(|r| r == l).map(|i| dims[i]);
        // The product must sum over the columns and nothing else.
        let summed: Vec<usize> = row.iter().filter(|l| !subs.result.contains(l)).filter_map(score).collect();
        let theirs = &subs.operands[1 - mine];
        let own: Vec<u8> = theirs.iter().copied().filter(|l| score(l).is_none()).collect();
        if summed != [columns] || !theirs.iter().any(|l| score(l) == Some(columns)) {
            return;
        }
        if own.iter().any(|l| !subs.result.contains(l)) {
            return;
        }
        let dim = |l: &u8| match score(l) {
            Some(d) => Dim::Score(d),
            None => Dim::Own(own.iter().position(|o| o == l).unwrap_or(0)),
        };
        self.value = Some(Operand { dims: theirs.iter().map(dim).collect(), ..other });
        self.out = Some(Operand { value: node.into(), dims: subs.result.iter().map(dim).collect() });
        let read = self.graph.operands(node)[mine].node;
        self.weighted = Some((read, weight, factor));
    }

    /// The result of a product of a value with the dimensions `dims` and an operand, if it has the same dimensions of
    /// the scores as `like`, and all other dimensions of the operand.
    fn result(
        &self,
        node: NodeIndex,
        subs: &Subscripts,
        mine: usize,
        dims: &[usize],
        operand: &Operand,
        like: &Operand,
    ) -> Option<Operand> {
        let row = &subs.operands[mine];
        let score = |l: &u8| row.iter().position(|r| r == l).map(|i| dims[i]);
        let mut own: BTreeMap<u8, usize> = BTreeMap::new();
        for (l, dim) in subs.operands[1 - mine].iter().zip(&operand.dims) {
            match (score(l), dim) {
                (Some(d), Dim::Score(s)) if d == *s => {}
                (None, Dim::Own(o)) => _ = own.insert(*l, *o),
                _ => return None,
            }
        }
        let found = subs.result.iter().map(|l| match score(l) {
            Some(d) => Some(Dim::Score(d)),
            None => own.get(l).map(|&o| Dim::Own(o)),
        });
        let made = Operand { value: node.into(), dims: found.collect::<Option<_>>()? };
        let owns = made.dims.iter().filter(|p| matches!(p, Dim::Own(_))).count();
        // The product keeps the dimensions of `like` and sums over all others, whether or not the operand has them.
        let right = dims.len() == self.rank() && made.scores() == like.scores() && owns == own.len();
        right.then_some(made)
    }

    pub(super) fn value(&self) -> Option<&Operand> {
        self.value.as_ref()
    }

    pub(super) fn out(&self) -> Option<&Operand> {
        self.out.as_ref()
    }

    pub(super) fn grad_out(&self) -> Option<&Operand> {
        self.grad_out.as_ref()
    }

    /// The gradients of query, key and value.
    pub(super) fn gradients(&self) -> [Option<Operand>; 3] {
        [self.grad_query.clone(), self.grad_key.clone(), self.grad_value.clone()]
    }

    /// The score that is exponentiated, and its dimensions.
    pub(super) fn score(&self) -> Option<(Value, Vec<usize>)> {
        let node = self.score?;
        Some((node.into(), self.forms.get(&node)?.1.clone()))
    }

    pub(super) fn weight(&self) -> Option<(&Monomial, f64)> {
        self.weighted.as_ref().map(|(_, weight, factor)| (weight, *factor))
    }

    /// The gradient of the product and its dimensions; `Some(None)` if neither the gradient of the query nor that of
    /// the key is needed.
    pub(super) fn gradient(&self) -> Option<Option<(Value, Vec<usize>)>> {
        if self.grad_query.is_none() && self.grad_key.is_none() {
            return Some(None);
        }
        let value = self.gradient?;
        Some(Some((value, self.forms.get(&value.node)?.1.clone())))
    }

    /// The gradients of the score. Each is the value that the body is given as number 0.
    pub(super) fn roots(&self) -> BTreeMap<NodeIndex, usize> {
        self.forms.iter().filter(|(_, f)| f.0 == Form::Root).map(|(&n, _)| (n, 0)).collect()
    }

    pub(super) fn is_score(&self, node: NodeIndex) -> bool {
        self.forms.get(&node).is_some_and(|f| f.0 == Form::Score)
    }

    pub(super) fn is_gradient(&self, node: NodeIndex) -> bool {
        self.forms.get(&node).is_some_and(|f| f.0 == Form::Gradient)
    }

    /// The dimension of rows: the longest one that only the query has.
    pub(super) fn rows(&self) -> Option<usize> {
        let shape = &self.graph.node(self.product).types[0].shape;
        let value = self.value.as_ref().map(Operand::scores).unwrap_or_default();
        let only = self.query.scores().into_iter().filter(|&d| !self.key.has(d) && !value.contains(&d));
        only.max_by_key(|&d| (shape[d], d))
    }

    /// Whether the key has the columns, the query does not, and the result has all other dimensions.
    fn rows_are_clear(&self) -> bool {
        let (Some(columns), Some(out)) = (self.columns, &self.out) else { return false };
        self.key.has(columns) && !self.query.has(columns) && out.scores().len() + 1 == self.rank()
    }

    fn inside(&self, node: NodeIndex) -> bool {
        self.forms.contains_key(&node) || self.incoming == Some(node) || self.between.contains(&node)
    }

    /// Collects a node and the recognized nodes that it is computed from, up to the products.
    fn collect(&self, node: NodeIndex, into: &mut BTreeSet<NodeIndex>) {
        if !self.inside(node) || !into.insert(node) || node == self.product || self.incoming == Some(node) {
            return;
        }
        for v in self.graph.operands(node) {
            self.collect(v.node, into);
        }
    }

    /// The nodes that compute the result.
    pub(super) fn forward_nodes(&self) -> BTreeSet<NodeIndex> {
        let mut nodes = BTreeSet::new();
        if let (Some((weighted, ..)), Some(out)) = (&self.weighted, &self.out) {
            self.collect(*weighted, &mut nodes);
            nodes.insert(out.value.node);
        }
        nodes
    }

    /// The nodes that compute the gradients, except those of the forward kernel.
    pub(super) fn backward_nodes(&self, forward: &BTreeSet<NodeIndex>) -> BTreeSet<NodeIndex> {
        let mut nodes = BTreeSet::new();
        let results = [&self.grad_query, &self.grad_key, &self.grad_value];
        for result in results.into_iter().flatten() {
            for v in self.graph.operands(result.value.node) {
                self.collect(v.node, &mut nodes);
            }
            nodes.insert(result.value.node);
        }
        nodes.difference(forward).copied().collect()
    }

    /// Whether no other node reads an inner value of the attention.
    pub(super) fn is_closed(&self, forward: &BTreeSet<NodeIndex>, backward: &BTreeSet<NodeIndex>) -> bool {
        let results = [&self.out, &self.grad_query, &self.grad_key, &self.grad_value];
        let results: Vec<NodeIndex> = results.into_iter().flatten().map(|s| s.value.node).collect();
        let within = |n: &NodeIndex| forward.contains(n) || backward.contains(n);
        let is_output = |n: NodeIndex| self.graph.outputs.iter().any(|o| o.value.node == n);
        let inner = forward.iter().chain(backward).filter(|n| !results.contains(n));
        let closed = inner.into_iter().all(|&n| !is_output(n) && self.graph.users(n).all(|(u, _)| within(&u)));
        // A collective may overwrite its operand, but the backward pass reads the result of the forward pass.
        let kept =
            backward.is_empty() || self.graph.users(results[0]).all(|(u, _)| !self.graph.node(u).op.is_collective());
        closed && kept
    }
}

/// Whether a function is 0 wherever the operands selected by `zero` are 0. Hidden elements of a mask then add nothing
/// to the gradients and need not be computed.
fn stays_zero(f: MapFn, operands: usize, zero: impl Fn(usize) -> bool) -> bool {
    match f {
        MapFn::Identity | MapFn::Neg | MapFn::Add | MapFn::Sub => (0..operands).all(zero),
        MapFn::Cast(to) => to.is_float() && zero(0),
        MapFn::Mul => (0..operands).any(zero),
        MapFn::Div => zero(0) && !zero(1),
        MapFn::Select => !zero(0) && zero(1) && zero(2),
        _ => false,
    }
}

/// A function of polynomials, if its result is a polynomial.
fn arithmetic(f: MapFn, x: &[Polynomial]) -> Option<Polynomial> {
    match (f, x) {
        (MapFn::Add, x) => Some(x.iter().cloned().fold(Polynomial::default(), Polynomial::plus)),
        (MapFn::Sub, [a, b]) => Some(a.clone().plus(b.clone().scaled(-1.0))),
        (MapFn::Neg, [a]) => Some(a.clone().scaled(-1.0)),
        (MapFn::Mul, [a, b]) => Some(a.times(b)),
        (MapFn::Div, [a, b]) => Some(a.times(&b.reciprocal()?)),
        (MapFn::Recip, [a]) => a.reciprocal(),
        (MapFn::Identity, [a]) => Some(a.clone()),
        (MapFn::Cast(to), [a]) if to.is_float() => Some(a.clone()),
        _ => None,
    }
}
