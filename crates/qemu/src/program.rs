use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::Qemu;

/// Which program runs machines. It is another one once the file was replaced, by an upgrade for example, even if its
/// version is the same: what one has frozen, another must not restore.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Program {
    /// QEMU's version when it was probed: `10.0.2`.
    pub version: String,
    /// The file, with symbolic links resolved.
    pub file: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// When it was last changed, in nanoseconds since 1970.
    pub modified: i128,
}

impl Qemu {
    /// Looks at the file of the program that runs machines, which may have been replaced since it was probed.
    ///
    /// # Errors
    /// If it is not there any more.
    pub fn program(&self) -> io::Result<Program> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let file = fs::canonicalize(find(self.system(), &path)?)?;
        let metadata = fs::metadata(&file)?;
        let modified = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
        Ok(Program { version: self.version().to_owned(), file, size: metadata.len(), modified })
    }
}

/// Finds a program as the system does when it starts it.
fn find(program: &OsStr, path: &OsStr) -> io::Result<PathBuf> {
    if Path::new(program).components().count() > 1 {
        return Ok(program.into());
    }
    let executable =
        |file: &PathBuf| fs::metadata(file).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0);
    let found = std::env::split_paths(path).map(|directory| directory.join(program)).find(executable);
    found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no program {program:?} on PATH")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_where_the_system_finds_it() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| directory.path().join(name);
        for (name, mode) in [("a/tool", 0o644), ("b/tool", 0o755), ("c/tool", 0o755)] {
            let file = path(name);
            fs::create_dir(file.parent().expect("it has one")).expect("made");
            fs::write(&file, "").expect("written");
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("set");
        }
        let search = std::env::join_paths(["none", "a", "b", "c"].map(path)).expect("no colons");
        let check = |program: &str, expected: Result<PathBuf, &str>| {
            let found = find(program.as_ref(), &search).map_err(|error| error.to_string());
            assert_eq!(found, expected.map_err(str::to_owned));
        };
        check("tool", Ok(path("b/tool")));
        check("/opt/tool", Ok("/opt/tool".into()));
        check("./tool", Ok("./tool".into()));
        check("other", Err("no program \"other\" on PATH"));
    }
}
