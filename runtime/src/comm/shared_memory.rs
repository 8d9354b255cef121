//! Blocks of memory that are private to one process or shared with others.
//!
//! A shared block is a `memfd`: a file without a name. Peers open it through `/proc/PID/fd/FD` while its owner lives,
//! and the system frees it with the last process that maps it, so nothing remains after a process ends, for any reason.
//!
//! A block may be able to grow in place. It then reserves a range of addresses as large as the memory of the host, and
//! only its current bytes are backed by memory. Growing backs more of the range, so addresses stay valid and nothing is
//! copied. If the system cannot reserve such a range (because of a limit on the address space), the block still exists
//! but cannot grow.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Zeroed memory, aligned to pages.
#[derive(Debug)]
pub struct Region {
    base: NonNull<u8>,
    bytes: AtomicUsize,
    /// Reserved addresses: the region's bytes, and the bytes that it may grow by.
    reserved: usize,
    file: Backing,
}

/// How the memory of a region is backed.
#[derive(Debug)]
enum Backing {
    /// Memory of this process alone.
    Private,
    /// A file of this process, open as long as peers may map it.
    Own(File),
    /// The file of a peer, which is opened when it is mapped: a process may have thousands of peers, and few open files.
    Peer(Handle),
}

/// Whether a region may grow later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Growth {
    /// Its size is fixed.
    Fixed,
    /// It may grow up to the memory of the host, or up to this many bytes if they are fewer.
    InPlace(usize),
}

impl Growth {
    /// The growth of one of so many regions of a process, which share half of its 47 bits of address space.
    pub fn of_one_in(regions: usize) -> Self {
        Growth::InPlace((1 << 46) / regions.max(64))
    }

    /// Addresses to reserve for a region of this many bytes.
    fn addresses(self, bytes: usize) -> usize {
        match self {
            Growth::Fixed => bytes,
            Growth::InPlace(most) => bytes.max(physical_memory().min(most)),
        }
    }
}

/// Bytes of physical memory of the host; 0 if unknown.
fn physical_memory() -> usize {
    // SAFETY: queries to the system that access no memory.
    let (pages, page) = unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
    usize::try_from(pages).unwrap_or(0).saturating_mul(usize::try_from(page).unwrap_or(0))
}

/// The first page boundary at a byte or after it.
fn page_after(byte: usize) -> usize {
    // SAFETY: a query to the system that accesses no memory.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    byte.next_multiple_of(usize::try_from(page).unwrap_or(4096))
}

// SAFETY: a region owns its mapping and consists of an address and a size; its readers and writers order their
// accesses.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

/// How another process finds a shared block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handle {
    /// The process that created it.
    pub pid: u32,
    /// Its file descriptor in that process.
    pub fd: i32,
    /// Its size in bytes.
    pub bytes: usize,
}

impl Handle {
    /// `PID:FD:BYTES`, for environment variables and messages between processes.
    pub fn to_text(&self) -> String {
        format!("{}:{}:{}", self.pid, self.fd, self.bytes)
    }

