//! The files of an image: its disk with all that this lies over, its kernel, its keys, and what builds saved of it.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use protocol::command::Name;
use qemu::{Disk, DiskError};

use super::finding::Verdict;
use super::{Finding, Group, WITHIN, bounded_group};
use crate::config::{Config, DiskFormat, Image, Pool};
use crate::{plain_file, pool};

/// How many disks may lie over each other. QEMU itself has no limit but that of open files.
const DEEPEST: usize = 64;

/// Looks at one image.
pub(super) async fn look(config: &Config, name: &Name, image: &Image) -> Group {
    let group = format!("image {name}");
    let disk = async {
        let looked = tokio::time::timeout(WITHIN, disk(&config.pool, image)).await;
        looked.unwrap_or_else(|_| super::hangs("disk"))
    };
    let (state_dir, own_name, own) = (config.pool.state_dir.clone(), name.clone(), image.clone());
    let others = bounded_group(&group, move || {
        let mut findings = boot(&own);
        findings.push(key(&own.key));
        findings.push(host_key(&state_dir, &own_name, &own));
        findings.push(generation(&pool::look_at_generations(&state_dir, &own_name)));
        findings
    });
    let (disk, others) = tokio::join!(disk, others);
    Group::new(group, std::iter::once(disk).chain(others.findings).collect())
}

/// A disk and those below it, the topmost first. QEMU itself is asked last whether it opens them.
async fn disk(pool: &Pool, image: &Image) -> Finding {
    let mut chain: Vec<(PathBuf, Disk)> = Vec::new();
    let mut next = Some(image.disk.clone());
    while let Some(file) = next {
        if chain.len() == DEEPEST || chain.iter().any(|(seen, _)| *seen == file) {
            let text = format!("{} lies over itself, or over more than {DEEPEST} others", image.disk.display());
            return Finding::failed("disk", text, Some("make it anew".to_owned()));
        }
        match Disk::examine(pool.qemu_img.as_os_str(), &file).await {
            Ok(disk) => {
                next = disk.backing.clone();
                chain.push((file, disk));
            }
            Err(error) => return broken(&file, chain.last().map(|(above, _)| above.as_path()), &error),
        }
    }
    let open = chain
        .iter()
        .map(|(file, _)| file)
        .find(|file| std::fs::metadata(file).is_ok_and(|file| file.mode() & 0o002 != 0));
    let finding = judge_disk(image.format, &chain, open.map(PathBuf::as_path));
    if finding.verdict == Verdict::Failed {
        return finding;
    }
    match pool::base_of(image).try_open(pool.qemu.as_os_str(), pool.qemu_img.as_os_str()).await {
        Ok(()) => finding,
        Err(error @ (DiskError::Unopenable { .. } | DiskError::WrongFormat { .. })) => {
            Finding::failed("disk", error.to_string(), Some(CONVERT.to_owned()))
        }
        // What is wrong with the programs is said where they are looked at.
        Err(DiskError::Tool { .. }) => finding,
        Err(error) => Finding::failed("disk", error.to_string(), None),
    }
}

/// What helps where qemu-img can read a disk that QEMU doesn't open.
const CONVERT: &str = "make a plain one of it with qemu-img convert -O qcow2";

fn broken(file: &Path, above: Option<&Path>, error: &DiskError) -> Finding {
    match (above, error) {
        // The error speaks of the image's `disk`, which this is not.
        (Some(above), DiskError::Unreadable { source, .. }) => Finding::failed(
            "disk",
            format!("{} lies over {}, which can't be read: {source}", above.display(), file.display()),
            Some("put that file back, or make the disk anew (qemu-img rebase -u, if it was moved)".to_owned()),
        ),
        (Some(above), error) => Finding::failed("disk", format!("below {}: {error}", above.display()), None),
        (None, error) => Finding::failed("disk", error.to_string(), None),
    }
}

