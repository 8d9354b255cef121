//! Writing a checkpoint: all ranks at once, completely or not at all.
//!
//! ```text
//! remove leftovers → make .step-N.PID.partial → rank files, synced → (all ranks are done) → index, synced → sync the directory
//!   → rename to step-N → sync the parent → remove what is superseded
//! ```
//! However this ends, by an error or by a kill, either the earlier checkpoints or the new one are complete.

use super::container::{Entry, head};
use super::directory::{Saved, partial, saved};
use super::error::CheckpointError;
use super::hash::{hash, text};
use super::index::{BoxEntry, FILE, FileEntry, Index, TensorEntry};
use crate::error::RuntimeError;
use crate::output;
use crate::session::{Session, each_rank};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use tpc_ir::InputKind;
use tpc_ir::program::{End, HeldBox};

/// How a checkpoint is written.
#[derive(Clone, Debug, Default)]
pub struct SaveOptions {
    /// How many checkpoints to keep, including the new one; the earliest are removed once it is complete. All are kept
    /// by default.
    pub keep: Option<NonZeroUsize>,
    /// The alphabet of a character model, token 0 first, if the run is trained on characters: a resumed run numbers
    /// characters in the same way.
    pub alphabet: Option<String>,
    /// The state that the training program keeps of its run in addition to the tensors, for example the position in its
    /// data. Only that program reads this text.
    pub run: Option<String>,
    /// Makes the write fail, to test what remains.
    pub fault: Option<WriteFault>,
}

/// An injected failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteFault {
    /// Bytes that the disk still accepts; creating, syncing, renaming and removing count as one byte each.
    pub after: u64,
    /// How the write fails.
    pub kind: FaultKind,
}

/// How an injected failure behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The disk is full: the write returns an error and cleans up.
    FullDisk,
    /// The process dies: nothing else is done.
    Kill,
}

/// Writes the session's parameters and state as the checkpoint of a step into a directory of checkpoints, which is
/// created if needed. Returns the directory of the new checkpoint. Only one session at a time may write into a
/// directory, which all its processes share.
///
/// The first process creates the checkpoint's directory, all processes write the files of their ranks into it, and the
/// first renames it once all are done.
///
/// # Errors
/// Every process returns an error if any process has one: a session that failed, a disk that rejects the data, or a
/// later checkpoint in the directory. Earlier checkpoints stay complete.
pub fn save(
    session: &Session,
    dir: &Path,
    step: u64,
    seed: u64,
    options: &SaveOptions,
) -> Result<PathBuf, CheckpointError> {
    // After a failed step the arenas hold a mixture of old and new values.
    session.check_usable()?;
    let disk = Disk { left: options.fault.map(|f| AtomicU64::new(f.after)) };
    let leads = session.processes().process() == 0;
    let place = if leads { PreparedDir::prepare(session, dir, step, &disk).map(Some) } else { Ok(None) };
    let to_bytes = |place: &Option<PreparedDir>| place.as_ref().map_or_else(Vec::new, |p| p.to_bytes());
    let cleaned = |temporary: &Path, error: CheckpointError| {
        // If this fails, too, the launcher or the next save tries again.
        if leads && options.fault.is_none_or(|f| f.kind == FaultKind::FullDisk) && fs::remove_dir_all(temporary).is_ok()
        {
            session.processes().leftover(Path::new(""));
        }
        error
    };
    let temporary_of = |place: &Option<PreparedDir>| place.as_ref().map(|p| p.temporary.clone());
    let mine = place.as_ref().ok().and_then(temporary_of);
    let agreed = session.agree("checkpoint: make a directory", place, to_bytes);
    let (place, told) = agreed.map_err(|e| match &mine {
        Some(temporary) => cleaned(temporary, e),
        None => e,
    })?;
    let (target, temporary) = PreparedDir::from_bytes(dir, step, &told[0]);
    let assigned = assign(session);
    let written = write_ranks(session, &assigned, &temporary, &disk);
    let to_bytes = |written: &Vec<Written>| serde_json::to_vec(written).unwrap_or_default();
    let agreed = session.agree("checkpoint: write", written, to_bytes);
    let (_, written) = agreed.map_err(|e| cleaned(&temporary, e))?;
    let finished = match place {
        Some(place) => index(session, &assigned, &written, step, seed)
            .map(|index| Index { alphabet: options.alphabet.clone(), run: options.run.clone(), ..index })
            .and_then(|index| place.finish(session, &index, step, options, &disk))
            .map_err(|e| cleaned(&temporary, e)),
        None => Ok(()),
    };
    if leads && finished.is_ok() {
        session.processes().leftover(Path::new(""));
    }
    session.agree("checkpoint: commit", finished, |()| Vec::new())?;
    Ok(target)
}