    /// Opens the block, while its owner lives.
    fn open(&self) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(format!("/proc/{}/fd/{}", self.pid, self.fd))
    }

    /// Parses [`Handle::to_text`].
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
    /// Allocates memory of this process alone.
    ///
    /// # Errors
    /// Too little memory.
    pub fn private(bytes: usize, growth: Growth) -> io::Result<Self> {
        Region::map(bytes, growth, Backing::Private)
    }

    /// Allocates memory that other processes may map. All of it is allocated now, so that too little memory is an error
    /// now and not a signal later.
    ///
    /// # Errors
    /// Too little memory.
    pub fn shared(bytes: usize, growth: Growth) -> io::Result<Self> {
        // SAFETY: the name is a C string, and Linux knows the flags.
        let fd = unsafe { libc::memfd_create(c"tpc".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and has no other owner.
        let file = unsafe { File::from_raw_fd(fd) };
        allocate(&file, bytes)?;
        Region::map(bytes, growth, Backing::Own(file))
    }

    /// Maps the shared memory of another process of this user on this host.
    ///
    /// # Errors
    /// A process that has ended, or memory of another size.
    pub fn of_peer(handle: Handle, growth: Growth) -> io::Result<Self> {
        if handle.open()?.metadata()?.len() != handle.bytes as u64 {
            return Err(io::Error::other("the shared memory does not have the announced size"));
        }
        Region::map(handle.bytes, growth, Backing::Peer(handle))
    }

    fn map(bytes: usize, growth: Growth, file: Backing) -> io::Result<Self> {
        let addresses = growth.addresses(bytes);
        let reserved = reserve(addresses).map(|base| (base, addresses));
        let reserved = reserved.or_else(|error| match addresses > bytes {
            true => reserve(bytes).map(|base| (base, bytes)),
            false => Err(error),
        });
        let (base, reserved) = reserved?;
        let region = Region { base, bytes: AtomicUsize::new(0), reserved, file };
        region.commit(bytes)?;
        Ok(region)
    }

    /// Grows the region in place; its contents stay, and new bytes are zero. Has no effect for a smaller size. A region
    /// of a peer can grow after its owner has grown it.
    ///
    /// # Errors
    /// Too little memory, or no addresses left.
    pub fn grow(&self, bytes: usize) -> io::Result<()> {
        if bytes <= self.bytes() {
            return Ok(());
        }
        if bytes > self.reserved {
            return Err(io::Error::other("there are no addresses left to grow into"));
        }
        if let Backing::Own(file) = &self.file {
            allocate(file, bytes)?;
        }
        self.commit(bytes)
    }

    /// Backs the first bytes of the range with memory, beyond those that are already backed.
    fn commit(&self, bytes: usize) -> io::Result<()> {
        let (from, to) = (page_after(self.bytes()), page_after(bytes));
        if from < to {
            let rights = libc::PROT_READ | libc::PROT_WRITE;
            let opened;
            let file = match &self.file {
                Backing::Private => None,
                Backing::Own(file) => Some(file),
                Backing::Peer(handle) => {
                    opened = handle.open()?;
                    Some(&opened)
                }
            };
            // SAFETY: the pages are in the range that is reserved for this region alone, or share its last page, and
            // hold nothing yet. A mapping that replaces them maps the same bytes of the file.
            let failed = unsafe {
                let first = self.base.as_ptr().add(from).cast();
                match file {
                    None => libc::mprotect(first, to - from, rights) != 0,
                    Some(file) => {
                        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
                        let offset = libc::off_t::try_from(from).map_err(io::Error::other)?;
                        libc::mmap(first, to - from, rights, flags, file.as_raw_fd(), offset) == libc::MAP_FAILED
                    }
                }
            };
            if failed {
                return Err(io::Error::last_os_error());
            }
            // Products access rows that are pages apart. A system without huge pages refuses, which does no harm.
            // SAFETY: advice on pages of this region; it changes no contents.
            unsafe { libc::madvise(self.base.as_ptr().add(from).cast(), to - from, libc::MADV_HUGEPAGE) };
        }
        self.bytes.store(bytes, Ordering::Release);
        Ok(())
    }

    /// The first byte.
    pub fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Bytes.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Acquire)
    }

    /// The handle for other processes, if this process shares the block.
    pub fn handle(&self) -> Option<Handle> {
        match &self.file {
            Backing::Own(file) => Some(Handle { pid: std::process::id(), fd: file.as_raw_fd(), bytes: self.bytes() }),
            Backing::Private | Backing::Peer(_) => None,
        }
    }
}

/// Reserves a range of addresses without memory.
fn reserve(bytes: usize) -> io::Result<NonNull<u8>> {
    if bytes == 0 {
        return Ok(NonNull::<Page>::dangling().cast());
    }
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping at an address that the system chooses.
    let base = unsafe { libc::mmap(null_mut(), bytes, libc::PROT_NONE, flags, -1, 0) };
    match NonNull::new(base.cast::<u8>()) {
        Some(found) if base != libc::MAP_FAILED => Ok(found),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Allocates this many bytes of a file.
fn allocate(file: &File, bytes: usize) -> io::Result<()> {
    file.set_len(bytes as u64)?;
    if bytes == 0 {
        return Ok(());
    }
    let length = libc::off_t::try_from(bytes).map_err(io::Error::other)?;
    loop {
        // SAFETY: a system call on a descriptor that is open.
        match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, length) } {
            0 => return Ok(()),
            libc::EINTR => {}
            error => return Err(io::Error::from_raw_os_error(error)),
        }
    }
}

