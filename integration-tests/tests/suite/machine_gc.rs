//! What nothing uses any more is removed, and nothing that a machine stands on.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use integration_tests::{Guest, KvmHost, Master, Results, Rig, WITH_GUESTS, contains_all};

fn ask(host: &KvmHost, arguments: &[&str]) -> Result<String> {
    let Output { status, stdout, stderr } = host.ask(arguments)?;
    ensure!(status.success(), "{arguments:?} ended with {status}: {}", String::from_utf8_lossy(&stderr));
    Ok(String::from_utf8(stdout)?)
}

/// Makes a file and the directories above it.
fn put(host: &KvmHost, name: &str, contents: &str) -> Result<PathBuf> {
    let file = host.state_dir().join(name);
    fs::create_dir_all(file.parent().context("it has one")?)?;
    fs::write(&file, contents)?;
    Ok(file)
}

/// A disk that lies over another one.
fn overlay(host: &KvmHost, name: &str, below: &Path) -> Result<PathBuf> {
    let file = put(host, name, "")?;
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
        .args([below, &file])
        .output()?;
    ensure!(made.status.success(), "{made:?}");
    Ok(file)
}

/// The names of what is left in a state directory, but for what every worker has there.
fn left(host: &KvmHost) -> Result<Vec<String>> {
    let mut left = Vec::new();
    let mut directories = vec![host.state_dir()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                directories.push(entry.path());
            } else {
                left.push(entry.path().strip_prefix(host.state_dir())?.display().to_string());
            }
        }
    }
    left.retain(|name| name != "lock" && name != "control.sock");
    left.sort();
    Ok(left)
}

const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// What an image that the configuration had once left, and what looks like it.
fn leave_things(host: &KvmHost) -> Result<()> {
    put(host, "generations/ghost/2/manifest.json", "{}")?;
    let base = Guest::plain()?.get("disk").context("a guest has a disk")?.to_owned();
    let second = overlay(host, "generations/ghost/2/disk.qcow2", Path::new(&base))?;
    overlay(host, "generations/ghost/3/disk.qcow2", Path::new(&base))?;
    put(host, "generations/ghost/current", "2\n")?;
    put(host, "generations/ghost/new-7/disk.qcow2.copy", "half")?;
    put(host, "generations/ghost/gone-1/disk.qcow2", "half")?;
    put(host, &format!("templates/ghost/{KEY}/memory"), "bytes")?;
    overlay(host, "disks/ghost/default.qcow2", &second)?;
    put(host, "disks/ghost/default.base.json", "{}")?;
    put(host, "host_keys/ghost.pub", "ssh-ed25519 AAAA\n")?;
    // Somebody else's.
    put(host, "generations/ghost/notes.txt", "mine")?;
    put(host, "templates/ghost/README", "mine")?;
    fs::create_dir_all(host.path("elsewhere/2"))?;
    fs::write(host.path("elsewhere/2/disk.qcow2"), "mine")?;
    symlink(host.path("elsewhere"), host.state_dir().join("generations/linked"))?;
    symlink(host.path("elsewhere/2"), host.state_dir().join("generations/ghost/9"))?;
    Ok(())
}

const MINE: [&str; 4] =
    ["generations/ghost/9", "generations/ghost/notes.txt", "generations/linked", "templates/ghost/README"];

#[test]
fn what_images_that_are_gone_have_left_is_removed_without_a_worker() -> Result<()> {
    let mut host = KvmHost::at("ws://127.0.0.1:9")?;
    host.image("plain", Guest::plain()?.with("template", true));
    assert_eq!(ask(&host, &["image", "gc"])?, "nothing to remove\n");
    ensure!(!host.state_dir().exists(), "looking made a directory");
    leave_things(&host)?;
    let before = left(&host)?;

    let told = ask(&host, &["image", "gc", "--dry-run"])?;
    contains_all(
        &told,
        &[
            "would remove  generation 3 of image 'ghost'",
            "would remove  template 001122334455 of image 'ghost'",
            "would remove  host key of image 'ghost'",
            "would remove  something unfinished of image 'ghost'",
            "kept          persistent disk 'default' of image 'ghost'",
            "--disks only",
            "kept          generation 2 of image 'ghost'",
            "disks/ghost/default.qcow2 stands on it",
        ],
    )?;
    assert_eq!(left(&host)?, before);

    ask(&host, &["image", "gc"])?;
    let kept = ["disks/ghost/default.base.json", "disks/ghost/default.qcow2"].map(str::to_owned);
    let generation = ["9", "current", "notes.txt", "2/disk.qcow2", "2/manifest.json"];
    let generation = generation.map(|name| format!("generations/ghost/{name}"));
    let others = ["generations/linked", "templates/ghost/README"].map(str::to_owned);
    let mut expected = [&kept[..], &generation, &others].concat();
    expected.sort();
    assert_eq!(left(&host)?, expected);

    let told = ask(&host, &["image", "gc", "--disks"])?;
    contains_all(&told, &["removed  persistent disk 'default'", "removed  generation 2", "removed 2 things"])?;
    let mut left = left(&host)?;
    // Beside somebody's files the note of what was chosen stays.
    left.retain(|name| name != "generations/ghost/current");
    assert_eq!(left, MINE);
    assert_eq!(fs::read_to_string(host.path("elsewhere/2/disk.qcow2"))?, "mine");
    assert_eq!(ask(&host, &["image", "gc", "--disks"])?, "nothing to remove\n");
    Ok(())
}