/// Where the first process writes a checkpoint.
struct PreparedDir {
    dir: PathBuf,
    present: Vec<Saved>,
    target: Saved,
    temporary: PathBuf,
}

impl PreparedDir {
    /// Inspects the directory, removes leftovers, and creates the directory to write into.
    fn prepare(session: &Session, dir: &Path, step: u64, disk: &Disk) -> Result<Self, CheckpointError> {
        output::make_dir(dir).map_err(CheckpointError::io(dir, "cannot be made"))?;
        let present = saved(dir)?;
        let mut target = Saved::at(dir, step, 0);
        if let Some(latest) = present.last() {
            if latest.step > step {
                return Err(CheckpointError::Later { dir: dir.to_path_buf(), found: latest.step, step });
            }
            if latest.step == step {
                target = Saved::at(dir, step, latest.again + 1);
            }
        }
        for name in partial(dir)? {
            disk.remove(&dir.join(name))?;
        }
        let temporary = target.partial();
        session.processes().leftover(&temporary);
        disk.operation(&temporary, "cannot be made", |dir| fs::create_dir(dir))?;
        Ok(PreparedDir { dir: dir.to_path_buf(), present, target, temporary })
    }

    /// What the other processes need to know: how often this step was saved before, and the process in the temporary
    /// name.
    fn to_bytes(&self) -> Vec<u8> {
        format!("{} {}", self.target.again, std::process::id()).into_bytes()
    }

    /// The checkpoint's directory and its temporary directory, from [`PreparedDir::to_bytes`].
    fn from_bytes(dir: &Path, step: u64, bytes: &[u8]) -> (PathBuf, PathBuf) {
        let text = String::from_utf8_lossy(bytes);
        let mut numbers = text.split(' ').map(|n| n.parse::<u64>().unwrap_or(0));
        let (again, process) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        let target = Saved::at(dir, step, again);
        let temporary = target.partial_of(process as u32);
        (target.path, temporary)
    }

    /// Renames the checkpoint to its final name, and removes the checkpoints that it supersedes.
    fn finish(
        self,
        session: &Session,
        index: &Index,
        step: u64,
        options: &SaveOptions,
        disk: &Disk,
    ) -> Result<(), CheckpointError> {
        let path = self.temporary.join(FILE);
        let mut file = disk.create(&path)?;
        let written = file.write_all(index.to_text().as_bytes()).and_then(|()| file.sync());
        written.map_err(CheckpointError::io(&path, CANNOT_WRITE))?;
        disk.sync(&self.temporary)?;
        disk.operation(&self.target.path, "cannot get its name", |to| fs::rename(&self.temporary, to))?;
        disk.sync(&self.dir)?;
        let keep = options.keep.map(|keep| keep.get() - 1);
        let earlier = self.present.iter().filter(|s| s.step < step).count();
        let superseded = self
            .present
            .iter()
            .enumerate()
            .filter(|(i, s)| s.step == step || keep.is_some_and(|keep| i.saturating_add(keep) < earlier));
        for (_, old) in superseded {
            // It is renamed first, so that it never looks complete while it is being removed.
            let gone = old.partial();
            session.processes().leftover(&gone);
            disk.operation(&old.path, "cannot be removed", |path| fs::rename(path, &gone))?;
            disk.remove(&gone)?;
        }
        Ok(())
    }
}

