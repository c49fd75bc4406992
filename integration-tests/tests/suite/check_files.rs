//! What `kvm-worker check` says of files that no machine can use, and that it waits for none of them.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use integration_tests::{Guest, KvmHost, SOON, contains_all};

fn qemu_img(arguments: &[&str], directory: &Path) -> Result<()> {
    let status = Command::new("qemu-img").args(arguments).current_dir(directory).stdout(Stdio::null()).status();
    ensure!(status.context("run qemu-img")?.success(), "qemu-img {arguments:?} failed");
    Ok(())
}

/// Checks that a guest with a key of its configuration changed is found to be of no use, and says why.
fn fails(key: &str, file: &Path, says: &str) -> Result<()> {
    let mut host = KvmHost::at("pb://127.0.0.1:9")?;
    host.image("plain", Guest::plain()?.with(key, file.display().to_string()));
    let begun = Instant::now();
    let said = host.ask(&["image", "check"])?;
    let text = String::from_utf8_lossy(&said.stdout);
    ensure!(said.status.code() == Some(1), "{}: {text}", file.display());
    let line = text.lines().find(|line| line.trim_start().starts_with("failed")).context("a failure")?;
    contains_all(line, &[key, says])?;
    ensure!(begun.elapsed() < SOON, "it took {:?}", begun.elapsed());
    Ok(())
}

#[test]
fn disks_that_qemu_does_not_open_are_found() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = |name: &str| directory.path().join(name);
    let secret = ["create", "-q", "--object", "secret,id=s,data=abc", "-f", "qcow2", "-o"];
    let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    qemu_img(&[&secret[..], &[options, "encrypted.qcow2", "3M"]].concat(), directory.path())?;
    fails("disk", &path("encrypted.qcow2"), "is encrypted, and nothing here has its key")?;
    let over = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "encrypted.qcow2", "over.qcow2"];
    // qemu-img wants the size of what it has no key for.
    qemu_img(&[&over[..], &["3M"]].concat(), directory.path())?;
    fails("disk", &path("over.qcow2"), "is encrypted, and nothing here has its key")?;
    // A name that is taken from wherever QEMU was started.
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", "data_file=data", "elsewhere.qcow2", "3M"], directory.path())?;
    fails("disk", &path("elsewhere.qcow2"), "'data': No such file or directory")?;
    qemu_img(&["create", "-q", "-f", "qcow2", "strange.qcow2", "3M"], directory.path())?;
    let mut bytes = std::fs::read(path("strange.qcow2"))?;
    bytes[72] = 0x80;
    std::fs::write(path("strange.qcow2"), &bytes)?;
    fails("disk", &path("strange.qcow2"), "Unknown incompatible feature")?;
    bytes[72] = 0;
    bytes[79] |= 2;
    std::fs::write(path("corrupt.qcow2"), &bytes)?;
    fails("disk", &path("corrupt.qcow2"), "damaged")
}

#[test]
fn what_is_no_file_is_named_and_not_waited_for() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = |name: &str| directory.path().join(name);
    let pipe = path("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR)?;
    let _socket = UnixListener::bind(path("socket"))?;
    qemu_img(&["create", "-q", "-f", "qcow2", "-u", "-F", "raw", "-b", "pipe", "over.qcow2", "3M"], directory.path())?;
    fails("disk", &path("over.qcow2"), "named pipe")?;
    for key in ["disk", "kernel", "initrd", "key"] {
        // A key says that it is no regular file, whatever it is.
        let or = |what: &'static str| if key == "key" { "" } else { what };
        fails(key, &pipe, or("it is a named pipe"))?;
        fails(key, &path("socket"), or("it is a socket"))?;
        fails(key, directory.path(), or("it is a directory"))?;
        fails(key, Path::new("/dev/zero"), or("device"))?;
    }
    Ok(())
}