/// What is to be said of a disk and those below it, all of which are there; `open` is one that everybody may write to.
fn judge_disk(said: DiskFormat, chain: &[(PathBuf, Disk)], open: Option<&Path>) -> Finding {
    let subject = "disk";
    let Some((file, disk)) = chain.first() else { return Finding::skipped(subject, "there is none") };
    let said = match said {
        DiskFormat::Qcow2 => "qcow2",
        DiskFormat::Raw => "raw",
    };
    if disk.format != said {
        let text = format!("{} is {}, and the image's format says {said}", file.display(), disk.format);
        let remedy = match disk.format.as_str() {
            "qcow2" | "raw" => "correct the image's format".to_owned(),
            _ => "convert it with qemu-img convert -O qcow2".to_owned(),
        };
        return Finding::failed(subject, text, Some(remedy));
    }
    for (above, below) in chain.iter().zip(chain.iter().skip(1)) {
        let (file, format) = (above.0.display(), &below.1.format);
        match &above.1.backing_format {
            Some(said) if said == format || format == "raw" => {}
            Some(said) => {
                let text = format!("{file} lies over {}, which is {format} and not {said}", below.0.display());
                return Finding::failed(
                    subject,
                    text,
                    Some("make it anew, or correct it with qemu-img rebase -u".to_owned()),
                );
            }
            None => {
                let text = format!("{file} does not say which format {} has, which then is guessed", below.0.display());
                return Finding::warning(subject, text, Some(format!("run qemu-img rebase -u -F {format}")));
            }
        }
    }
    if let Some((file, _)) = chain.iter().find(|(_, disk)| disk.encrypted) {
        let text = format!("{} is encrypted, and nothing here has its key", file.display());
        let remedy = "make a copy that is not, with qemu-img convert --image-opts".to_owned();
        return Finding::failed(subject, text, Some(remedy));
    }
    if let Some((file, _)) = chain.iter().find(|(_, disk)| disk.is_marked_corrupt()) {
        let text = format!("qemu has found {} damaged, and marked it", file.display());
        return Finding::failed(
            subject,
            text,
            Some("put back a copy, or repair it with qemu-img check -r all".to_owned()),
        );
    }
    let elsewhere = chain.iter().find_map(|(file, disk)| Some((file, disk.data_file()?)));
    if let Some((file, data)) = elsewhere {
        let text = format!(
            "the data of {} are in another file, {}, and nobody notices if that one changes below a machine",
            file.display(),
            data.display()
        );
        return Finding::warning(subject, text, Some(CONVERT.to_owned()));
    }
    if let Some(open) = open {
        let text = format!("everybody on this host may write to {}", open.display());
        return Finding::warning(subject, text, Some(format!("run chmod o-w {}", open.display())));
    }
    let over = match chain.len() - 1 {
        0 => String::new(),
        1 => ", over another disk".to_owned(),
        below => format!(", over {below} other disks"),
    };
    let (size, takes) = (megabytes(disk.virtual_size), megabytes(disk.actual_size));
    Finding::ok(subject, format!("{}, {said}, {size}, takes {takes} here{over}", file.display()))
}

fn boot(image: &Image) -> Vec<Finding> {
    let Some(boot) = &image.boot else { return Vec::new() };
    let files = [("kernel", Some(&boot.kernel)), ("initrd", boot.initrd.as_ref())];
    files.into_iter().filter_map(|(subject, file)| Some(readable(subject, file?))).collect()
}

fn readable(subject: &str, file: &Path) -> Finding {
    match plain_file::open(file) {
        Ok(_) => Finding::ok(subject, file.display().to_string()),
        Err(error) => {
            let remedy = format!("check the image's {subject} and its permissions");
            Finding::failed(subject, format!("{} can't be read: {error}", file.display()), Some(remedy))
        }
    }
}

/// The longest public key, in bytes.
const MAX_PUBLIC_KEY: u64 = 64 * 1024;