/// Which rank writes which box: one of the ranks that hold it, so that all write about the same amount.
struct Assignment {
    input: usize,
    rank: usize,
}

fn assign(session: &Session) -> Vec<Assignment> {
    let mut boxes: Vec<(usize, usize, Vec<usize>)> = Vec::new();
    for (input, i) in session.interface().inputs.iter().enumerate() {
        if !matches!(i.kind, InputKind::Parameter | InputKind::State) {
            continue;
        }
        let mut holders: BTreeMap<HeldBox, Vec<usize>> = BTreeMap::new();
        for rank in 0..session.ranks() {
            let held = session.held_box(End::Input(input), rank);
            if held.elements() > 0 {
                holders.entry(held).or_default().push(rank);
            }
        }
        for (held, ranks) in holders {
            boxes.push((held.elements() * i.binding.view.dtype.bytes(), input, ranks));
        }
    }
    // The largest box first, each to the rank with the least bytes so far.
    let mut order: Vec<usize> = (0..boxes.len()).collect();
    order.sort_by_key(|&b| (std::cmp::Reverse(boxes[b].0), b));
    let mut load = vec![0; session.ranks()];
    let mut assigned = vec![0; boxes.len()];
    for b in order {
        let (bytes, _, ranks) = &boxes[b];
        assigned[b] = ranks.iter().copied().min_by_key(|&r| (load[r], r)).unwrap_or(0);
        load[assigned[b]] += bytes;
    }
    boxes.iter().zip(assigned).map(|((_, input, _), rank)| Assignment { input: *input, rank }).collect()
}

/// The file that a rank wrote and the boxes in it; `None` if the rank had nothing to write.
type Written = Option<(FileEntry, Vec<BoxEntry>)>;

/// Writes the files of this process's ranks.
fn write_ranks(
    session: &Session,
    assigned: &[Assignment],
    dir: &Path,
    disk: &Disk,
) -> Result<Vec<Written>, CheckpointError> {
    each_rank(session.local_ranks(), &|rank| {
        let mine: Vec<usize> = assigned.iter().filter(|a| a.rank == rank).map(|a| a.input).collect();
        // A rank that has nothing to write creates no file.
        (!mine.is_empty()).then(|| write_rank(session, rank, &mine, dir, disk)).transpose()
    })
}

/// The index of the boxes that the ranks of all processes wrote.
fn index(
    session: &Session,
    assigned: &[Assignment],
    written: &[Vec<u8>],
    step: u64,
    seed: u64,
) -> Result<Index, CheckpointError> {
    let axes = session.interface().mesh.axes().iter().map(|a| (a.name.clone(), a.size)).collect();
    let mut index = Index::new(step, seed, axes);
    let mut boxes: Vec<std::vec::IntoIter<BoxEntry>> = Vec::new();
    for (process, ranks) in written.iter().enumerate() {
        let broken = |e: serde_json::Error| RuntimeError::Launch(format!("the boxes of process {process}: {e}"));
        for rank in serde_json::from_slice::<Vec<Written>>(ranks).map_err(broken)? {
            let number = index.files.len();
            let (file, mut entries) = rank.map_or((None, Vec::new()), |(f, b)| (Some(f), b));
            index.files.extend(file);
            entries.iter_mut().for_each(|b| b.file = number);
            boxes.push(entries.into_iter());
        }
    }
    for (input, i) in session.interface().inputs.iter().enumerate() {
        if matches!(i.kind, InputKind::Parameter | InputKind::State) {
            let ranks = assigned.iter().filter(|a| a.input == input).map(|a| a.rank);
            index.tensors.push(TensorEntry {
                name: i.name.clone(),
                kind: i.kind.name().into(),
                dtype: i.binding.view.dtype.name().into(),
                shape: i.binding.layout.clone(),
                factors: i.binding.global.clone(),
                // A rank's boxes are in the order of the inputs.
                boxes: ranks.filter_map(|rank| boxes[rank].next()).collect(),
            });
        }
    }
    Ok(index)
}

