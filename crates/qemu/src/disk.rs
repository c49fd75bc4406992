//! Disks: their formats, what is known of them, and overlays on them.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use process::{Limits, Output, OutputError};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::Qemu;
use crate::tool::tool;

/// The format of a disk image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// QEMU's own: sparse, and able to lie over another image.
    Qcow2,
    /// The disk's bytes and nothing else.
    Raw,
}

impl Format {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Format::Qcow2 => "qcow2",
            Format::Raw => "raw",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An image that overlays lie over. It is only ever read, by any number of machines at once, and must not change while
/// there is an overlay on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// Where it is. A relative path is taken from our working directory.
    pub file: PathBuf,
    /// Its format.
    pub format: Format,
}

/// What `qemu-img info` says of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Disk {
    /// QEMU's name for its format; not every format can be used here.
    pub format: String,
    /// Bytes the guest sees.
    pub virtual_size: u64,
    /// Bytes it occupies on the host.
    pub actual_size: u64,
    /// The image it lies over.
    #[serde(rename = "full-backing-filename")]
    pub backing: Option<PathBuf>,
    /// That image's format.
    #[serde(rename = "backing-filename-format")]
    pub backing_format: Option<String>,
    /// Whether it takes a key to read it.
    #[serde(default)]
    pub encrypted: bool,
    /// What only its format has.
    #[serde(rename = "format-specific", default)]
    specific: Specific,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
