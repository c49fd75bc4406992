//! Templates of the guests, made once for all tests: a machine that is cloned from one is up in a second, where a boot
//! takes five.
//!
//! ```text
//! .cache/integration-tests/templates/NUMBER/KEY/   a template, as the worker made it for one guest
//! HOST/state/templates/IMAGE/KEY/                  the same files, linked into the state directory of a test
//! ```
//!
//! Which files make a template stale is the worker's business: it looks at what is linked as at a template of an earlier run.
//! NUMBER only says whether it is worth trying.

use std::fs::{self, DirBuilder, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use toml::{Table, Value};

use crate::artefacts::{cache, in_path, worker_binary};
use crate::{Guest, KvmHost, SOON};

/// The files of a template. The worker makes the empty overlay beside them itself, as it has the template's path in it.
const FILES: [&str; 4] = ["memory", "state", "disk.qcow2", "manifest.json"];

/// How many templates stay. A worker that is built anew needs another one of each guest.
const KEPT: usize = 4;

/// The image that a template is made of.
const IMAGE: &str = "guest";

/// Gives a worker that has not started yet the template of an image, which is configured by this table. Makes it if this is
/// the first time that it is needed.
pub(crate) fn link(table: &Table, state_dir: &Path, image: &str) -> Result<()> {
    let images = state_dir.join("templates").join(image);
    if images.exists() {
        return Ok(());
    }
    let template = find_or_make(table)?;
    let name = template.file_name().context("a template's directory has a name")?;
    let directory = images.join(name);
    DirBuilder::new().recursive(true).mode(0o700).create(&directory).context("make a directory for a template")?;
    for file in FILES {
        let (from, to) = (template.join(file), directory.join(file));
        // The directory for temporary files may be on another filesystem.
        fs::hard_link(&from, &to)
            .or_else(|_| fs::copy(&from, &to).map(drop))
            .with_context(|| format!("link {}", from.display()))?;
    }
    Ok(())
}

fn find_or_make(table: &Table) -> Result<PathBuf> {
    let store = cache().join("integration-tests/templates");
    let place = store.join(format!("{:016x}", number(table)?));
    if let Some(template) = only_entry(&place) {
        return Ok(template);
    }
    fs::create_dir_all(&store).context("make a directory for templates")?;
    // Tests that need the same one at the same time wait for the first of them to make it.
    let lock = File::create(store.join("lock")).context("make the lock of the templates")?;
    lock.lock().context("lock the templates")?;
    if let Some(template) = only_entry(&place) {
        return Ok(template);
    }
    make(table, &place).with_context(|| format!("make a template for all tests in {}", place.display()))?;
    remove_all_but_the_newest(&store)?;
    only_entry(&place).context("the template that was made is gone")
}

/// Has a worker of its own make a template, and moves it to its place.
fn make(table: &Table, place: &Path) -> Result<()> {
    // No master is needed for it.
    let mut host = KvmHost::at("pb://127.0.0.1:9")?;
    host.image(IMAGE, Guest::of_table(table.clone()));
    let mut worker = host.start()?;
    worker.transcript().find("started", SOON)?;
    let made = host.ask(&["image", "template", IMAGE])?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    worker.stop()?;
    let unfinished = place.with_extension("new");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).context("remove what an earlier run did not finish")?;
    }
    // Over filesystems, too, and with the holes that most of the memory is.
    let templates = host.state_dir().join("templates").join(IMAGE);
    let copied = Command::new("cp").args(["--archive", "--sparse=always"]).arg(&templates).arg(&unfinished).status();
    ensure!(copied.context("run cp")?.success(), "cp failed");
    fs::rename(&unfinished, place).context("put it in its place")
}

/// Tells apart what a template of this guest would be made of, as far as it changes while one works on kvm-worker.
fn number(table: &Table) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    table.to_string().hash(&mut hasher);
    let named = |key: &str| table.get(key).and_then(Value::as_str).map(PathBuf::from);
    let named = ["disk", "kernel", "initrd", "key"].into_iter().filter_map(named);
    for file in named.chain([worker_binary()?, in_path("qemu-system-x86_64")?]) {
        let metadata = fs::metadata(&file).with_context(|| format!("look at {}", file.display()))?;
        (file, metadata.len(), metadata.mtime(), metadata.mtime_nsec()).hash(&mut hasher);
    }
    Ok(hasher.finish())
}

fn only_entry(directory: &Path) -> Option<PathBuf> {
    fs::read_dir(directory).ok()?.next()?.ok().map(|entry| entry.path())
}

/// Tests that have one of the others linked keep its files.
fn remove_all_but_the_newest(store: &Path) -> Result<()> {
    let made = |path: &PathBuf| fs::metadata(path).and_then(|it| it.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let entries = fs::read_dir(store).context("list the templates")?.flatten().map(|entry| entry.path());
    let mut templates: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    templates.sort_by_cached_key(|path| std::cmp::Reverse(made(path)));
    for old in templates.iter().skip(KEPT) {
        fs::remove_dir_all(old).with_context(|| format!("remove {}", old.display()))?;
    }
    Ok(())
}