/// Writes the file of one rank directly from its arena.
fn write_rank(
    session: &Session,
    rank: usize,
    inputs: &[usize],
    dir: &Path,
    disk: &Disk,
) -> Result<(FileEntry, Vec<BoxEntry>), CheckpointError> {
    let program = session.program(rank);
    let bindings: Vec<_> = inputs.iter().map(|&i| &program.inputs[i]).collect();
    let entries: Vec<Entry> =
        bindings.iter().map(|i| (&*i.name, i.binding.view.dtype, &i.binding.view.shape[..])).collect();
    let (head, places) = head(&entries);
    let name = format!("rank-{rank:05}.safetensors");
    let path = dir.join(&name);
    let mut file = BufWriter::with_capacity(WRITE_BUFFER, disk.create(&path)?);
    let mut boxes = Vec::with_capacity(inputs.len());
    let mut bytes = head.len() as u64;
    let io = |e| CheckpointError::io(&path, CANNOT_WRITE)(e);
    file.write_all(&head).map_err(io)?;
    for (input, place) in bindings.iter().zip(places) {
        let (request, data) = session.box_of(rank, &input.binding)?;
        let mut hashes = Vec::with_capacity(data.len().div_ceil(super::BLOCK));
        for block in data.chunks(super::BLOCK) {
            hashes.push(text(hash(block)));
            file.write_all(block).map_err(io)?;
            session.processes().progress();
        }
        bytes += data.len() as u64;
        boxes.push(BoxEntry { file: 0, place, start: request.start, shape: request.shape, hashes });
    }
    file.flush().map_err(io)?;
    file.get_mut().sync().map_err(io)?;
    Ok((FileEntry { name, bytes, head: head.len() as u64, hash: text(hash(&head)) }, boxes))
}

const CANNOT_WRITE: &str = "the checkpoint cannot be written; earlier checkpoints are complete";
const WRITE_BUFFER: usize = 1 << 16;

/// The disk, with an optional injected failure.
struct Disk {
    left: Option<AtomicU64>,
}

impl Disk {
    /// How many of these bytes are still accepted.
    fn take(&self, bytes: u64) -> u64 {
        let Some(left) = &self.left else { return bytes };
        let before = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |l| Some(l.saturating_sub(bytes)));
        before.unwrap_or(0).min(bytes)
    }

    fn full() -> io::Error {
        io::Error::new(io::ErrorKind::StorageFull, "injected fault")
    }

    fn operation<T>(
        &self,
        path: &Path,
        what: &'static str,
        f: impl FnOnce(&Path) -> io::Result<T>,
    ) -> Result<T, CheckpointError> {
        let result = if self.take(1) == 1 { f(path) } else { Err(Disk::full()) };
        result.map_err(CheckpointError::io(path, what))
    }

    fn create(&self, path: &Path) -> Result<DiskFile<'_>, CheckpointError> {
        let file = self.operation(path, CANNOT_WRITE, |path| File::create_new(path))?;
        Ok(DiskFile { file, disk: self })
    }

    /// Syncs the names in a directory to the disk.
    fn sync(&self, dir: &Path) -> Result<(), CheckpointError> {
        // Only Unix can open directories.
        let sync = |dir: &Path| if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) };
        self.operation(dir, CANNOT_WRITE, sync)
    }

    fn remove(&self, dir: &Path) -> Result<(), CheckpointError> {
        self.operation(dir, "cannot be removed", |dir| fs::remove_dir_all(dir))
    }
}

struct DiskFile<'a> {
    file: File,
    disk: &'a Disk,
}

impl DiskFile<'_> {
    fn sync(&mut self) -> io::Result<()> {
        if self.disk.take(1) == 1 { self.file.sync_all() } else { Err(Disk::full()) }
    }
}

impl Write for DiskFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.disk.take(bytes.len() as u64) as usize {
            0 if !bytes.is_empty() => Err(Disk::full()),
            taken => self.file.write(&bytes[..taken]),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
