//! QEMU: whether it is there, what it can do, and whether guest code really runs on KVM.

use std::ffi::OsStr;
use std::time::Duration;

use qemu::{Accel, Accelerated, Accelerator, Features, Qemu};

use super::Finding;
use crate::config::Config;

/// The oldest QEMU that is tried.
const OLDEST: (u32, u32) = (7, 2);

/// What is asked of `qemu-img` takes some 20 ms.
const LIMITS: process::Limits = process::Limits { deadline: Duration::from_secs(20), max_bytes: 64 * 1024 };

/// Looks at both programs and the accelerator.
pub(super) async fn look(config: &Config) -> Vec<Finding> {
    let pool = &config.pool;
    let (probed, img) = tokio::join!(Qemu::probe(&pool.qemu, &pool.qemu_img), img_version(pool.qemu_img.as_os_str()));
    let mut findings = Vec::new();
    let qemu = match probed {
        Ok(qemu) => {
            let program = qemu.program().map_or_else(|_| pool.qemu.clone(), |program| program.file);
            let templates = config.images.values().any(|image| image.template);
            findings.push(judge_qemu(&program.display().to_string(), qemu.version(), qemu.features(), templates));
            Some(qemu)
        }
        Err(error) => {
            findings.push(Finding::failed("qemu", error.to_string(), None));
            None
        }
    };
    findings.push(judge_img(&pool.qemu_img.display().to_string(), img, qemu.as_ref().map(Qemu::version)));
    findings.push(match &qemu {
        // What is configured as "kvm" is not tried by the worker, and is here.
        Some(qemu) => match qemu.accelerator(if pool.accel == Accel::Tcg { Accel::Tcg } else { Accel::Auto }).await {
            Ok(Accelerated { accelerator, reason }) => judge_accelerator(pool.accel, accelerator, &reason),
            Err(error) => Finding::failed("accelerator", error.to_string(), None),
        },
        None => Finding::skipped("accelerator", "there is no qemu to try it with"),
    });
    findings
}

async fn img_version(program: &OsStr) -> Result<String, String> {
    let command = process::Command::new(program).inherit_env(["PATH"]).env("LC_ALL", "C").arg("--version");
    let said = command.output(&LIMITS).await.and_then(process::Output::into_success);
    let said = said.map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&said);
    // `qemu-img version 10.0.2 (Debian 1:10.0.2+ds-2)`
    let version = said.lines().next().and_then(|line| line.split("version ").nth(1)?.split_whitespace().next());
    version.map(str::to_owned).ok_or_else(|| format!("{program:?} does not answer like qemu-img"))
}

fn judge_qemu(program: &str, version: &str, features: &Features, templates: bool) -> Finding {
    if number(version).is_some_and(|version| version < OLDEST) {
        let (major, minor) = OLDEST;
        let text = format!("{program}, version {version}, which was never tried");
        return Finding::warning("qemu", text, Some(format!("install version {major}.{minor} or later")));
    }
    if !features.sandbox {
        let text = format!("{program}, version {version}, has no sandbox: what breaks out of a guest is this user");
        return Finding::warning("qemu", text, Some("install one that was built with seccomp".to_owned()));
    }
    if templates && !features.rom {
        // See `Features::memory_mode`.
        let text =
            format!("{program}, version {version}; before 8.2 no guest with a template may have a memory balloon");
        return Finding::ok("qemu", text);
    }
    Finding::ok("qemu", format!("{program}, version {version}"))
}

fn judge_img(program: &str, version: Result<String, String>, qemu: Option<&str>) -> Finding {
    let install = || Some("install qemu-utils, or set pool.qemu_img".to_owned());
    match version {
        Err(why) => Finding::failed("qemu-img", why, install()),
        Ok(version) => match qemu.map(|qemu| (qemu, number(qemu), number(&version))) {
            // It may write what an older QEMU does not read.
            Some((qemu, of_qemu, of_img)) if of_qemu.map(|it| it.0) != of_img.map(|it| it.0) => Finding::warning(
                "qemu-img",
                format!("{program}, version {version}, and qemu is {qemu}"),
                Some("install both from one place".to_owned()),
            ),
            _ => Finding::ok("qemu-img", format!("{program}, version {version}")),
        },
    }
}