/// The alignment of an empty region.
#[repr(align(4096))]
struct Page;

impl Drop for Region {
    fn drop(&mut self) {
        if self.reserved > 0 {
            // SAFETY: mapped with this size in `reserve`; every user of the memory holds a reference to the region.
            unsafe { libc::munmap(self.base.as_ptr().cast(), self.reserved) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_block_is_the_same_memory_through_its_handle() {
        let mine = Region::shared(10_000, Growth::Fixed).unwrap();
        let handle = mine.handle().unwrap();
        assert_eq!(Handle::parse(&handle.to_text()), Some(handle));
        let theirs = Region::of_peer(handle, Growth::Fixed).unwrap();
        // SAFETY: both mappings are alive, and only this thread uses them.
        unsafe {
            mine.base().add(9_999).write(7);
            assert_eq!(theirs.base().add(9_999).read(), 7);
        }
        assert_ne!(mine.base(), theirs.base());
        assert!(Region::of_peer(Handle { bytes: 1, ..handle }, Growth::Fixed).is_err());
        assert!(Region::of_peer(Handle { fd: 9_999, ..handle }, Growth::Fixed).is_err());
        assert!(Region::private(0, Growth::Fixed).unwrap().handle().is_none());
    }

    #[test]
    fn a_block_grows_where_it_lies_on_both_sides() {
        for bytes in [0, 5, 4096, 10_000] {
            let growth = Growth::of_one_in(1);
            let (private, mine) = (Region::private(bytes, growth), Region::shared(bytes, growth));
            let (private, mine) = (private.unwrap(), mine.unwrap());
            let theirs = Region::of_peer(mine.handle().unwrap(), growth).unwrap();
            let places = [private.base(), mine.base(), theirs.base()];
            for larger in [1_000_000, 1_000_001, 3_000_000] {
                let last = larger - 1;
                for region in [&private, &mine, &theirs] {
                    region.grow(larger).unwrap();
                    assert_eq!(region.bytes(), larger);
                }
                // SAFETY: the mappings are alive and have this many bytes; only this thread uses them.
                unsafe {
                    private.base().add(last).write(3);
                    mine.base().add(last).write(7);
                    assert_eq!(theirs.base().add(last).read(), 7);
                    // The last byte of the first size still holds what was written to it.
                    assert_eq!((private.base().add(999_999).read(), theirs.base().add(999_999).read()), (3, 7));
                }
            }
            assert_eq!([private.base(), mine.base(), theirs.base()], places);
            assert_eq!(mine.handle().map(|h| h.bytes), Some(3_000_000));
        }
        assert!(Region::private(5, Growth::Fixed).unwrap().grow(6).is_err());
        assert!(Region::private(5, Growth::Fixed).unwrap().grow(5).is_ok());
    }

    /// A process maps the arenas of all its peers: thousands of them fit into its addresses, and none keeps a file open.
    #[test]
    fn thousands_of_blocks_are_mapped_at_once() {
        let mine = Region::shared(5000, Growth::of_one_in(4096)).unwrap();
        let handle = mine.handle().unwrap();
        let map = |_| Region::of_peer(handle, Growth::of_one_in(4096)).unwrap();
        let theirs: Vec<Region> = (0..4096).map(map).collect();
        mine.grow(1 << 20).unwrap();
        theirs.iter().for_each(|region| region.grow(1 << 20).unwrap());
        // SAFETY: all mappings are alive, and only this thread uses them.
        unsafe {
            mine.base().add((1 << 20) - 1).write(7);
            assert!(theirs.iter().all(|region| region.base().add((1 << 20) - 1).read() == 7));
        }
    }

    #[test]
    fn broken_handles_are_none() {
        for text in ["", "1", "1:2", "1:2:3:4", "a:2:3"] {
            assert_eq!(Handle::parse(text), None, "{text}");
        }
    }
}
