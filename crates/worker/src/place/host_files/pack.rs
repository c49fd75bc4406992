//! A directory as a tar archive that is read while it is made.
//!
//! The names in it are relative to the directory; the directory itself comes first with the empty name, each directory
//! before what is in it, names in order.
//! A file that changes meanwhile is cut or filled with zeros to the length it had; one that vanishes is left out.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use protocol::command::Compression;
use ssh::TarTime;
use tar::EntryType;
use tokio::io::AsyncRead;

use super::super::archive::{Attributes, Members, archive};

/// Of how many files with several names the first name is remembered; the others are packed as files of their own.
const MAX_LINKED: usize = 64 * 1024;

/// Packs `root`; what can't be opened at all is an error here, what goes wrong later is an error of the reader.
/// Dropping the reader ends the packing.
pub(super) async fn pack(root: &Path, compression: Compression) -> io::Result<impl AsyncRead + Send + Unpin + use<>> {
    let root = root.to_owned();
    let top = super::on_a_blocking_thread(move || Level::open(root, PathBuf::new())).await?;
    Ok(archive(compression, move |members| Packing { members, linked: HashMap::new() }.all(top)))
}

/// A directory that is being packed.
struct Level {
    path: PathBuf,
    /// Its name in the archive.
    member: PathBuf,
    metadata: Metadata,
    names: std::vec::IntoIter<OsString>,
}

impl Level {
    fn open(path: PathBuf, member: PathBuf) -> io::Result<Self> {
        let metadata = path.metadata()?;
        let names = super::names(&path)?.into_iter();
        Ok(Level { path, member, metadata, names })
    }
}

struct Packing<'a> {
    members: &'a mut Members,
    /// The names under which files with several names are in the archive, by device and inode.
    linked: HashMap<(u64, u64), PathBuf>,
}

impl Packing<'_> {
    fn all(&mut self, top: Level) -> io::Result<()> {
        self.members.add_plain(EntryType::Directory, &attributes(&top.metadata), top.member.as_os_str())?;
        let mut levels = vec![top];
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.names.next() else {
                levels.pop();
                continue;
            };
            let (path, member) = (level.path.join(&name), level.member.join(&name));
            match self.add(path, member) {
                Ok(Some(below)) => levels.push(below),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Adds what is at `path`; of a directory only itself, and returns it.
    fn add(&mut self, path: PathBuf, member: PathBuf) -> io::Result<Option<Level>> {
        let metadata = path.symlink_metadata().map_err(|error| naming(&member, &error))?;
        let (kind, attributes) = (metadata.file_type(), attributes(&metadata));
        if kind.is_dir() {
            let level = Level::open(path, member.clone()).map_err(|error| naming(&member, &error))?;
            self.members.add_plain(EntryType::Directory, &self::attributes(&level.metadata), member.as_os_str())?;
            return Ok(Some(level));
        }
        if kind.is_file() {
            self.add_file(&path, &member)?;
        } else if kind.is_symlink() {
            let target = path.read_link().map_err(|error| naming(&member, &error))?;
            self.members.add_link(EntryType::Symlink, &attributes, member.as_os_str(), target.as_os_str())?;
        } else if kind.is_fifo() {
            self.members.add_plain(EntryType::Fifo, &attributes, member.as_os_str())?;
        } else if kind.is_char_device() {
            self.members.add_plain(EntryType::Char, &attributes, member.as_os_str())?;
        } else if kind.is_block_device() {
            self.members.add_plain(EntryType::Block, &attributes, member.as_os_str())?;
        }
        // What is left is a socket, for which tar has no kind of member.
        Ok(None)
    }

    fn add_file(&mut self, path: &Path, member: &Path) -> io::Result<()> {
        // Whatever stands there by now: it is not followed, and a pipe does not hold us up.
        let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
        let file = opened.map_err(|error| naming(member, &error))?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Ok(());
        }
        let identity = (metadata.dev(), metadata.ino());
        if metadata.nlink() > 1 {
            if let Some(first) = self.linked.get(&identity) {
                let attributes = attributes(&metadata);
                return self.members.add_link(EntryType::Link, &attributes, member.as_os_str(), first.as_os_str());
            }
            if self.linked.len() < MAX_LINKED {
                self.linked.insert(identity, member.to_owned());
            }
        }
        let content = Exactly { file, left: metadata.size(), ended: false };
        self.members.add_file(&attributes(&metadata), member.as_os_str(), metadata.size(), content)
    }
}

