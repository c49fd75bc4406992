//! The host's directories, as they are searched.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::super::glob::Tree;

/// What is on the disk now.
pub(super) struct Disk;

impl Tree for Disk {
    /// Device and inode.
    type Identity = (u64, u64);

    fn exists(&mut self, path: &Path) -> bool {
        path.symlink_metadata().is_ok()
    }

    fn is_directory(&mut self, path: &Path) -> bool {
        path.is_dir()
    }

    fn identity(&mut self, path: &Path) -> Option<(u64, u64)> {
        let metadata = path.metadata().ok().filter(std::fs::Metadata::is_dir)?;
        Some((metadata.dev(), metadata.ino()))
    }

    fn names(&mut self, directory: &Path) -> Vec<OsString> {
        super::names(directory).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::glob::{glob, python};
    use super::*;

    #[test]
    fn trees_are_searched_as_python_does() {
        let tree = tempfile::tempdir().expect("a directory");
        python::plant(tree.path());
        python::compare(tree.path(), |pattern| glob(pattern, &mut Disk).expect("paths"));
    }

    #[test]
    fn a_directory_linked_into_itself_is_entered_once() {
        let tree = tempfile::tempdir().expect("a directory");
        let root = tree.path();
        std::fs::write(root.join("f"), "").expect("a file");
        std::os::unix::fs::symlink(".", root.join("again")).expect("a link");
        let found = glob(&format!("{}/**/f", root.display()), &mut Disk).expect("paths");
        assert_eq!(found, [root.join("again/f"), root.join("f")]);
    }
}
