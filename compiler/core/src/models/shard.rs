//! Reads a rank's box of a parameter from a weight file directly into its place, holding only one strip at a time.
//!
//! A box consists of runs of the parameter's row-major elements. If the file stores the parameter unchanged, a run is
//! read at once, and short runs that are close to each other are read together. If the file stores the transpose,
//! strips of file rows are read, and each run takes its columns of the strip.

use super::error::ModelError;
use super::weight_map::WeightEntry;
use super::weights::{TensorInfo, Weights};
use std::ops::Range;
use tpc_ir::DType;
use tpc_runtime::boxes::{BoxRequest, Run};
use tpc_runtime::element;

/// Bytes of a strip; a single row of a transposed tensor may be longer.
pub const STRIP: usize = 1 << 18;
/// The largest gap between runs that is read instead of skipped.
const GAP: usize = 1 << 12;
/// Number of elements that are converted at once.
const CONVERTED: usize = 1 << 10;

/// Reads the dense elements of a box, converted to the requested element type.
///
/// # Errors
/// A tensor that is missing, has another type or shape, or cannot be read.
pub fn read_box(entry: &WeightEntry, weights: &Weights, wanted: &BoxRequest, to: &mut [u8]) -> Result<(), ModelError> {
    entry.check(weights)?;
    let name = entry.name_in(weights);
    let stored = weights.float_type(&name)?;
    let (expected, found) = (entry.shape.iter().product(), wanted.global.iter().product());
    if expected != found {
        return Err(ModelError::WrongLength { path: entry.burn_path.clone(), expected, found });
    }
    let source = Source { weights, info: weights.info(&name)?, stored, dtype: wanted.dtype };
    let first_row = entry.rows.as_ref().map_or(0, |rows| rows.start);
    match (entry.transpose, &entry.shape[..]) {
        (true, &[rows, columns]) => source.transposed([rows, columns], first_row, wanted, to),
        _ => source.straight(first_row * entry.shape.iter().skip(1).product::<usize>(), wanted, to),
    }
}

struct Source<'a> {
    weights: &'a Weights,
    info: &'a TensorInfo,
    stored: DType,
    dtype: DType,
}

impl Source<'_> {
    /// The parameter's elements are those of the file, from `offset` on.
    fn straight(&self, offset: usize, wanted: &BoxRequest, to: &mut [u8]) -> Result<(), ModelError> {
        let (width, limit) = (self.stored.bytes(), STRIP / self.stored.bytes());
        let mut strip = Vec::new();
        let mut group: Vec<Run> = Vec::new();
        let mut runs = wanted.element_runs().flat_map(|run| pieces(run, limit)).peekable();
        while let Some(first) = runs.next() {
            group.clear();
            group.push(first);
            let mut end = first.end();
            while let Some(next) =
                runs.next_if(|next| next.end() - first.first <= limit && (next.first - end) * width <= GAP)
            {
                end = next.end();
                group.push(next);
            }
            self.read(offset + first.first, end - first.first, &mut strip)?;
            for run in &group {
                let from = (run.first - first.first) * width;
                self.convert(&strip[from..from + run.len * width], self.place(to, run.at, run.len));
            }
        }
        Ok(())
    }

    /// The parameter is `[rows, columns]`; the file stores `[columns, rows]`, from `first_row` on.
    fn transposed(
        &self,
        [rows, columns]: [usize; 2],
        first_row: usize,
        wanted: &BoxRequest,
        to: &mut [u8],
    ) -> Result<(), ModelError> {
        let width = self.stored.bytes();
        // The columns of the box, and its range of rows.
        let mut needed = vec![false; columns];
        let (mut low, mut high) = (rows, 0);
        for run in wanted.element_runs().flat_map(|run| lines(run, columns)) {
            let (row, column) = (run.first / columns, run.first % columns);
            needed[column..column + run.len].fill(true);
            (low, high) = (low.min(row), high.max(row + 1));
        }
        let height = high.saturating_sub(low);
        let most = (STRIP / (height * width).max(1)).max(1);
        let (mut strip, mut row_bytes, mut line) = (Vec::new(), Vec::new(), Vec::new());
        let mut column = 0;
        while let Some(skipped) = needed[column..].iter().position(|n| *n) {
            let begin = column + skipped;
            let count = needed[begin..].iter().take(most).take_while(|n| **n).count();
            if height == rows {
                self.read((first_row + begin) * rows, count * rows, &mut strip)?;
            } else {
                strip.clear();
                for c in begin..begin + count {
                    self.read((first_row + c) * rows + low, height, &mut row_bytes)?;
                    strip.extend_from_slice(&row_bytes);
                }
            }
            for run in wanted.element_runs().flat_map(|run| lines(run, columns)) {
                let (row, first) = (run.first / columns, run.first % columns);
                let common = first.max(begin)..(first + run.len).min(begin + count);
                if common.is_empty() {
                    continue;
                }
                column_of(&strip, width, height, row - low, common.start - begin..common.end - begin, &mut line);
                self.convert(&line, self.place(to, run.at + common.start - first, common.len()));
            }
            column = begin + count;
        }
        Ok(())
    }

    fn read(&self, first: usize, elements: usize, into: &mut Vec<u8>) -> Result<(), ModelError> {
        let width = self.stored.bytes();
        into.resize(elements * width, 0);
        self.weights.read_at(self.info, first * width, into)
    }

    fn place<'b>(&self, to: &'b mut [u8], at: usize, elements: usize) -> &'b mut [u8] {
        &mut to[at * self.dtype.bytes()..(at + elements) * self.dtype.bytes()]
    }

    fn convert(&self, from: &[u8], to: &mut [u8]) {
        if self.stored == self.dtype {
            return to.copy_from_slice(from);
        }
        let from = from.chunks(CONVERTED * self.stored.bytes());
        for (from, to) in from.zip(to.chunks_mut(CONVERTED * self.dtype.bytes())) {
            to.copy_from_slice(&element::encode(self.dtype, &element::decode(self.stored, from)));
        }
    }
}

/// Splits a run into parts of at most `limit` elements.
fn pieces(run: Run, limit: usize) -> impl Iterator<Item = Run> {
    (0..run.len).step_by(limit).map(move |from| Run {
        first: run.first + from,
        at: run.at + from,
        len: limit.min(run.len - from),
    })
}

/// Splits a run into parts that are each within one row of `columns` elements.
fn lines(run: Run, columns: usize) -> impl Iterator<Item = Run> {
    let mut rest = run;
    std::iter::from_fn(move || {
        let len = rest.len.min(columns - rest.first % columns);
        let line = Run { len, ..rest };
        rest = Run { first: rest.first + len, at: rest.at + len, len: rest.len - len };
        (len > 0).then_some(line)
    })
}

/// Element `at` of some rows of a strip, whose rows have `length` elements of `width` bytes.
fn column_of(strip: &[u8], width: usize, length: usize, at: usize, rows: Range<usize>, into: &mut Vec<u8>) {
    fn gather<const W: usize>(strip: &[u8], length: usize, at: usize, rows: Range<usize>, into: &mut Vec<u8>) {
        let elements = strip.as_chunks::<W>().0;
        rows.for_each(|row| into.extend_from_slice(&elements[row * length + at]));
    }
    into.clear();
    match width {
        2 => gather::<2>(strip, length, at, rows, into),
        4 => gather::<4>(strip, length, at, rows, into),
        _ => gather::<8>(strip, length, at, rows, into),
    }
}
