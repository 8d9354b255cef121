//! Blocks of memory that one process has for itself or shares with others.
//!
//! A shared block is a `memfd`: a file without a name, which peers open through `/proc/PID/fd/FD` while its owner lives, and which the
//! system frees with the last process that maps it. So nothing can be left behind, however a process ends.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::{NonNull, null_mut};

/// Zeroed memory, aligned to pages.
#[derive(Debug)]
pub struct Region {
    base: NonNull<u8>,
    bytes: usize,
    /// The file behind shared memory of this process, open as long as peers may want to map it.
    file: Option<File>,
}

// SAFETY: a region owns its mapping and is only an address and a size: whoever reads or writes through it orders the accesses.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

/// Where another process finds a shared block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handle {
    /// The process that made it.
    pub pid: u32,
    /// Its file descriptor there.
    pub fd: i32,
    /// Its size.
    pub bytes: usize,
}

impl Handle {
    /// `PID:FD:BYTES`, for environment variables and messages between processes.
    pub fn to_text(&self) -> String {
        format!("{}:{}:{}", self.pid, self.fd, self.bytes)
    }

    /// Reads [`Handle::to_text`].
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let handle = Handle {
            pid: parts.next()?.parse().ok()?,
            fd: parts.next()?.parse().ok()?,
            bytes: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(handle)
    }
}

impl Region {
    /// Memory of this process alone.
    ///
    /// # Errors
    /// Too little memory.
    pub fn private(bytes: usize) -> io::Result<Self> {
        Region::map(bytes, None)
    }

    /// Memory that other processes may map. All of it is reserved now, so that too little memory is an error and no signal later.
    ///
    /// # Errors
    /// Too little memory.
    pub fn shared(bytes: usize) -> io::Result<Self> {
        // SAFETY: the name is a C string, and the flags are known to Linux.
        let fd = unsafe { libc::memfd_create(c"tpc".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and belongs to nobody else.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(bytes as u64)?;
        if bytes > 0 {
            let length = libc::off_t::try_from(bytes).map_err(io::Error::other)?;
            loop {
                // SAFETY: a system call on a descriptor that is open.
                match unsafe { libc::posix_fallocate(fd, 0, length) } {
                    0 => break,
                    libc::EINTR => {}
                    error => return Err(io::Error::from_raw_os_error(error)),
                }
            }
        }
        Region::map(bytes, Some(file))
    }

    /// Maps the shared memory of another process of this user on this host.
    ///
    /// # Errors
    /// A process that has ended, or memory of another size.
    pub fn of_peer(handle: Handle) -> io::Result<Self> {
        let path = format!("/proc/{}/fd/{}", handle.pid, handle.fd);
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        if file.metadata()?.len() != handle.bytes as u64 {
            return Err(io::Error::other("the shared memory does not have the announced size"));
        }
        let mut region = Region::map(handle.bytes, Some(file))?;
        // Only its owner hands it out; the mapping needs no descriptor.
        region.file = None;
        Ok(region)
    }

    fn map(bytes: usize, file: Option<File>) -> io::Result<Self> {
        if bytes == 0 {
            return Ok(Region { base: NonNull::<Page>::dangling().cast(), bytes, file });
        }
        let (flags, fd) = match &file {
            Some(file) => (libc::MAP_SHARED, file.as_raw_fd()),
            None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
        };
        // SAFETY: a new mapping at an address that the system chooses.
        let base = unsafe { libc::mmap(null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0) };
        match NonNull::new(base.cast::<u8>()) {
            Some(base) if base.as_ptr().cast() != libc::MAP_FAILED => {
                // Products walk over rows that lie pages apart. A system without large pages says no, which does no harm.
                // SAFETY: advice on the mapping that was just made; it changes no contents.
                unsafe { libc::madvise(base.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
                Ok(Region { base, bytes, file })
            }
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The first byte.
    pub fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where other processes find it, if it is this process's to share.
    pub fn handle(&self) -> Option<Handle> {
        let fd = self.file.as_ref()?.as_raw_fd();
        Some(Handle { pid: std::process::id(), fd, bytes: self.bytes })
    }
}

/// The alignment of an empty region.
#[repr(align(4096))]
struct Page;

impl Drop for Region {
    fn drop(&mut self) {
        if self.bytes > 0 {
            // SAFETY: mapped with this size in `map`; whoever used it held a reference to the region.
            unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_block_is_the_same_memory_through_its_handle() {
        let mine = Region::shared(10_000).unwrap();
        let handle = mine.handle().unwrap();
        assert_eq!(Handle::parse(&handle.to_text()), Some(handle));
        let theirs = Region::of_peer(handle).unwrap();
        // SAFETY: both mappings are alive, and this thread alone uses them.
        unsafe {
            mine.base().add(9_999).write(7);
            assert_eq!(theirs.base().add(9_999).read(), 7);
        }
        assert_ne!(mine.base(), theirs.base());
        assert!(Region::of_peer(Handle { bytes: 1, ..handle }).is_err());
        assert!(Region::of_peer(Handle { fd: 9_999, ..handle }).is_err());
        assert!(Region::private(0).unwrap().handle().is_none());
    }

    #[test]
    fn broken_handles_are_none() {
        for text in ["", "1", "1:2", "1:2:3:4", "a:2:3"] {
            assert_eq!(Handle::parse(text), None, "{text}");
        }
    }
}