fn attributes(metadata: &Metadata) -> Attributes {
    let device = metadata.file_type().is_char_device() || metadata.file_type().is_block_device();
    let number = |part: u64| u32::try_from(part).unwrap_or(0);
    Attributes {
        mode: metadata.mode(),
        uid: metadata.uid().into(),
        gid: metadata.gid().into(),
        mtime: TarTime::of(metadata),
        device: device
            .then(|| (number(nix::sys::stat::major(metadata.rdev())), number(nix::sys::stat::minor(metadata.rdev())))),
    }
}

/// Says which member an error is about.
fn naming(member: &Path, error: &io::Error) -> io::Error {
    let error_text = error.to_string();
    let (reason, _) = error_text.split_once(" (os error").unwrap_or((&error_text, ""));
    io::Error::new(error.kind(), format!("{}: {reason}", member.display()))
}

/// A file's content with the length it had, however the file changes.
struct Exactly {
    file: File,
    left: u64,
    ended: bool,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = &mut buffer[..most];
        let mut count = if self.ended { 0 } else { self.file.read(buffer)? };
        if count == 0 {
            self.ended = true;
            buffer.fill(0);
            count = most;
        }
        self.left -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ffi::OsStr;
    use std::fs;
    use std::io::Write;
    use std::os::unix::ffi::OsStringExt;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::process::{Command, Stdio};

    use tempfile::TempDir;
    use tokio::io::AsyncReadExt;

    use super::*;

    fn tree(files: &[(&str, usize)]) -> TempDir {
        let tree = tempfile::tempdir().expect("a directory");
        for (name, size) in files {
            let path = tree.path().join(name);
            fs::create_dir_all(path.parent().expect("it has one")).expect("directories");
            let content: Vec<u8> = (0..*size).map(|at| (at * 31 % 251) as u8).collect();
            fs::write(path, content).expect("a file");
        }
        tree
    }