fn key(file: &Path) -> Finding {
    let subject = "key";
    let identity = match ssh::Identity::load(file) {
        Ok(identity) => identity,
        Err(error) => return Finding::failed(subject, error.to_string(), None),
    };
    let fingerprint = identity.fingerprint();
    // What was put into the guest is most often this.
    let mut public = file.as_os_str().to_owned();
    public.push(".pub");
    let other = plain_file::read(public.as_ref(), MAX_PUBLIC_KEY).ok().and_then(|line| String::from_utf8(line).ok());
    let other = other.and_then(|line| line.parse::<ssh::HostKey>().ok());
    if let Some(other) = other.filter(|other| other.fingerprint() != fingerprint) {
        let (public, shown) = (Path::new(&public).display(), other.fingerprint());
        let text = format!("{}, {fingerprint}, and {public} beside it is another key, {shown}", file.display());
        let remedy =
            format!("see which one guests let in; ssh-keygen -y -f {} prints this one's public half", file.display());
        return Finding::warning(subject, text, Some(remedy));
    }
    Finding::ok(subject, format!("{}, {fingerprint}", file.display()))
}

fn host_key(state_dir: &Path, name: &Name, image: &Image) -> Finding {
    let subject = "host_key";
    if let Some(key) = &image.host_key {
        return Finding::ok(subject, format!("{}, as configured", key.fingerprint()));
    }
    let file = pool::host_key_file(state_dir, name);
    match std::fs::read_to_string(&file) {
        Ok(line) => match line.parse::<ssh::HostKey>() {
            Ok(key) => Finding::ok(subject, format!("{}, learnt at the first boot", key.fingerprint())),
            Err(error) => Finding::failed(
                subject,
                format!("{}: {error}", file.display()),
                Some("remove the file to have the key learnt anew".to_owned()),
            ),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Finding::ok(subject, "none yet; it is learnt at the first boot")
        }
        Err(error) => Finding::failed(subject, format!("{} can't be read: {error}", file.display()), None),
    }
}

/// What machines start from, if builds have saved something.
fn generation(seen: &pool::SavedGenerations) -> Finding {
    let subject = "generation";
    let saved = seen.generations.len().saturating_sub(1);
    let number = match &seen.current {
        Ok(number) => *number,
        Err(why) => return Finding::failed(subject, why, None),
    };
    let current = seen.generations.iter().find(|generation| generation.number == number);
    let back = "go back with kvm-worker image rollback once the worker runs".to_owned();
    match current.map(|generation| &generation.manifest) {
        Some(None) if saved == 0 => Finding::ok(subject, "1, the disk of the configuration"),
        Some(None) => Finding::ok(subject, format!("1, the disk of the configuration; {saved} were saved")),
        Some(Some(Err(why))) => Finding::failed(subject, format!("{number} is damaged: {why}"), Some(back)),
        Some(Some(Ok(manifest))) => match manifest.base_holds() {
            Ok(()) => Finding::ok(subject, format!("{number}, one of {saved} that were saved")),
            Err(why) => Finding::failed(subject, format!("{number}: {why:#}"), Some(back)),
        },
        None => Finding::failed(subject, format!("{number} is chosen and not there"), Some(back)),
    }
}

