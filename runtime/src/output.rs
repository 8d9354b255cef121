//! Files that are written for a user: where a path leads, and how the file there is replaced.
//!
//! | the path leads to | what happens |
//! |---|---|
//! | nothing, or a regular file | the contents go into a temporary file next to it, which gets its name when they are complete: a reader sees either the whole old file or the whole new one |
//! | a symbolic link | the link is followed and kept; the target of a dangling link is created |
//! | a pipe, a socket, a device | it is written to |
//! | a descriptor that this process has open (`/dev/stdout`, `/dev/fd/N`, bash's `>(…)`) | it is written to, at its current position |
//! | a directory | an error |
//!
//! [`Output::at`] resolves the path before the contents are computed, and keeps pipes open from then on. A file keeps
//! its permissions and, if the system allows it, its owner.

use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, fchown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

/// A resolved place for a file, before its contents exist.
#[derive(Debug)]
pub struct Output {
    path: PathBuf,
    way: Way,
}

#[derive(Debug)]
enum Way {
    /// A new file gets this name.
    Replace(PathBuf),
    /// The existing file is written to.
    Stream(File),
}

impl Output {
    /// Resolves a path, and checks that it can be written to. Opening a named pipe waits for its reader.
    ///
    /// # Errors
    /// A directory, a path in a directory that does not exist or does not accept files, a file or device that may not
    /// be written.
    pub fn at(path: &Path) -> io::Result<Self> {
        let way = match Destination::of(path)? {
            Destination::Directory(_) => return Err(io::Error::new(ErrorKind::IsADirectory, "it is a directory")),
            Destination::Descriptor(number) => Way::Stream(duplicate(number)?),
            Destination::Socket(socket) => Way::Stream(OwnedFd::from(UnixStream::connect(socket)?).into()),
            Destination::Special(special) => Way::Stream(File::options().write(true).open(special)?),
            Destination::File(target) => {
                names_a_file(&target)?;
                // Renaming would succeed even if the file may not be written.
                match File::options().write(true).open(&target) {
                    Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
                Temporary::beside(&target)?;
                Way::Replace(target)
            }
        };
        Ok(Output { path: path.to_path_buf(), way })
    }

    /// The path as it was given, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The regular file that is replaced, if it already exists.
    pub fn replaced(&self) -> Option<&Path> {
        match &self.way {
            Way::Replace(target) => target.is_file().then_some(target),
            Way::Stream(_) => None,
        }
    }

    /// Begins writing the contents.
    ///
    /// # Errors
    /// A directory that does not accept files.
    pub fn begin(self) -> io::Result<Writing> {
        match self.way {
            Way::Stream(file) => Ok(Writing { file, replaces: None }),
            Way::Replace(target) => {
                let (temporary, file) = Temporary::beside(&target)?;
                if let Ok(before) = fs::metadata(&target) {
                    // Only a privileged process may give files away. A change of owner clears bits of the mode, so it
                    // comes first.
                    let _ = fchown(&file, Some(before.uid()), Some(before.gid()));
                    file.set_permissions(before.permissions())?;
                }
                Ok(Writing { file, replaces: Some((temporary, target)) })
            }
        }
    }

    /// Writes all of the contents.
    ///
    /// # Errors
    /// A disk, pipe or device that rejects them; an existing file is then unchanged.
    pub fn write(self, contents: &[u8]) -> io::Result<()> {
        let mut writing = self.begin()?;
        writing.write_all(contents)?;
        writing.commit().map(drop)
    }
}

/// A file whose contents are being written. Unless it is committed, a regular file is removed and the previous file
/// stays.
#[derive(Debug)]
pub struct Writing {
    file: File,
    replaces: Option<(Temporary, PathBuf)>,
}

impl Writing {
    /// Gives the file its name after its contents have reached the disk. More can be written to the returned file,
    /// where readers see it at once.
    ///
    /// # Errors
    /// A disk that rejects the contents.
    pub fn commit(self) -> io::Result<File> {
        if let Some((temporary, target)) = self.replaces {
            self.file.sync_all()?;
            fs::rename(&temporary.0, target)?;
        }
        Ok(self.file)
    }
}

impl Write for Writing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// A file next to the one that it will replace; removed when this is dropped, unless it was renamed.
#[derive(Debug)]
struct Temporary(PathBuf);

/// Bytes of the target's name that the temporary file's name contains: with the rest of the name well below the limit
/// of 255 of most file systems.
const CARRIED: usize = 100;

impl Temporary {
    fn beside(target: &Path) -> io::Result<(Self, File)> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let name = &name[..name.floor_char_boundary(CARRIED)];
        loop {
            // A leftover of another process with the same number stays, because that process may be alive on another
            // host.
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = target.with_file_name(format!(".{name}.{}-{number}.tmp", process::id()));
            // The launcher is told first, because this process may be killed at any moment.
            set_leftover(&path);
            match File::create_new(&path) {
                Ok(file) => return Ok((Temporary(path), file)),
                Err(error) => {
                    set_leftover(Path::new(""));
                    if error.kind() != ErrorKind::AlreadyExists {
                        return Err(error);
                    }
                }
            }
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
        set_leftover(Path::new(""));
    }
}

/// Tells the launcher, if there is one, what to remove if this process dies.
fn set_leftover(path: &Path) {
    if let Some(processes) = crate::launch::joined() {
        processes.leftover(path);
    }
}

/// What a path leads to after following its links.
enum Destination {
    /// A regular file, or nothing yet.
    File(PathBuf),
    Directory(PathBuf),
    /// A pipe or a device, opened for writing.
    Special(PathBuf),
    Socket(PathBuf),
    /// A descriptor that is open in this process.
    Descriptor(RawFd),
}

/// Maximum number of links to follow, as in Linux.
const LINKS: usize = 40;

impl Destination {
    fn of(path: &Path) -> io::Result<Self> {
        let mut path = path.to_path_buf();
        for _ in 0..LINKS {
            if let Some(number) = own_descriptor(&path) {
                return Ok(Destination::Descriptor(number));
            }
            let found = match fs::symlink_metadata(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Destination::File(path)),
                found => found?,
            };
            if !found.is_symlink() {
                return Ok(Destination::known(path, &found));
            }
            let next = path.parent().unwrap_or(Path::new("")).join(fs::read_link(&path)?);
            match fs::metadata(&path) {
                // Only the system can follow links in /proc to files without a name.
                Ok(found) if fs::symlink_metadata(&next).is_err() => {
                    return Ok(match Destination::known(path, &found) {
                        Destination::File(path) => Destination::Special(path),
                        other => other,
                    });
                }
                _ => path = next,
            }
        }
        Err(io::Error::other("its links lead in a circle"))
    }

