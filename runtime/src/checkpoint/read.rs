//! Reading a checkpoint on any mesh: each rank finds its own elements in the stored boxes.

use super::BLOCK;
use super::directory::{Saved, partial, saved};
use super::error::CheckpointError;
use super::hash::{hash, text};
use super::index::{BoxEntry, FILE, FileEntry, Index, TensorEntry};
use crate::boxes::{BoxRequest, Runs, meet};
use crate::session::Session;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use tpc_ir::InputKind;

/// An opened checkpoint; its tensors are read by [`load`].
#[derive(Clone, Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    index: Index,
}

impl Checkpoint {
    /// Opens the checkpoint of the highest step in a directory of checkpoints, or `dir` itself if it is a checkpoint.
    ///
    /// # Errors
    /// There is no complete checkpoint, or it is damaged.
    pub fn latest(dir: &Path) -> Result<Self, CheckpointError> {
        if dir.join(FILE).is_file() {
            return Checkpoint::open(dir);
        }
        match saved(dir)?.pop() {
            Some(latest) => Checkpoint::open(&latest.path),
            None => Err(CheckpointError::NoCheckpoint { dir: dir.to_path_buf(), partial: partial(dir)? }),
        }
    }

    /// Opens one checkpoint: reads its index and checks its files.
    ///
    /// # Errors
    /// A file that is missing, damaged or truncated; a directory named after another step.
    pub fn open(dir: &Path) -> Result<Self, CheckpointError> {
        let path = dir.join(FILE);
        let contents = std::fs::read(&path).map_err(CheckpointError::io(&path, "cannot be read"))?;
        let index = Index::from_text(&path, &contents)?;
        if let Some(Saved { step: named, .. }) = Saved::named(dir).filter(|saved| saved.step != index.step) {
            let (step, dir) = (index.step, dir.to_path_buf());
            let own_name = Saved::at(Path::new(""), step, 0).path;
            return Err(CheckpointError::Misnamed { dir, named, step, own_name });
        }
        let checkpoint = Checkpoint { dir: dir.to_path_buf(), index };
        for number in 0..checkpoint.index.files.len() {
            checkpoint.check_file(number)?;
        }
        Ok(checkpoint)
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Number of steps done.
    pub fn step(&self) -> u64 {
        self.index.step
    }

    /// Seed of the run's random operations.
    pub fn seed(&self) -> u64 {
        self.index.seed
    }

    /// The alphabet of a character model, token 0 first, if the run was trained on characters.
    pub fn alphabet(&self) -> Option<&str> {
        self.index.alphabet.as_deref()
    }

    /// The state that the training program keeps of its run in addition to the tensors.
    pub fn run(&self) -> Option<&str> {
        self.index.run.as_deref()
    }

    /// The index of its contents.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Checks the length and the header of a file; its tensors are checked when they are read.
    fn check_file(&self, number: usize) -> Result<(), CheckpointError> {
        let FileEntry { name, bytes, head, hash: expected } = &self.index.files[number];
        let path = self.dir.join(name);
        let io = |e| CheckpointError::io(&path, "cannot be read")(e);
        let mut file = File::open(&path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        if length != *bytes {
            let ends_after = |t: &TensorEntry, b: &BoxEntry| b.file == number && b.place + size(t, b) as u64 > length;
            let cut = self.index.tensors.iter().find(|t| t.boxes.iter().any(|b| ends_after(t, b)));
            let problem = format!("{length} bytes instead of {bytes}");
            return Err(CheckpointError::damaged(&path, cut.map(|t| &*t.name), problem));
        }
        let mut read = vec![0; usize::try_from(*head).unwrap_or(usize::MAX).min(length as usize)];
        file.read_exact(&mut read).map_err(io)?;
        match text(hash(&read)) == *expected {
            true => Ok(()),
            false => Err(CheckpointError::damaged(&path, None, "its header does not match the hash in the index")),
        }
    }

    /// The stored tensor of every parameter and state of the session, with the position of its input.
    fn fit(&self, session: &Session) -> Result<Vec<(usize, &TensorEntry)>, CheckpointError> {
        const MISSING: &str = "missing";
        let differs = |name: &str, stored: String, wanted: String| {
            Err(CheckpointError::Differs { dir: self.dir.clone(), name: name.into(), stored, wanted })
        };
        let mut fitting = Vec::new();
        let inputs = session.interface().inputs.iter().enumerate();
        for (position, input) in inputs.filter(|(_, i)| matches!(i.kind, InputKind::Parameter | InputKind::State)) {
            let wanted = format!("{} {}{:?}", input.kind.name(), input.binding.view.dtype, input.binding.layout);
            let Some(stored) = self.index.tensors.iter().find(|t| t.name == input.name) else {
                return differs(&input.name, MISSING.into(), wanted);
            };
            if stored.describe() != wanted {
                return differs(&input.name, stored.describe(), wanted);
            }
            fitting.push((position, stored));
        }
        let unused = |t: &&TensorEntry| !fitting.iter().any(|(_, used)| used.name == t.name);
        match self.index.tensors.iter().find(unused) {
            Some(stored) => differs(&stored.name, stored.describe(), MISSING.into()),
            None => Ok(fitting),
        }
    }
}

/// Bytes of a box.
fn size(tensor: &TensorEntry, stored: &BoxEntry) -> usize {
    let dtype = tpc_ir::DType::from_name(&tensor.dtype);
    stored.shape.iter().product::<usize>() * dtype.map_or(0, tpc_ir::DType::bytes)
}

/// Fills the session's parameters and optimizer state from a checkpoint, all ranks at once.
///
/// A checkpoint of another model or optimizer, which leaves the session unchanged; a file that cannot be read or is
/// damaged, after which the session cannot be stepped any more.
/// then not be stepped any more).
pub fn load(session: &mut Session, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
    session.check_usable()?;
    let fitting = checkpoint.fit(session)?;
    let loaded = session.fill_ranks(&|rank| {
        let mut reader = Reader { checkpoint, file: None, block: Vec::new(), held: None };
        for (input, stored) in &fitting {
            rank.write(*input, |request, to| reader.fill(stored, request, to))?;
        }
        Ok(())
    });
    loaded.inspect_err(|e: &CheckpointError| session.poison(format!("a checkpoint was loaded in part only: {e}")))
}

/// The reader of one rank: one open file and one block.
struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    file: Option<(usize, File)>,
    block: Vec<u8>,
    /// The block in memory: its file and first byte.
    held: Option<(usize, u64)>,
}

impl Reader<'_> {
    /// Fills a rank's box from the stored boxes.
    fn fill(&mut self, tensor: &TensorEntry, wanted: &BoxRequest, to: &mut [u8]) -> Result<(), CheckpointError> {
        let element = wanted.dtype.bytes();
        let mut filled = 0;
        for stored in &tensor.boxes {
            let bytes = size(tensor, stored);
            let runs = Runs::new(&tensor.factors, &stored.start, &stored.shape);
            meet(runs, wanted.element_runs(), &mut |from, at, n| {
                let (mut from, mut at, mut left) = (from * element, at * element, n * element);
                filled += left;
                while left > 0 {
                    let first = from / BLOCK * BLOCK;
                    self.hold(tensor, stored, first, BLOCK.min(bytes - first))?;
                    let piece = left.min(first + self.block.len() - from);
                    to[at..at + piece].copy_from_slice(&self.block[from - first..from - first + piece]);
                    (from, at, left) = (from + piece, at + piece, left - piece);
                }
                Ok::<(), CheckpointError>(())
            })?;
        }
        if filled == to.len() {
            return Ok(());
        }
        let problem = format!("its boxes hold {filled} of {} bytes that a rank needs", to.len());
        Err(CheckpointError::damaged(&self.checkpoint.dir.join(FILE), Some(&tensor.name), problem))
    }

    /// Reads a block of a box, unless it is already in memory.
    fn hold(
        &mut self,
        tensor: &TensorEntry,
        stored: &BoxEntry,
        first: usize,
        len: usize,
    ) -> Result<(), CheckpointError> {
        let at = stored.place + first as u64;
        if self.held == Some((stored.file, at)) {
            return Ok(());
        }
        self.held = None;
        let path = self.checkpoint.dir.join(&self.checkpoint.index.files[stored.file].name);
        self.block.resize(len, 0);
        self.read(stored.file, &path, at).map_err(CheckpointError::io(&path, "cannot be read"))?;
        if text(hash(&self.block)) != stored.hashes[first / BLOCK] {
            let problem = format!("bytes {at}..{} do not match the hash in the index", at + len as u64);
            return Err(CheckpointError::damaged(&path, Some(&tensor.name), problem));
        }
        self.held = Some((stored.file, at));
        Ok(())
    }

    fn read(&mut self, number: usize, path: &Path, at: u64) -> io::Result<()> {
        let file = match &mut self.file {
            Some((open, file)) if *open == number => file,
            slot => &mut slot.insert((number, File::open(path)?)).1,
        };
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut self.block)
    }
}
