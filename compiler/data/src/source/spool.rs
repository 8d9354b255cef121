//! A copy of a text that can be read at any offset: a temporary file without a name.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicU64, Ordering};

/// A new file in the directory of temporary files; it disappears when it is closed, however the process ends.
pub(super) fn nameless() -> io::Result<File> {
    static MADE: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("tpc-data-{}-{number}", std::process::id()));
        match OpenOptions::new().read(true).write(true).create_new(true).open(&path) {
            // An earlier process with the same id ended between creating its file and removing the name.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
            Err(error) => return Err(error),
            Ok(file) => {
                fs::remove_file(&path)?;
                return Ok(file);
            }
        }
    }
}