    fn known(path: PathBuf, found: &Metadata) -> Self {
        let kind = found.file_type();
        match () {
            () if kind.is_dir() => Destination::Directory(path),
            () if kind.is_file() => Destination::File(path),
            () if kind.is_socket() => Destination::Socket(path),
            () => Destination::Special(path),
        }
    }
}

/// The descriptor of this process that a path names: `/dev/fd/3`, `/proc/self/fd/3`.
fn own_descriptor(path: &Path) -> Option<RawFd> {
    let number = path.file_name()?.to_str()?.parse().ok()?;
    let dir = fs::canonicalize(path.parent()?).ok()?;
    let own = ["/proc/self/fd", "/proc/thread-self/fd"].into_iter().filter_map(|own| fs::canonicalize(own).ok());
    own.into_iter().any(|own| own == dir).then_some(number)
}

/// Duplicates the descriptor of an open file: opening it by its path would start at its beginning, and fails for a
/// socket.
fn duplicate(number: RawFd) -> io::Result<File> {
    // SAFETY: F_GETFL takes any number and touches no memory; it fails for one that is not open.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    if flags & libc::O_ACCMODE == libc::O_RDONLY {
        return Err(io::Error::new(ErrorKind::PermissionDenied, "it is open for reading only"));
    }
    // SAFETY: F_DUPFD_CLOEXEC takes any number and touches no memory; it fails for one that is not open.
    let new = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 0) };
    if new < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just created and has no other owner.
    Ok(unsafe { File::from_raw_fd(new) })
}

