//! Whatever an archive holds, nothing is made outside the directory that it is unpacked into, nor a file read from there.
#![no_main]

use std::cell::RefCell;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

thread_local! {
    // In memory, and in one place for all inputs.
    static OUTER: RefCell<TempDir> = RefCell::new(tempfile::tempdir_in("/dev/shm").expect("a directory"));
}

fuzz_target!(|input: &[u8]| OUTER.with_borrow(|outer| {
    let Some((how, archive)) = input.split_first() else { return };
    let inner = outer.path().join("inner");
    std::fs::create_dir(&inner).expect("made");
    std::fs::write(outer.path().join("secret"), "secret").expect("written");
    ssh::fuzzing::unpack(archive, &inner, *how);
    let names = |path: &Path| {
        let mut names: Vec<_> =
            std::fs::read_dir(path).expect("listed").map(|entry| entry.expect("listed").file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(outer.path()), ["inner", "secret"]);
    assert_eq!(std::fs::read(outer.path().join("secret")).expect("read"), b"secret");
    remove(&inner);
}));

/// Removes a tree whose directories may not let anybody in.
fn remove(top: &Path) {
    use std::os::unix::fs::PermissionsExt;
    if std::fs::remove_dir_all(top).is_ok() {
        return;
    }
    let mut todo = vec![top.to_owned()];
    while let Some(directory) = todo.pop() {
        std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o700)).expect("changed");
        let entries = std::fs::read_dir(&directory).expect("listed").flatten();
        todo.extend(
            entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()),
        );
    }
    std::fs::remove_dir_all(top).expect("removed");
}
