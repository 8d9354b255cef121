//! Digests of contents: equal for equal bytes, and different for other bytes except by chance. They do not protect
//! against forgery.

use crate::checkpoint::hash::{hash, text};
use serde::{Deserialize, Serialize};
use std::fmt::{self, Display};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// A digest that identifies some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Digest(u64);

/// Bytes that are hashed at a time.
const BLOCK: usize = 1 << 20;

impl Digest {
    /// The digest of bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Digest::of_blocks(bytes.chunks(BLOCK).map(hash))
    }

    /// The digest of the hashes of blocks.
    fn of_blocks(hashes: impl Iterator<Item = u64>) -> Self {
        Digest(hash(&hashes.flat_map(u64::to_le_bytes).collect::<Vec<u8>>()))
    }

    /// The digest of a file's contents, which are read in blocks; `tick` is called after each block.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn of_file(path: &Path, mut tick: impl FnMut()) -> io::Result<Self> {
        let (mut file, mut block, mut hashes) = (File::open(path)?, Vec::with_capacity(BLOCK), Vec::new());
        while (&mut file).take(BLOCK as u64).read_to_end(&mut block)? > 0 {
            hashes.push(hash(&block));
            block.clear();
            tick();
        }
        Ok(Digest::of_blocks(hashes.into_iter()))
    }
}

impl Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_the_digest_of_its_bytes() {
        let path = std::env::temp_dir().join(format!("tpc-digest-{}", std::process::id()));
        // More than one block.
        let bytes: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let mut ticks = 0;
        let of_file = Digest::of_file(&path, || ticks += 1).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(of_file, Digest::of(&bytes));
        assert!(ticks >= 3);
        assert_ne!(of_file, Digest::of(&bytes[1..]));
        assert_eq!(of_file.to_string().len(), 16);
        assert!(Digest::of_file(&path, || ()).is_err());
    }
}