    fn archive(root: &Path, compression: Compression) -> io::Result<Vec<u8>> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let mut archive = Vec::new();
            pack(root, compression).await?.read_to_end(&mut archive).await?;
            Ok(archive)
        })
    }

    /// Runs a Python program on an archive, as the master does, and returns what it prints.
    fn python(archive: &[u8], script: &str, args: &[&OsStr]) -> String {
        let mut python = Command::new("python3")
            .args(["-c", script])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 starts");
        python.stdin.take().expect("a pipe").write_all(archive).expect("python3 reads all");
        let output = python.wait_with_output().expect("python3 ends");
        assert!(output.status.success());
        String::from_utf8(output.stdout).expect("text")
    }

    /// Names, types and sizes, as Python reads them.
    fn listing(archive: &[u8]) -> String {
        let script = "import sys,tarfile\n\
                      for m in tarfile.open(fileobj=sys.stdin.buffer, mode='r|'): print(m.name, m.type.decode(), m.size)";
        python(archive, script, &[])
    }

    /// What is in a tree: type, permission bits, modification time in seconds, and content or target.
    fn description(root: &Path) -> BTreeMap<PathBuf, (char, u32, i64, Vec<u8>)> {
        let mut description = BTreeMap::new();
        let mut pending = vec![root.to_owned()];
        while let Some(path) = pending.pop() {
            let of = path.symlink_metadata().expect("it is there");
            let (kind, content) = if of.is_dir() {
                pending.extend(super::super::names(&path).expect("names").into_iter().map(|name| path.join(name)));
                ('d', Vec::new())
            } else if of.is_symlink() {
                ('l', path.read_link().expect("a target").into_os_string().into_vec())
            } else {
                ('f', fs::read(&path).expect("content"))
            };
            // A link's own time is not restored, nor is the mode of a directory.
            let mtime = if kind == 'l' { 0 } else { of.mtime() };
            let mode = if kind == 'f' { of.mode() & 0o7777 } else { 0 };
            let name = path.strip_prefix(root).expect("it is below").to_owned();
            description.insert(name, (kind, mode, mtime, content));
        }
        description
    }

    #[track_caller]
    fn check_round_trip(compression: Compression, mode: &str) {
        let long = "long/".repeat(40) + &"n".repeat(120);
        let files =
            [("a", 0), ("b/c", 511), ("b/d", 512), ("b/e", 513), ("big", 700_000), (&long, 10), (&"x".repeat(100), 1)];
        let tree = tree(&files);
        let root = tree.path();
        fs::create_dir(root.join("empty")).expect("a directory");
        fs::create_dir(root.join("y".repeat(99))).expect("a directory");
        fs::write(root.join(OsString::from_vec(b"bad\xff".to_vec())), "x").expect("a file");
        fs::write(root.join(OsString::from_vec([&b"\xff"[..], &[b'z'; 150]].concat())), "x").expect("a file");
        fs::write(root.join("b/é"), "x").expect("a file");
        fs::set_permissions(root.join("b/c"), fs::Permissions::from_mode(0o755)).expect("a mode");
        symlink("b/c", root.join("link")).expect("a link");
        symlink(&long, root.join("long-link")).expect("a link");
        symlink("missing", root.join("b/broken")).expect("a link");
        fs::hard_link(root.join("b/d"), root.join("b/d2")).expect("a second name");
        fs::hard_link(root.join(&long), root.join("z-of-long")).expect("a second name");
        // Before 1970, and not at the beginning of a second.
        let old = std::time::SystemTime::UNIX_EPOCH - std::time::Duration::from_millis(1_000_250);
        File::open(root.join("a")).and_then(|file| file.set_modified(old)).expect("a time");

        let archive = archive(root, compression).expect("an archive");
        let unpacked = tempfile::tempdir().expect("a directory");
        let target = unpacked.path().join("out");
        let script = "import sys,tarfile\n\
                      tarfile.open(fileobj=sys.stdin.buffer, mode=sys.argv[1]).extractall(sys.argv[2], filter='data')";
        python(&archive, script, &[OsStr::new(mode), target.as_os_str()]);
        assert_eq!(description(&target), description(root));
        let old = target.join("a").metadata().expect("it is there");
        assert_eq!((old.mtime(), old.mtime_nsec()), (-1001, 750_000_000));
        assert_eq!(target.join("b/d").metadata().expect("it is there").nlink(), 2);
    }

    #[test]
    fn python_unpacks_the_same_tree() {
        check_round_trip(Compression::None, "r|");
        check_round_trip(Compression::Gz, "r|gz");
        check_round_trip(Compression::Bz2, "r|bz2");
    }

    #[test]
    fn the_directory_itself_comes_first_and_the_rest_in_order() {
        let tree = tree(&[("b", 1), ("a/y", 2), ("a/x", 3), ("a.c", 4)]);
        let archive = archive(tree.path(), Compression::None).expect("an archive");
        assert_eq!(listing(&archive), " 5 0\na 5 0\na/x 0 3\na/y 0 2\na.c 0 4\nb 0 1\n");
    }

    #[test]
    fn pipes_are_kept_and_sockets_left_out() {
        let tree = tree(&[("f", 1)]);
        nix::unistd::mkfifo(&tree.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        let _socket = std::os::unix::net::UnixListener::bind(tree.path().join("socket")).expect("a socket");
        let archive = archive(tree.path(), Compression::None).expect("an archive");
        assert_eq!(listing(&archive), " 5 0\nf 0 1\npipe 6 0\n");
    }

    #[tokio::test]
    async fn files_that_change_while_they_are_packed_leave_a_readable_archive() {
        const LARGE: usize = 8 * 1024 * 1024;
        let tree = tree(&[("a", LARGE), ("b", 10), ("c/d", 10), ("e", 10)]);
        let mut reader = pack(tree.path(), Compression::None).await.expect("it begins");
        let mut archive = vec![0; 2048];
        // `a` has been opened by now, and is far from being read to its end: the queue is bounded.
        reader.read_exact(&mut archive).await.expect("its beginning");
        File::options().write(true).open(tree.path().join("a")).and_then(|file| file.set_len(1)).expect("it shrinks");
        fs::remove_file(tree.path().join("b")).expect("it vanishes");
        fs::remove_dir_all(tree.path().join("c")).expect("it vanishes");
        reader.read_to_end(&mut archive).await.expect("the rest");
        assert_eq!(listing(&archive), format!(" 5 0\na 0 {LARGE}\ne 0 10\n"));
    }

    #[test]
    fn a_file_that_grows_is_cut() {
        let tree = tree(&[("f", 10)]);
        let file = File::open(tree.path().join("f")).expect("it opens");
        let mut content = Vec::new();
        Exactly { file, left: 4, ended: false }.read_to_end(&mut content).expect("content");
        assert_eq!(content, [0, 31, 62, 93]);
    }

    #[test]
    fn a_reader_that_goes_away_ends_the_packing() {
        let tree = tree(&[]);
        File::create(tree.path().join("endless")).and_then(|file| file.set_len(1 << 40)).expect("a sparse file");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let mut reader = pack(tree.path(), Compression::None).await.expect("it begins");
            reader.read_u8().await.expect("a byte");
        });
        // Waits for the thread, which would need hours.
        drop(runtime);
    }

    #[test]
    fn what_is_no_directory_is_refused_before_anything_is_sent() {
        let tree = tree(&[("f", 1)]);
        let error = |name: &str| archive(&tree.path().join(name), Compression::None).expect_err("no archive");
        assert_eq!(error("f").raw_os_error(), Some(nix::libc::ENOTDIR));
        assert_eq!(error("missing").raw_os_error(), Some(nix::libc::ENOENT));
    }
}