fn judge_accelerator(wanted: Accel, found: Accelerator, reason: &str) -> Finding {
    let subject = "accelerator";
    let get_kvm = || {
        let remedy = if reason.contains("Permission denied") {
            "add the worker's user to the group that owns /dev/kvm (kvm)"
        } else if reason.contains("No such file") {
            "load the module kvm_intel or kvm_amd; in a virtual machine, have its host allow nested ones"
        } else {
            "use a host whose KVM runs guests"
        };
        Some(remedy.to_owned())
    };
    match (wanted, found) {
        (Accel::Tcg, _) => Finding::ok(subject, "tcg, as pool.accel says: guests are emulated"),
        (_, Accelerator::Kvm) => Finding::ok(subject, format!("kvm: {reason}")),
        (Accel::Auto, Accelerator::Tcg) => {
            Finding::warning(subject, format!("tcg, ten times slower or worse than kvm: {reason}"), get_kvm())
        }
        (Accel::Kvm, Accelerator::Tcg) => {
            Finding::failed(subject, format!("pool.accel is \"kvm\", and {reason}"), get_kvm())
        }
    }
}

/// The first two numbers of a version.
fn number(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn qemu_has_to_be_new_enough_and_confined() {
        let check = |version: &str, sandbox, rom, verdict, text: &str| {
            let features = Features { sandbox, rng: true, rom, vmgenid: true, pvpanic: true };
            let finding = judge_qemu("/usr/bin/qemu", version, &features, true);
            assert_eq!((finding.verdict, finding.text.contains(text)), (verdict, true), "{finding:?}");
        };
        check("10.0.2", true, true, Verdict::Ok, "version 10.0.2");
        check("7.2.9", true, false, Verdict::Ok, "balloon");
        check("7.1.0", true, false, Verdict::Warning, "never tried");
        check("6.2.0", false, false, Verdict::Warning, "never tried");
        check("10.0.2", false, true, Verdict::Warning, "no sandbox");
        // A version that nobody understands is as good as its features.
        check("main", true, true, Verdict::Ok, "version main");
    }

    #[test]
    fn qemu_img_belongs_to_its_qemu() {
        let check = |img: Result<&str, &str>, qemu, verdict, text: &str| {
            let finding = judge_img("qemu-img", img.map(str::to_owned).map_err(str::to_owned), qemu);
            assert_eq!((finding.verdict, finding.text.as_str()), (verdict, text));
        };
        check(Ok("10.0.2"), Some("10.0.2"), Verdict::Ok, "qemu-img, version 10.0.2");
        check(Ok("10.1.0"), Some("10.0.2"), Verdict::Ok, "qemu-img, version 10.1.0");
        check(Ok("10.0.2"), Some("7.2.9"), Verdict::Warning, "qemu-img, version 10.0.2, and qemu is 7.2.9");
        check(Ok("10.0.2"), None, Verdict::Ok, "qemu-img, version 10.0.2");
        check(Err("not there"), Some("10.0.2"), Verdict::Failed, "not there");
    }

    #[test]
    fn why_guests_are_emulated_is_said_with_what_helps() {
        let check = |wanted, found, reason: &str, verdict, remedy: Option<&str>| {
            let finding = judge_accelerator(wanted, found, reason);
            let helps = finding.remedy.as_deref().unwrap_or_default();
            assert_eq!((finding.verdict, helps.contains(remedy.unwrap_or_default())), (verdict, true), "{finding:?}");
            assert_eq!(finding.remedy.is_some(), remedy.is_some());
        };
        let (kvm, tcg) = (Accelerator::Kvm, Accelerator::Tcg);
        check(Accel::Auto, kvm, "guest code ran on it", Verdict::Ok, None);
        check(Accel::Kvm, kvm, "guest code ran on it", Verdict::Ok, None);
        check(Accel::Tcg, tcg, "the configuration asks for it", Verdict::Ok, None);
        check(Accel::Auto, tcg, "/dev/kvm can't be opened: Permission denied", Verdict::Warning, Some("group"));
        check(
            Accel::Auto,
            tcg,
            "/dev/kvm can't be opened: No such file or directory",
            Verdict::Warning,
            Some("module"),
        );
        check(Accel::Auto, tcg, "guest code does not run under KVM: x", Verdict::Warning, Some("host whose KVM"));
        check(Accel::Kvm, tcg, "guest code does not run under KVM: x", Verdict::Failed, Some("host whose KVM"));
    }

    #[tokio::test]
    async fn the_installed_qemu_img_tells_its_version() {
        let version = img_version(OsStr::new("qemu-img")).await.expect("it is installed");
        assert!(number(&version).is_some(), "{version}");
        assert!(img_version(OsStr::new("true")).await.is_err());
        assert!(img_version(OsStr::new("/nowhere/qemu-img")).await.is_err());
    }
}