/// An error for a path that can only name a directory.
fn names_a_file(path: &Path) -> io::Result<()> {
    let text = path.as_os_str().as_bytes();
    let of_dir = path.file_name().is_none() || [&b"/"[..], b"/."].iter().any(|end| text.ends_with(end));
    if of_dir { Err(io::Error::new(ErrorKind::IsADirectory, "it does not name a file")) } else { Ok(()) }
}

/// Creates a directory and its parents unless they exist. Links are followed; the target of a dangling link is created.
///
/// # Errors
/// Something other than a directory is in the way, or nothing can be created there.
pub fn make_dir(path: &Path) -> io::Result<()> {
    match Destination::of(path)? {
        Destination::File(target) => fs::create_dir_all(target),
        _ => fs::create_dir_all(path),
    }
}

/// Checks that files can be written in a directory, which need not exist yet; leaves nothing behind.
///
/// # Errors
/// The directory, or the nearest existing one above it, and the reason why it does not accept files.
pub fn check_dir(path: &Path) -> io::Result<()> {
    let target = match Destination::of(path) {
        Ok(Destination::File(target) | Destination::Directory(target)) => target,
        _ => path.to_path_buf(),
    };
    let is_there = |p: &&Path| p.as_os_str().is_empty() || fs::symlink_metadata(p).is_ok();
    let nearest = target.ancestors().find(is_there).filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match fs::metadata(nearest) {
        Ok(found) if found.is_dir() => Temporary::beside(&nearest.join("tpc")).map(drop),
        Ok(_) => Err(io::Error::other(format!("{} is not a directory", nearest.display()))),
        Err(error) => Err(io::Error::other(format!("{} leads nowhere: {error}", nearest.display()))),
    }
}

/// The identity of what a path leads to, independent of its spelling: equal for links and hard links to one file, and
/// for equal names that do not exist yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// An existing file: its device and its number there.
    Existing(u64, u64),
    /// A missing file: its absolute path without links.
    Missing(PathBuf),
}

impl Identity {
    /// The identity of what a path leads to; `None` for a character device, which can be written and read by several
    /// processes at once, and for files that cannot be inspected.
    pub fn of(path: &Path) -> Option<Self> {
        let found = match Destination::of(path).ok()? {
            Destination::Descriptor(number) => fs::metadata(format!("/proc/self/fd/{number}")),
            Destination::Directory(path) | Destination::Special(path) | Destination::Socket(path) => fs::metadata(path),
            Destination::File(path) => match fs::metadata(&path) {
                Err(_) => return absolute(&path).map(Identity::Missing),
                found => found,
            },
        };
        let found = found.ok()?;
        (!found.file_type().is_char_device()).then(|| Identity::Existing(found.dev(), found.ino()))
    }
}