/// A size for people.
fn megabytes(bytes: u64) -> String {
    format!("{} MB", bytes.div_ceil(1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk_of(format: &str, backing: Option<&str>, backing_format: Option<&str>) -> Disk {
        said_of(serde_json::json!({
            "format": format,
            "full-backing-filename": backing,
            "backing-filename-format": backing_format,
        }))
    }

    /// What qemu-img says of a disk, with its sizes.
    fn said_of(mut said: serde_json::Value) -> Disk {
        (said["virtual-size"], said["actual-size"]) = (2_000_000_000_u64.into(), 1_000_001.into());
        serde_json::from_value(said).expect("it is understood")
    }

    #[test]
    fn a_disk_is_what_the_configuration_says_and_so_is_what_it_lies_over() {
        let check = |said, chain: &[(&str, Disk)], open: Option<&str>, verdict, text: &str| {
            let chain: Vec<_> = chain.iter().map(|(file, disk)| (PathBuf::from(file), disk.clone())).collect();
            let finding = judge_disk(said, &chain, open.map(Path::new));
            assert_eq!((finding.verdict, finding.text.as_str()), (verdict, text));
        };
        let alone = |format| [("/a", disk_of(format, None, None))];
        check(DiskFormat::Qcow2, &alone("qcow2"), None, Verdict::Ok, "/a, qcow2, 2000 MB, takes 2 MB here");
        check(DiskFormat::Raw, &alone("raw"), None, Verdict::Ok, "/a, raw, 2000 MB, takes 2 MB here");
        check(DiskFormat::Qcow2, &alone("raw"), None, Verdict::Failed, "/a is raw, and the image's format says qcow2");
        check(DiskFormat::Raw, &alone("qcow2"), None, Verdict::Failed, "/a is qcow2, and the image's format says raw");
        check(
            DiskFormat::Qcow2,
            &alone("vmdk"),
            None,
            Verdict::Failed,
            "/a is vmdk, and the image's format says qcow2",
        );
        check(
            DiskFormat::Qcow2,
            &alone("qcow2"),
            Some("/a"),
            Verdict::Warning,
            "everybody on this host may write to /a",
        );
        let over = |said| [("/a", disk_of("qcow2", Some("/b"), said)), ("/b", disk_of("qcow2", None, None))];
        check(
            DiskFormat::Qcow2,
            &over(Some("qcow2")),
            None,
            Verdict::Ok,
            "/a, qcow2, 2000 MB, takes 2 MB here, over another disk",
        );
        check(
            DiskFormat::Qcow2,
            &over(Some("raw")),
            None,
            Verdict::Failed,
            "/a lies over /b, which is qcow2 and not raw",
        );
        check(
            DiskFormat::Qcow2,
            &over(None),
            None,
            Verdict::Warning,
            "/a does not say which format /b has, which then is guessed",
        );
    }

    #[test]
    fn a_disk_that_machines_can_t_use_is_found_wherever_it_is_in_the_chain() {
        let check = |said: serde_json::Value, verdict, text: &str| {
            let below = [("/a", disk_of("qcow2", Some("/b"), Some("qcow2"))), ("/b", said_of(said))];
            let chain = below.map(|(file, disk)| (PathBuf::from(file), disk));
            let finding = judge_disk(DiskFormat::Qcow2, &chain, None);
            assert_eq!((finding.verdict, finding.text.as_str()), (verdict, text));
        };
        let json = |text: &str| serde_json::from_str(text).expect("JSON");
        check(
            json(r#"{"format": "qcow2", "encrypted": true}"#),
            Verdict::Failed,
            "/b is encrypted, and nothing here has its key",
        );
        check(
            json(r#"{"format": "qcow2", "format-specific": {"type": "qcow2", "data": {"corrupt": true}}}"#),
            Verdict::Failed,
            "qemu has found /b damaged, and marked it",
        );
        check(
            json(r#"{"format": "qcow2", "format-specific": {"type": "qcow2", "data": {"data-file": "c.raw"}}}"#),
            Verdict::Warning,
            "the data of /b are in another file, c.raw, and nobody notices if that one changes below a machine",
        );
        check(
            json(r#"{"format": "qcow2", "format-specific": {"type": "file", "data": {}}}"#),
            Verdict::Ok,
            "/a, qcow2, 2000 MB, takes 2 MB here, over another disk",
        );
    }

    #[test]
    fn a_key_is_private_and_the_one_beside_it_is_its_public_half() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        let make = |name: &str| {
            let made = std::process::Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(path(name))
                .status();
            assert!(made.expect("it is installed").success());
        };
        make("one");
        make("two");
        assert_eq!(key(&path("one")).verdict, Verdict::Ok);
        std::fs::copy(path("two.pub"), path("one.pub")).expect("copied");
        assert_eq!(key(&path("one")).verdict, Verdict::Warning);
        std::fs::set_permissions(path("one"), std::fs::Permissions::from_mode(0o644)).expect("set");
        let open = key(&path("one"));
        assert_eq!((open.verdict, open.text.contains("chmod 600")), (Verdict::Failed, true), "{open:?}");
        assert_eq!(key(&path("none")).verdict, Verdict::Failed);
    }
}
