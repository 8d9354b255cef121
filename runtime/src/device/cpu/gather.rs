//! Reading rows of tables, adding to them, and replacing them.

use super::arena::Arena;
use crate::element::{Element, Lane, SUM, with_element};
use tpc_ir::DType;
use tpc_ir::program::{Buffer, View};

/// A table, row numbers, and rows.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    /// Addresses of the table, the row numbers and the rows.
    base: [*mut u8; 3],
    /// Bytes between rows of the table, elements between row numbers, bytes between rows.
    outer: [isize; 3],
    /// Elements between columns of the table and of the rows.
    inner: [isize; 2],
    count: usize,
    width: usize,
    local_rows: usize,
    first_row: usize,
    index: unsafe fn(*const u8, isize) -> i64,
    kernel: RowKernel,
    clear: RowKernel,
    task: Task,
}

/// The operation on rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    /// Read rows of the table.
    Take,
    /// Add rows to a table that is cleared first.
    ScatterAdd,
    /// Replace rows of the table.
    Put,
}

/// `(width, target, its step, source, its step)`.
type RowKernel = unsafe fn(usize, *mut u8, isize, *const u8, isize);

// SAFETY: the pointers point into the arena of the rank that runs the action.
unsafe impl Send for Table {}

unsafe fn index<I: Element<Lane = i64>>(base: *const u8, offset: isize) -> i64 {
    // SAFETY: the caller addresses an element of the row numbers.
    unsafe { (*base.cast::<I>().offset(offset)).load() }
}

unsafe fn copy<E: Element>(n: usize, to: *mut u8, to_step: isize, from: *const u8, from_step: isize) {
    let (to, from) = (to.cast::<E>(), from.cast::<E>());
    // SAFETY: the caller addresses rows in the arena.
    unsafe {
        if to_step == 1 && from_step == 1 {
            std::ptr::copy(from, to, n);
        } else {
            for i in 0..n as isize {
                *to.offset(i * to_step) = *from.offset(i * from_step);
            }
        }
    }
}

unsafe fn add<E: Element>(n: usize, to: *mut u8, to_step: isize, from: *const u8, from_step: isize) {
    let (to, from) = (to.cast::<E>(), from.cast::<E>());
    // SAFETY: the caller addresses rows in the arena that do not overlap.
    unsafe {
        if to_step == 1 && from_step == 1 {
            let to = std::slice::from_raw_parts_mut(to, n);
            for (t, f) in to.iter_mut().zip(std::slice::from_raw_parts(from, n)) {
                *t = E::store(t.load().combine::<SUM>(f.load()));
            }
        } else {
            for i in 0..n as isize {
                let t = to.offset(i * to_step);
                *t = E::store((*t).load().combine::<SUM>((*from.offset(i * from_step)).load()));
            }
        }
    }
}

unsafe fn zero<E: Element>(n: usize, to: *mut u8, to_step: isize, _: *const u8, _: isize) {
    for i in 0..n as isize {
        // SAFETY: the caller addresses a row in the arena.
        unsafe { *to.cast::<E>().offset(i * to_step) = E::store(E::Lane::from_i64(0)) }
    }
}

impl Table {
    /// Prepares reading rows.
    pub(crate) fn take(
        table: &View,
        index: &View,
        out: &View,
        first_row: usize,
        arena: &Arena,
        buffers: &[Buffer],
    ) -> Result<Self, String> {
        Self::new(table, index, out, first_row, Task::Take, arena, buffers)
    }

    /// Prepares adding rows to a table that is cleared first. Rows are added in the order of their numbers, and each
    /// sum is rounded to the table's element type.
    pub(crate) fn scatter_add(
        index: &View,
        update: &View,
        out: &View,
        first_row: usize,
        arena: &Arena,
        buffers: &[Buffer],
    ) -> Result<Self, String> {
        Self::new(out, index, update, first_row, Task::ScatterAdd, arena, buffers)
    }

    /// Prepares replacing rows of a table, in the order of their numbers.
    pub(crate) fn put(
        table: &View,
        index: &View,
        rows: &View,
        first_row: usize,
        arena: &Arena,
        buffers: &[Buffer],
    ) -> Result<Self, String> {
        Self::new(table, index, rows, first_row, Task::Put, arena, buffers)
    }

    fn new(
        table: &View,
        numbers: &View,
        rows: &View,
        first_row: usize,
        task: Task,
        arena: &Arena,
        buffers: &[Buffer],
    ) -> Result<Self, String> {
        let fits = table.shape.len() == 2
            && numbers.shape.len() == 1
            && rows.shape.len() == 2
            && rows.shape[0] == numbers.shape[0]
            && rows.shape[1] == table.shape[1]
            && rows.dtype == table.dtype;
        if !fits {
            return Err(format!(
                "table {}{:?}, index {:?} and rows {}{:?} do not fit",
                table.dtype, table.shape, numbers.shape, rows.dtype, rows.shape
            ));
        }
        let places = [
            arena.resolve_view(buffers, table)?,
            arena.resolve_view(buffers, numbers)?,
            arena.resolve_view(buffers, rows)?,
        ];
        let target = if task == Task::Take { 2 } else { 0 };
        if (0..3).any(|i| i != target && places[i].overlaps(&places[target])) {
            return Err("the result overlaps an operand".into());
        }
        Ok(Table {
            base: places.map(|p| p.base),
            outer: [
                table.strides[0] * table.dtype.bytes() as isize,
                numbers.strides[0],
                rows.strides[0] * rows.dtype.bytes() as isize,
            ],
            inner: [table.strides[1], rows.strides[1]],
            count: numbers.shape[0],
            width: table.shape[1],
            local_rows: table.shape[0],
            first_row,
            index: match numbers.dtype {
                DType::I64 => index::<i64>,
                DType::I32 => index::<i32>,
                DType::U8 => index::<u8>,
                d => return Err(format!("row numbers of type {d}; they must be integers")),
            },
            kernel: with_element!(table.dtype, E => if task == Task::ScatterAdd { add::<E> } else { copy::<E> }),
            clear: with_element!(table.dtype, E => zero::<E>),
            task,
        })
    }

    /// Runs the action.
    ///
    /// # Safety
    /// Nothing else may use the views during the call.
    pub(crate) unsafe fn run(&self) {
        let [table, numbers, rows] = self.base;
        let null = std::ptr::null();
        // SAFETY: all elements were checked to be in the arena, and row numbers are compared with the number of local
        // rows before they are used.
        unsafe {
            if self.task == Task::ScatterAdd {
                for r in 0..self.local_rows as isize {
                    (self.clear)(self.width, table.wrapping_offset(r * self.outer[0]), self.inner[0], null, 0);
                }
            }
            for t in 0..self.count as isize {
                let number = (self.index)(numbers, t * self.outer[1]).wrapping_sub(self.first_row as i64);
                let here = number >= 0 && number < self.local_rows as i64;
                let row = rows.wrapping_offset(t * self.outer[2]);
                let entry = table.wrapping_offset(number.max(0) as isize * self.outer[0]);
                match (self.task, here) {
                    (Task::Take, true) => (self.kernel)(self.width, row, self.inner[1], entry, self.inner[0]),
                    (Task::Take, false) => (self.clear)(self.width, row, self.inner[1], null, 0),
                    (_, true) => (self.kernel)(self.width, entry, self.inner[0], row, self.inner[1]),
                    (_, false) => {}
                }
            }
        }
    }
}