#[test]
#[ignore = "long"]
fn what_a_machine_stands_on_stays_whatever_the_configuration_says() -> Result<()> {
    let held =
        r#"steps.StartVM(image="plain"), steps.VMShellCommand(command="false"), steps.StopVM(keep_on_failure=600),"#;
    let master = Master::plan()
        .builder("hold", held)
        .builder("save", r#"steps.StartVM(image="plain"), steps.StopVM(save="plain"),"#)
        .start()?;
    let mut rig = Rig::of(master, |host| {
        host.image("plain", Guest::plain()?.with("keep_generations", 1));
        host.set("pool.slots", 2);
        Ok(())
    })?;
    ask(&rig.host, &["image", "template", "plain"])?;
    rig.master.run_within("save", WITH_GUESTS)?.succeeded()?;
    ask(&rig.host, &["image", "template", "plain"])?;
    let build = rig.master.run_within("hold", WITH_GUESTS)?;
    assert_eq!(
        (build.results, build.property("vm_how")),
        (Some(Results::Failure), &"clone".into()),
        "{}",
        build.story()
    );
    ask(&rig.host, &["image", "rollback", "plain"])?;
    ask(&rig.host, &["image", "template", "plain"])?;
    let listed = ask(&rig.host, &["image", "list"])?;
    let row: Vec<_> = listed.lines().last().context("a row")?.split_whitespace().collect();
    assert_eq!(row[..7], ["plain", "1", "of", "2", "ready", "-", "1"], "{listed}");
    let json: serde_json::Value = serde_json::from_str(&ask(&rig.host, &["image", "list", "--json"])?)?;
    assert_eq!((&json["running"], &json["images"][0]["running"]["machines"]), (&true.into(), &1.into()), "{json}");

    // The worker knows what it uses, and so what it does not.
    leave_things(&rig.host)?;
    let unknown = put(&rig.host, &format!("templates/plain/{KEY}/memory"), "bytes")?;
    let told = ask(&rig.host, &["image", "gc", "--disks"])?;
    contains_all(
        &told,
        &["removed  template 001122334455 of image 'plain'", "removed  generation 2 of image 'ghost'"],
    )?;
    ensure!(!told.contains("generation 2 of image 'plain'") && !unknown.exists(), "{told}");
    let told = ask(&rig.host, &["image", "gc", "--disks"])?;
    assert_eq!(told, "nothing to remove\n");
    let templates = fs::read_dir(rig.host.state_dir().join("templates/plain"))?.count();
    ensure!(templates == 2, "of the template in use and the one a held clone stands on there are {templates}");
    rig.host.machine()?;

    // After a crash the overlay of the machine that was there tells what is needed, even if the image is gone.
    rig.worker.kill()?;
    rig.host.machines_become(0)?;
    rig.host.unset("images.plain");
    rig.host.image("other", Guest::plain()?);
    let told = ask(&rig.host, &["image", "gc"])?;
    contains_all(&told, &["slots/", "overlay.qcow2 stands on it", "kept", "generation 2 of image 'plain'"])?;
    ensure!(rig.host.state_dir().join("generations/plain/2/disk.qcow2").exists(), "{told}");
    let listed = rig.host.ask(&["image", "list"])?;
    contains_all(&String::from_utf8_lossy(&listed.stderr), &["no worker runs"])?;
    contains_all(&String::from_utf8_lossy(&listed.stdout), &["other  1           -         -     -"])?;

    // The next worker cleans the slot; then nothing needs it.
    rig.worker = rig.host.attach(&rig.master)?;
    let told = ask(&rig.host, &["image", "gc"])?;
    contains_all(&told, &["removed  generation 2 of image 'plain'"])?;
    ensure!(!rig.host.state_dir().join("generations/plain").exists(), "{told}");
    rig.finish()
}
