//! Attention without tiles, for operands so wide that no tile of them fits: one block of threads per row. It is correct
//! but slow.

use super::super::kernels::Launch;
use super::super::rank::Rank;
use super::setup::{Gradients, batches, begin_backward, begin_forward, operands};
use super::source::Source;
use super::{count, widths};
use tpc_ir::attention::{Attention, Backward};

/// Threads per block, `ALONE` in `attention.cuh`.
const THREADS: usize = 256;

/// Emits a lambda for the sum of products of a row and a column.
fn product(s: &mut Source<'_>, name: &str, [left, right]: [&str; 2], n: usize) {
    s.line(&format!("const auto {name} = [&](int r, int c) {{"));
    s.line("    R sum = 0;");
    s.line(&format!(
        "    for (int i = 0; i < {n}; i++) sum = m_fma(real<R>(*{left}(r, i)), real<R>(*{right}(c, i)), sum);"
    ));
    s.line("    return sum;");
    s.line("};");
}

/// Emits a lambda that reads or writes an element.
fn element(s: &mut Source<'_>, name: &str, at: &str) {
    s.line(&format!("const auto {name} = [&](int s, int i) {{ return real<R>(*{at}(s, i)); }};"));
}

fn writing(s: &mut Source<'_>, at: &str) {
    s.line(&format!(
        "const auto write = [&](int s, int i, R x) {{ *{at}(s, i) = narrowed<typename Pointed<decltype({at}(0, 0))>::type>(x); }};"
    ));
}

/// Emits the forward pass; `has` are its batch dimensions.
pub(super) fn forward(rank: &mut Rank<'_>, a: &Attention, has: &[usize]) -> Result<Vec<Launch>, String> {
    let [inner, width] = widths(a);
    let (rows, columns) = (a.rows(), a.columns());
    let mut s = begin_forward(rank, a)?;
    operands(&mut s, rank)?;
    s.bodies(rank)?;
    let batch = s.batch(&format!("blockIdx.x / {rows}u"), has);
    s.line(&format!("{{ {batch}}}"));
    product(&mut s, "product", ["query_at", "key_at"], inner);
    element(&mut s, "value", "value_at");
    writing(&mut s, "out_at");
    s.line(&format!(
        "attention_row<R>((int)(blockIdx.x % {rows}u), {columns}, {width}, product, score, weight, value, write, keep);"
    ));
    let grid = count(a, has) * rows;
    Ok(vec![rank.launch("attention_row", (grid, THREADS), true, s.args, &s.text)?])
}

/// Emits one gradient, of an operand that has some batch dimensions and lacks others.
pub(super) fn gradient(
    rank: &mut Rank<'_>,
    a: &Attention,
    b: &Backward,
    which: Gradients<'_>,
    (has, lacks): (&[usize], &[usize]),
) -> Result<Launch, String> {
    let [inner, width] = widths(a);
    let (owners, streamed) = if which.rows { (a.rows(), a.columns()) } else { (a.columns(), a.rows()) };
    let mut s = begin_backward(rank, a, b, which)?;
    s.operand(rank, "query_at", &a.query, &a.inner, false)?;
    s.operand(rank, "key_at", &a.key, &a.inner, false)?;
    s.operand(rank, "value_at", &a.value, &a.width, false)?;
    s.operand(rank, "grad_out_at", &b.grad_out, &a.width, false)?;
    let (to, own, n) = match (which.first, which.second) {
        (Some(to), _) => (to, &a.inner, inner),
        (None, Some(to)) => (to, &a.width, width),
        (None, None) => return Err("no gradient is wanted".into()),
    };
    s.operand(rank, "grad_at", to, own, true)?;
    s.bodies(rank)?;
    let batch = s.batch(&format!("blockIdx.x / {owners}u"), has);
    s.line(&format!("{{ {batch}}}"));
    batches(&mut s, lacks);
    product(&mut s, "product", ["query_at", "key_at"], inner);
    product(&mut s, "of_result", ["grad_out_at", "value_at"], width);
    let streams = match which {
        Gradients { rows: true, .. } => "key_at",
        Gradients { first: Some(_), .. } => "query_at",
        _ => "grad_out_at",
    };
    element(&mut s, "streamed", streams);
    writing(&mut s, "grad_at");
    s.line(&format!(
        "attention_gradient<R, {}, {}>((int)(blockIdx.x % {owners}u), {streamed}, {n}, {}u, batch, product, of_result, max_of, sum_of, delta_of, score, weight, gradient, streamed, write);",
        which.rows,
        which.first.is_some(),
        count(a, lacks)
    ));
    rank.launch("attention_alone", (count(a, has) * owners, THREADS), true, s.args, &s.text)
}