/// The absolute path of a missing file: the nearest directory above it without links, then the rest.
fn absolute(path: &Path) -> Option<PathBuf> {
    let path = std::path::absolute(path).ok()?;
    path.ancestors().find_map(|above| Some(fs::canonicalize(above).ok()?.join(path.strip_prefix(above).ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;

    /// A directory for one test.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("tpc-output-{}-{name}", process::id()));
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir_all(&dir).unwrap();
            Scratch(dir)
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }

        fn names(&self) -> Vec<String> {
            let mut names: Vec<String> =
                fs::read_dir(&self.0).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn write(path: &Path, contents: &str) {
        Output::at(path).unwrap().write(contents.as_bytes()).unwrap();
    }

    fn refused(path: &Path) -> String {
        Output::at(path).map(|_| ()).unwrap_err().to_string()
    }

    fn fifo(path: &Path) {
        let made = process::Command::new("mkfifo").arg(path).status().unwrap();
        assert!(made.success());
    }

    #[test]
    fn a_regular_file_is_replaced_whole_and_keeps_its_permissions() {
        let scratch = Scratch::new("regular");
        let file = scratch.path("file");
        fs::write(&file, "before").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        let before = fs::metadata(&file).unwrap();
        let mut writing = Output::at(&file).unwrap().begin().unwrap();
        writing.write_all(b"after").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "before");
        let mut file_again = writing.commit().unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "after");
        file_again.write_all(b" and more").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "after and more");
        let after = fs::metadata(&file).unwrap();
        assert_eq!(after.permissions().mode() & 0o7777, 0o640);
        assert_ne!(before.ino(), after.ino());
        assert_eq!(scratch.names(), ["file"]);
    }

    #[test]
    fn what_is_not_committed_leaves_the_file_as_it_was() {
        let scratch = Scratch::new("dropped");
        let file = scratch.path("file");
        fs::write(&file, "before").unwrap();
        let mut writing = Output::at(&file).unwrap().begin().unwrap();
        writing.write_all(b"half").unwrap();
        assert_eq!(scratch.names().len(), 2);
        drop(writing);
        assert_eq!(fs::read_to_string(&file).unwrap(), "before");
        assert_eq!(scratch.names(), ["file"]);
    }

    #[test]
    fn links_stay_and_their_targets_change() {
        let scratch = Scratch::new("links");
        fs::create_dir(scratch.path("below")).unwrap();
        fs::write(scratch.path("below/real"), "before").unwrap();
        symlink("real", scratch.path("below/near")).unwrap();
        symlink("below/near", scratch.path("far")).unwrap();
        symlink("below/made", scratch.path("dangling")).unwrap();
        symlink("round", scratch.path("circle")).unwrap();
        symlink("circle", scratch.path("round")).unwrap();
        write(&scratch.path("far"), "after");
        write(&scratch.path("dangling"), "new");
        assert_eq!(fs::read_to_string(scratch.path("below/real")).unwrap(), "after");
        assert_eq!(fs::read_to_string(scratch.path("below/made")).unwrap(), "new");
        for link in ["far", "below/near", "dangling"] {
            assert!(fs::symlink_metadata(scratch.path(link)).unwrap().is_symlink(), "{link}");
        }
        assert_eq!(refused(&scratch.path("circle")), "its links lead in a circle");
        symlink("below", scratch.path("dir")).unwrap();
        assert_eq!(refused(&scratch.path("dir")), "it is a directory");
    }

    #[test]
    fn pipes_sockets_and_devices_are_written_to() {
        let scratch = Scratch::new("special");
        let pipe = scratch.path("pipe");
        fifo(&pipe);
        symlink("pipe", scratch.path("to-pipe")).unwrap();
        for path in [pipe.clone(), scratch.path("to-pipe")] {
            let reads = pipe.clone();
            let reader = std::thread::spawn(move || fs::read_to_string(reads).unwrap());
            let output = Output::at(&path).unwrap();
            assert_eq!(output.replaced(), None);
            output.write(b"through").unwrap();
            assert_eq!(reader.join().unwrap(), "through");
        }
        let socket = scratch.path("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            listener.accept().unwrap().0.read_to_string(&mut text).unwrap();
            text
        });
        write(&socket, "through");
        assert_eq!(reader.join().unwrap(), "through");
        // A link of our own, so that a mistake replaces the link and not the device.
        symlink("/dev/null", scratch.path("null")).unwrap();
        write(&scratch.path("null"), "gone");
        assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
        assert_eq!(scratch.names(), ["null", "pipe", "socket", "to-pipe"]);
    }

    #[test]
    fn an_open_descriptor_is_written_to_where_it_stands() {
        let scratch = Scratch::new("descriptor");
        let mut file = File::create(scratch.path("log")).unwrap();
        file.write_all(b"before, ").unwrap();
        for dir in ["/dev/fd", "/proc/self/fd"] {
            write(&Path::new(dir).join(file.as_raw_fd().to_string()), "between, ");
        }
        file.write_all(b"after").unwrap();
        assert_eq!(fs::read_to_string(scratch.path("log")).unwrap(), "before, between, between, after");
        let (near, mut far) = UnixStream::pair().unwrap();
        write(&Path::new("/dev/fd").join(near.as_raw_fd().to_string()), "through");
        drop(near);
        let mut text = String::new();
        far.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        let readable = File::open(scratch.path("log")).unwrap();
        let path = Path::new("/dev/fd").join(readable.as_raw_fd().to_string());
        assert_eq!(refused(&path), "it is open for reading only");
    }

    #[test]
    fn long_names_are_names() {
        let scratch = Scratch::new("long");
        // 250 bytes, with characters of one and of three bytes.
        for name in ["x".repeat(250), format!("{}x", "長".repeat(83))] {
            assert_eq!(name.len(), 250);
            write(&scratch.path(&name), "contents");
            assert_eq!(fs::read_to_string(scratch.path(&name)).unwrap(), "contents");
        }
        assert_eq!(scratch.names().len(), 2);
        assert!(refused(&scratch.path(&"x".repeat(256))).contains("too long"));
    }

    #[test]
    fn what_takes_no_file_is_refused_at_once() {
        let scratch = Scratch::new("refused");
        fs::write(scratch.path("file"), "").unwrap();
        assert_eq!(refused(&scratch.0), "it is a directory");
        for path in ["new/", "new/.", "", ".."].map(|p| if p.is_empty() { PathBuf::new() } else { scratch.path(p) }) {
            assert!(["it does not name a file", "it is a directory"].contains(&&*refused(&path)), "{path:?}");
        }
        assert!(refused(&scratch.path("no/file")).contains("No such file"));
        assert!(refused(&scratch.path("file/file")).contains("Not a directory"));
        assert_eq!(scratch.names(), ["file"]);
    }

    #[test]
    fn directories_are_made_through_links() {
        let scratch = Scratch::new("dirs");
        symlink("target", scratch.path("link")).unwrap();
        check_dir(&scratch.path("link")).unwrap();
        assert_eq!(scratch.names(), ["link"]);
        make_dir(&scratch.path("link")).unwrap();
        assert!(scratch.path("target").is_dir() && fs::symlink_metadata(scratch.path("link")).unwrap().is_symlink());
        make_dir(&scratch.path("link/a/b")).unwrap();
        check_dir(&scratch.path("link/a/c/d")).unwrap();
        fs::write(scratch.path("file"), "").unwrap();
        let said = check_dir(&scratch.path("file/a")).unwrap_err().to_string();
        assert_eq!(said, format!("{} is not a directory", scratch.path("file").display()));
        assert_eq!(scratch.names(), ["file", "link", "target"]);
    }

    #[test]
    fn an_identity_does_not_depend_on_the_spelling() {
        let scratch = Scratch::new("identity");
        fs::create_dir(scratch.path("dir")).unwrap();
        fs::write(scratch.path("file"), "").unwrap();
        fs::write(scratch.path("other"), "").unwrap();
        symlink("../file", scratch.path("dir/link")).unwrap();
        symlink("../missing", scratch.path("dir/dangling")).unwrap();
        fs::hard_link(scratch.path("file"), scratch.path("hard")).unwrap();
        let same = |a: &str, b: &str| {
            let [a, b] = [a, b].map(|name| Identity::of(&scratch.path(name)));
            a.is_some() && a == b
        };
        for other in ["dir/../file", "./file", "dir/link", "hard"] {
            assert!(same("file", other), "{other}");
        }
        assert!(same("missing", "dir/dangling") && same("missing", "dir/../missing") && same("no/a", "dir/../no/a"));
        assert!(!same("file", "other") && !same("missing", "file") && !same("missing", "dir"));
        assert_eq!(Identity::of(Path::new("/dev/null")), None);
    }
}