struct Specific {
    #[serde(default)]
    data: SpecificData,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct SpecificData {
    data_file: Option<PathBuf>,
    #[serde(default)]
    corrupt: bool,
}

/// Why something could not be done with a disk.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DiskError {
    /// The image is not there or may not be read.
    #[error("can't read disk image {}: {source}; check the image's `disk` and its permissions", file.display())]
    Unreadable {
        /// The image.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The image has another format than it was said to have.
    #[error("disk image {} is {found}; correct the image's `format`, which says {said}", file.display())]
    WrongFormat {
        /// The image.
        file: PathBuf,
        /// What was said.
        said: Format,
        /// What it looks like.
        found: &'static str,
    },
    /// QEMU does not open it.
    #[error("qemu can't open disk image {}: {why}", file.display())]
    Unopenable {
        /// The image.
        file: PathBuf,
        /// What QEMU says.
        why: String,
    },
    /// The host's disk, or a quota on it, is full.
    #[error("no space left for {}: make room and try again", file.display())]
    Full {
        /// What was to be written.
        file: PathBuf,
    },
    /// The finished file could not be put in its place.
    #[error("put overlay {} in place: {source}", file.display())]
    Place {
        /// Where it should be.
        file: PathBuf,
        /// Why it is not.
        source: io::Error,
    },
    /// `qemu-img` failed or could not be run.
    #[error("{doing} {}: {source}", file.display())]
    Tool {
        /// What it was to do.
        doing: &'static str,
        /// To which file.
        file: PathBuf,
        /// What it said.
        source: OutputError,
    },
    /// `qemu-img` said something unexpected.
    #[error("understand what qemu-img says of {}: {source}", file.display())]
    Answer {
        /// The disk.
        file: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// qemu-img takes some 20 ms. A minute allows for a host whose disks are busy.
const LIMITS: Limits = Limits { deadline: Duration::from_secs(60), max_bytes: 1 << 20 };

/// QEMU opens a disk at once, or says why it does not.
const OPEN_LIMITS: Limits = Limits { deadline: Duration::from_secs(20), max_bytes: 1 << 16 };

/// Copying reads and writes as much as a machine has written.
const COPY_LIMITS: Limits = Limits { deadline: Duration::from_secs(3600), max_bytes: 1 << 20 };

/// How a qcow2 image begins (QEMU, docs/interop/qcow2.txt).
const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";

impl Qemu {
    /// Makes an empty qcow2 overlay on a base. A file that is already there is replaced. The overlay is complete when it
    /// appears; a failure leaves nothing behind.
    pub async fn create_overlay(&self, base: &Base, overlay: &Path) -> Result<(), DiskError> {
        create_overlay(self.img(), base, overlay).await
    }

    /// Makes an overlay that is on the host's disk when it appears: whatever happens to the host, there is a whole one or
    /// none.
    pub async fn create_lasting_overlay(&self, base: &Base, overlay: &Path) -> Result<(), DiskError> {
        let unfinished = Unfinished::named(&absolute(overlay)?, ".made");
        self.create_overlay(base, &unfinished.path).await?;
        sync(unfinished.path.clone()).await.map_err(|source| placing(overlay, source))?;
        std::fs::rename(&unfinished.path, overlay).map_err(|source| placing(overlay, source))?;
        let directory = absolute(overlay)?.parent().unwrap_or(Path::new("/")).to_owned();
        sync(directory).await.map_err(|source| placing(overlay, source))
    }

    /// Makes an overlay on a base that has the contents of another overlay, however many lie between that one and the base.
    /// No machine may use that one. It takes long, up to an hour for a large disk. The copy is complete and on the host's
    /// disk when it appears; a failure, and dropping the future, leave nothing behind.
    ///
    /// `qemu-img convert -B` would lose what lies in the overlays between: it copies what the topmost has and takes the
    /// target's base for the rest (QEMU 7.2 to 10.0). `rebase` compares with what is below instead, where anything but the
    /// base has data. It changes an overlay in place, so it gets one of its own.
    pub async fn copy_overlay(&self, overlay: &Path, base: &Base, copy: &Path) -> Result<(), DiskError> {
        let file = absolute(&base.file)?;
        check(&Base { file: file.clone(), format: base.format }, &first_bytes(file.clone()).await?)?;
        let unfinished = Unfinished::named(&absolute(copy)?, ".copy");
        let top = Base { file: overlay.to_owned(), format: Format::Qcow2 };
        self.create_overlay(&top, &unfinished.path).await?;
        let command = tool(self.img())
            .args(["rebase", "-q", "-f", "qcow2", "-F", base.format.name(), "-b"])
            .args([&file, &unfinished.path])
            .dies_with_parent();
        let done = command.output(&COPY_LIMITS).await.and_then(Output::into_success);
        done.map_err(|source| failure("copy overlay", copy.to_owned(), source))?;
        sync(unfinished.path.clone()).await.map_err(|source| placing(copy, source))?;
        std::fs::rename(&unfinished.path, copy).map_err(|source| placing(copy, source))
    }

    /// Asks what a disk is. Also works while a machine uses it.
    pub async fn disk(&self, file: &Path) -> Result<Disk, DiskError> {
        Disk::examine(self.img(), file).await
    }
}

async fn create_overlay(img: &OsStr, base: &Base, overlay: &Path) -> Result<(), DiskError> {
    // A relative name in an overlay would be taken from where the overlay is.
    let file = absolute(&base.file)?;
    let first = first_bytes(file.clone()).await?;
    check(&Base { file: file.clone(), format: base.format }, &first)?;
    let unfinished = Unfinished::named(&absolute(overlay)?, ".new");
    let command = tool(img)
        .args(["create", "-q", "-f", "qcow2", "-F", base.format.name(), "-b"])
        .args([&file, &unfinished.path])
        .umask(0o077);
    let done = command.output(&LIMITS).await.and_then(Output::into_success);
    done.map_err(|source| failure("create overlay", overlay.to_owned(), source))?;
    std::fs::rename(&unfinished.path, overlay).map_err(|source| placing(overlay, source))
}

impl Base {
    /// Has a QEMU without a machine open an overlay on it, as a machine's does: what `qemu-img` can read QEMU may yet refuse,
    /// for want of a key, of a file that it names, or of a feature. The overlay is in a temporary directory. Both programs are
    /// looked up on `PATH` unless they have a slash.
    pub async fn try_open(&self, system: &OsStr, img: &OsStr) -> Result<(), DiskError> {
        let full = |source| DiskError::Place { file: std::env::temp_dir(), source };
        let directory = tempfile::Builder::new().prefix("kvm-worker-").tempdir().map_err(full)?;
        let overlay = directory.path().join("overlay.qcow2");
        create_overlay(img, self, &overlay).await?;
        let file = overlay.display().to_string().replace(',', ",,");
        let disk = format!("driver=qcow2,node-name=disk0,read-only=on,file.driver=file,file.filename={file}");
        let command = tool(system)
            .args(["-no-user-config", "-nodefaults", "-display", "none", "-machine", "none"])
            .args(["-chardev", "stdio,id=qmp", "-mon", "chardev=qmp,mode=control", "-blockdev", &disk])
            .stdin("{\"execute\": \"qmp_capabilities\"}\n{\"execute\": \"quit\"}\n");
        match command.output(&OPEN_LIMITS).await.and_then(Output::into_success) {
            Ok(_) => Ok(()),
            Err(OutputError::Failed { stderr, .. }) => {
                // It begins with all that QEMU was told, of which nobody knows anything.
                let why = stderr.rsplit_once(&format!("{disk}: ")).map_or(stderr.as_str(), |(_, why)| why);
                Err(DiskError::Unopenable { file: self.file.clone(), why: why.trim().to_owned() })
            }
            Err(source) => Err(failure("have qemu open disk", self.file.clone(), source)),
        }
    }
}

impl Disk {
    /// The other file that has its data, if it is a qcow2 image that has them elsewhere.
    pub fn data_file(&self) -> Option<&Path> {
        self.specific.data.data_file.as_deref()
    }

    /// Whether QEMU has found it damaged, and marked it.
    pub fn is_marked_corrupt(&self) -> bool {
        self.specific.data.corrupt
    }

    /// Asks the `qemu-img` program what a disk is. Also works while a machine uses it, and where there is nothing to run
    /// machines with.
    pub async fn examine(img: &OsStr, file: &Path) -> Result<Disk, DiskError> {
        let file = absolute(file)?;
        first_bytes(file.clone()).await?;
        let command = tool(img).args(["info", "--force-share", "--output=json"]).arg(&file);
        match command.output(&LIMITS).await.and_then(Output::into_success) {
            Ok(answer) => serde_json::from_slice(&answer).map_err(|source| DiskError::Answer { file, source }),
            Err(source) => Err(failure("examine disk", file, source)),
        }
    }
}

fn absolute(file: &Path) -> Result<PathBuf, DiskError> {
    std::path::absolute(file).map_err(|source| DiskError::Unreadable { file: file.to_owned(), source })
}

/// Opens a disk image. What is none would have whoever opens it wait, for a writer to a named pipe for one.
fn open(file: &Path) -> io::Result<File> {
    let kind = |metadata: Metadata| {
        let kind = metadata.file_type();
        let what = match () {
            () if kind.is_file() || kind.is_block_device() => return Ok(()),
            () if kind.is_dir() => "directory",
            () if kind.is_fifo() => "named pipe",
            () if kind.is_socket() => "socket",
            () => "character device",
        };
        Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it is a {what}, not a file or a block device")))
    };
    kind(std::fs::metadata(file)?)?;
    let nonblock = OFlags::NONBLOCK.bits().cast_signed();
    let opened = File::options().read(true).custom_flags(nonblock).open(file)?;
    kind(opened.metadata()?)?;
    Ok(opened)
}

/// Reads up to four bytes, away from the runtime: images may lie on a network mount.
async fn first_bytes(file: PathBuf) -> Result<Vec<u8>, DiskError> {
    let path = file.clone();
    let read = move || {
        let mut bytes = Vec::new();
        open(&path)?.take(4).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let done = tokio::task::spawn_blocking(read).await.unwrap_or_else(|error| Err(io::Error::other(error)));
    done.map_err(|source| DiskError::Unreadable { file, source })
}

/// Sees for itself whether a base is what it is said to be: for a raw one qemu-img takes everything.
fn check(base: &Base, first: &[u8]) -> Result<(), DiskError> {
    let wrong = |found| Err(DiskError::WrongFormat { file: base.file.clone(), said: base.format, found });
    match (base.format, first == QCOW2_MAGIC) {
        (Format::Qcow2, false) => wrong("not a qcow2 image"),
        (Format::Raw, true) => wrong("a qcow2 image"),
        (Format::Qcow2, true) | (Format::Raw, false) => Ok(()),
    }
}

/// Waits until a file's contents are on the host's disk.
async fn sync(file: PathBuf) -> io::Result<()> {
    let sync = move || File::open(file)?.sync_all();
    tokio::task::spawn_blocking(sync).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

fn placing(file: &Path, source: io::Error) -> DiskError {
    // Delayed allocation and quotas are noticed as late as this.
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DiskError::Full { file: file.to_owned() },
        _ => DiskError::Place { file: file.to_owned(), source },
    }
}

fn failure(doing: &'static str, file: PathBuf, source: OutputError) -> DiskError {
    // It has an exit code for success and one for everything else; strerror's texts are all there is (QEMU 10.0).
    let full = ["No space left on device", "Disk quota exceeded"];
    match &source {
        OutputError::Failed { stderr, .. } if full.iter().any(|text| stderr.contains(text)) => DiskError::Full { file },
        _ => DiskError::Tool { doing, file, source },
    }
}

/// A file that is removed unless it was renamed.
struct Unfinished {
    path: PathBuf,
}

impl Unfinished {
    fn named(path: &Path, suffix: &str) -> Self {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(suffix);
        Unfinished { path: path.with_file_name(name) }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
